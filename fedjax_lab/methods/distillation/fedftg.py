"""FedFTG: the server tunes the mean on hard samples that a generator makes against the ensemble of the clients' models.

Zhang, Shen, Ding, Tao, Duan, "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning", CVPR 2022.

    (1)  a round of any method: y_k the clients' models, s its new global one, such as their mean
    (2)  p(c) ~ sum_k n_k^c,    a_k^c = n_k^c / sum_j n_j^c                   n_k^c examples of class c, over the clients of the round
    (3)  `turns` times: z ~ N(0, I), labels y ~ p, x = G(z, y)
    (4)    for each client k, `generator_steps` times over:  G <- G - Adam grad { mean a_k^y [ fidelity CE(f(x; y_k), y) - D(f(x; s), f(x; y_k)) ]
             + diversity / |S| exp( -mean_ij |z_i - z_j|^2 |x_i - x_j|_1 ) }     D = KL( softmax || softmax ), the second one constant; or |.|_1
    (5)    `student_steps` times:  s <- s - server_lr grad -mean sum_c T_c log softmax_c f(x; s),    T = sum_k a_k^y softmax f(x; y_k)
    (6)  x^{t+1} = s

Keeps: sum_k a_k^c = 1 for every class that somebody has; models that agree have D = 0.
Reduces to: the method of (1) with turns = 0.
Departs: weights are per sample, as in the paper; the published code weighs the batch's mean. G is a perceptron with one hidden layer of ReLUs.
The clients take their turns in (4) in the engine's order, most steps first. Their histograms are known from set-up: their numbers are not
counted. The method of (1) has its own default options beside those of local training. Where nobody is heard G stays too.
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, registry, tree
from fedjax_lab.local import Work
from fedjax_lab.parts import examples, generator, split
from fedjax_lab.parts.transforms.served import followed
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Range
from fedjax_lab.types import Method, Task

PAPER = "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning"
ENSEMBLE = "the server needs every client's model"
Times = Annotated[int, Range(0)]


def shares(counts: jax.Array, heard: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p [C] and a [S, C] of (2), of counts [S, C] and who was heard [S]."""
    counts = jnp.where(heard[:, None], counts, 0)
    total = jnp.sum(counts, 0)
    return jnp.log(total), counts / jnp.where(total > 0, total, 1)


@method(family="distillation", paper=PAPER, year=2022, refuses={"aggregator": ENSEMBLE, "server": ENSEMBLE})
def fedftg(task: Task, work: Work, *, base: Literal["fedavg", "fedprox", "scaffold", "feddyn", "moon"] = "fedavg", turns: Times = 10,
           generator_steps: Count = 1, student_steps: Times = 5, fidelity: NonNegative = 1.0, diversity: NonNegative = 1.0,
           gap: Literal["kl", "logits"] = "kl", server_batch: Count = 128, generator_lr: Positive = 0.01, server_lr: Positive = 0.1,
           decay: Annotated[float, Range(0, 1, "low")] = 0.998, noise: Count = 100, width: Count = 128) -> Method:
    """A method whose global model is then tuned by its clients' models on generated samples on which it differs from them.

    Args:
      base: the method, with its defaults.
      turns: batches of noise and labels in a round; 0 leaves the base method as it is.
      generator_steps: steps of the generator for each client and batch.
      student_steps: steps of the global model for each batch.
      fidelity: weight of the clients' own cross entropy in what the generator descends.
      diversity: weight of what keeps generated samples apart.
      gap: D, the divergence of the softmaxes or the mean distance of the logits.
      server_batch: generated samples in a batch.
      generator_lr: of Adam on the generator.
      server_lr: of SGD on the global model.
      decay: what both are multiplied by after every round.
      noise: entries of z.
      width: hidden units of the generator.
    """
    local = {"lr": work.lr, "epochs": work.epochs, "local_steps": work.local_steps, "batch_size": work.batch_size, "client_optimizer": work.named}
    under = registry.make(base, task, **local)  # (1)

    def init(key, params, census):
        classes = split.demand_classes("fedftg", task, census)
        return generator.init(keys.purpose(key, "generator"), noise, classes, width, generator.demanded("fedftg", task, census))

    def distance(ours, theirs):
        return examples.between(ours, theirs) if gap == "kl" else jnp.mean(jnp.abs(ours - theirs), -1)

    def tune(key, G, x, s, aggregate, cohort):
        stack, rate = aggregate["model"].stack, decay**cohort.clock
        teachers, heard = jax.tree.map(lambda v, change: v + change, x, stack.uploads), stack.weights > 0
        logp, a = shares(cohort.counts, heard)  # (2)
        adam = optax.adam(generator_lr * rate)

        def turn(i, carry):
            s, G, state = carry
            drawn = jax.random.fold_in(key, i)
            z = jax.random.normal(keys.purpose(drawn, "noise"), (server_batch, noise))
            y = jax.random.categorical(keys.purpose(drawn, "labels"), logp, shape=(server_batch,))
            weights = a[:, y]  # (3)

            def against(j, carry):  # (4)
                G, state = carry
                k = j % len(heard)

                def loss(G):
                    batch = {"x": generator.made(G, z, y), "y": y, "mask": jnp.ones(server_batch, bool)}
                    theirs = task.apply(jax.tree.map(lambda v: v[k], teachers), batch)
                    far = distance(task.apply(s, batch), jax.lax.stop_gradient(theirs))
                    each = weights[k] * (fidelity * task.metrics(theirs, batch)["loss"] - far)
                    return jnp.mean(each) + diversity / jnp.maximum(jnp.sum(heard), 1) * generator.alike(z, batch["x"])

                update, new = adam.update(jax.grad(loss)(G), state)
                return tree.select(heard[k], (optax.apply_updates(G, update), new), (G, state))

            G, state = jax.lax.fori_loop(0, generator_steps * len(heard), against, (G, state))
            batch = {"x": generator.made(G, z, y), "y": y, "mask": jnp.ones(server_batch, bool)}
            said = jax.nn.softmax(jax.vmap(lambda teacher: task.apply(teacher, batch))(teachers))
            target = jnp.einsum("sb,sbc->bc", weights, said)
            along = examples.direction(lambda s, batch: split.label_free(task.apply(s, batch), target))
            s = jax.lax.fori_loop(0, student_steps, lambda _, s: tree.axpy(-server_lr * rate, along(key, s, batch)[1], s), s)  # (5)
            return s, G, state

        tuned, made, _ = jax.lax.fori_loop(0, turns, turn, (s, G, adam.init(G)))
        return tree.select(stack.empty, (G, s), (made, tuned))  # (6)

    return followed(under, init, tune, stacked=True) if turns else under
