"""FedDF: the mean of the clients' models is fitted to what the models say together on public examples.

Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020.

    (1)  y_i <- y_i - lr grad F_i(y_i; b)               from x^t
    (2)  s_0 = sum_i (n_i / n) y_i
    (3)  T(u) = softmax( mean_i f(u; y_i) / tau )       the mean of the logits, for every public example u
    (4)  s <- s - Adam( grad KL( T(u) || softmax(f(u; s) / tau) ) )     with a cosine decay over `server_steps`
    (5)  x^{t+1} = s, of the steps after which the public examples that were held out were classified best

Keeps: teachers and student that agree do not move.
Reduces to: FedAvg with server_steps = 0.
Departs: the teachers' logits are computed once a round, since the public examples are not augmented. Where nobody is heard the model stays.
Where clients have different architectures (--task=digits_mlp+cnn) there is a student of each, (2) is over its own clients, (3) over all, and the
first one's is the global model that is evaluated.
"""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches
from fedjax_lab.parts import examples, proxy
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import local_sgd, owned
from fedjax_lab.parts.wires.plain import in_use
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Method, Task

ENSEMBLE = "the server needs every client's model"
CHECK = 20  # steps between two looks at the examples held out


@method(family="distillation", paper="Ensemble Distillation for Robust Model Fusion in Federated Learning", year=2020, several=True,
        refuses={"aggregator": ENSEMBLE, "server": ENSEMBLE})
def feddf(task: Task, work: Work, *, server_lr: Positive = 1e-3, server_steps: Annotated[int, Range(0)] = 200, server_batch: Count = 128,
          patience: Count = 1000, held_out: Annotated[float, Range(0, 1, "high")] = 0.2, temperature: Positive = 1.0) -> Method:
    """FedAvg whose mean is then distilled from the ensemble of the clients' models; needs public examples, labels of the held-out ones only.

    Args:
      server_lr: of Adam on the student, at the first step.
      server_steps: the most steps of distillation in a round.
      server_batch: public examples in a step.
      patience: steps without a better model after which distillation ends.
      held_out: share of the public examples by which the best student is chosen; 0 takes the last.
      temperature: of both softmaxes.
    """

    train = local_sgd(task, work)

    def local(key, message, client, data):
        return train(key, {"model": owned(task, message["model"], data.id)}, client, data)  # (1)

    def serve(key, x, aggregate, cohort):
        stack = aggregate["model"]
        count = len(cohort.public["x"])
        kept = count - round(held_out * count)
        public, held = proxy.view(cohort.public, last=kept), proxy.view(cohort.public, first=kept).whole() if kept < count else None
        teachers = jax.vmap(lambda change, i: owned(task, tree.add(x, change), i))(stack.uploads, cohort.ids)
        heard = (stack.weights > 0).astype(jnp.float32)
        logits = jnp.tensordot(heard, jax.vmap(lambda y: task.apply(y, public.whole()))(teachers), 1) / jnp.maximum(jnp.sum(heard), 1)
        targets = jax.nn.softmax(logits / temperature)  # (3)
        numbered = public._replace(stream=public.stream._replace(examples={**public.stream.examples, "target": targets}))
        plan = batches(key, proxy.Proxy(numbered), Work(0.0, 1, max(server_steps, 1), server_batch, optax.identity()))
        adam = optax.adam(optax.cosine_decay_schedule(server_lr, max(server_steps, 1)))

        apart = examples.direction(lambda s, batch: examples.divergence(batch["target"], task.apply(s, batch), temperature))

        def score(s):
            return jnp.mean(task.metrics(task.apply(s, held), held)["accuracy"])

        def step(carry):
            t, s, state, best, most, waited = carry
            update, state = adam.update(apart(key, s, plan.at(t))[1], state, s)  # (4)
            s, waited = optax.apply_updates(s, update), waited + 1
            if held is None:
                return t + 1, s, state, s, most, jnp.int32(0)
            now = jax.lax.cond(((t + 1) % CHECK == 0) | (t + 1 == server_steps), score, lambda s: jnp.float32(-1), s)
            better = now > most
            return t + 1, s, state, tree.select(better, s, best), jnp.maximum(now, most), jnp.where(better, 0, waited)

        def distilled(student):
            start = (jnp.int32(0), student, adam.init(student), student, jnp.float32(-1) if held is None else score(student), jnp.int32(0))
            return jax.lax.while_loop(lambda carry: (carry[0] < server_steps) & (carry[-1] < patience), step, start)[3]  # (5)

        finished = distilled if server_steps else lambda student: student
        if task.own is None:
            return tree.select(stack.empty, x, finished(tree.add(x, stack.mixed(stack.shares))))  # (2)
        models = list(x["models"])
        for kind in range(len(models)):
            theirs = stack._replace(weights=stack.weights * teachers["which"][:, kind])
            student = finished(task.own(tree.add(x, theirs.mixed(theirs.shares)), kind))
            models[kind] = tree.select(stack.empty, models[kind], student["models"][kind])
        return {**x, "models": tuple(models)}

    def init_server(key, params, census):
        proxy.demanded("feddf", census, 2)
        if not census.classes:
            raise ValueError(f"'feddf' needs a classification task; '{task.name}' has no classes")
        return params

    base = Method(local, init_server=init_server, serve=serve, aggregate={"model": together()}, steps=work.steps)
    if task.own is None:
        return base
    return base._replace(broadcast=lambda server, client, clock: {"model": task.own(server, client)}, up={"model": in_use()}, down={"model": in_use()},
                         personal=lambda key, server, row, data: task.own(server, data.id))
