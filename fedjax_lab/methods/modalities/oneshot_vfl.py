"""One-shot vertical learning: clusters of the gradients that come back are labels enough for a party to train its encoder alone.

Sun, Xu, Yang, Nath, Li, Zhao, Xu, Chen, Roth, "Communication-Efficient Vertical Federated Learning with Limited Overlapping Samples", ICCV 2023.

    (1)  H_k = f_k(x_k) of all aligned examples with the first f_k, up;   g_k,i = d CE(f_c([H_1 .. H_P]_i), y_i) / d H_k,i with the first f_c, down
    (2)  l_i = the cluster of g_k,i by k-means with as many clusters as classes: what labels alike pulls alike
    (3)  (f_k, h) <- SGD on CE(h(f_k(x_b)), l_b) + weight mean_u 1[max p(u) >= threshold] CE(h(f_k(strong(u))), argmax p(u)),
         p = softmax h(f_k(weak(u)))                                       b aligned examples, u those that the party alone has
    (4)  H_k = f_k(x_k) up,   f_c <- SGD on CE(f_c([H_1 .. H_P]), y)

Keeps: 3 A d numbers of every party in all, for A aligned examples and d features; names of clusters do not matter.
Reduces to: (3) without examples of one's own with weight = 0 or threshold > 1, which is what the published code does.
Departs: all of it is one round, the first; later ones are idle. The few-shot rounds, in which the server labels further examples, are not
here. h is linear and starts from zero, which makes the names of clusters indifferent. f_k is what the task's head reads, of one architecture
for all parties; f_c is linear, or dense layers with ReLUs between them; (4) takes the parties' optimizer and batch size. (3) takes epochs of
the aligned examples, and goes through a party's own over and over.
"""
from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, loop
from fedjax_lab.parts import examples, proxy, split, streams, vertical
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.solvers.kmeans import kmeans
from fedjax_lab.parts.transforms.augment import weak_strong
from fedjax_lab.parts.wires.half import half
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "Communication-Efficient Vertical Federated Learning with Limited Overlapping Samples"


class Server(NamedTuple):
    """parties: f_k, [P, ...], which the parties hold;  top: f_c;  cut: [P, A, d], the g_k."""

    parties: Tree
    top: Tree
    cut: jax.Array


@method(family="modalities", paper=PAPER, year=2023, lr=0.01, epochs=200, batch_size=32, client_optimizer="momentum:0.9", schedule="vertical",
        everyone="there being but one", refuses=vertical.REFUSES)
def oneshot_vfl(task: Task, work: Work, *, threshold: Positive = 0.95, weight: NonNegative = 1.0, ratio: Count = 1, weak: str = "", strong: str = "",
                cluster_steps: Count = 50, top: tuple[Count, ...] | None = None, top_epochs: Count = 100,
                precision: Literal["float32", "bfloat16", "float16"] = "float32") -> Method:
    """Parties that cluster the first gradients, train alone on the clusters, and send their features once more.

    Args:
      threshold: the least probability of a label that is believed on a party's own examples.
      weight: of the loss on these.
      ratio: of these in a step for each aligned one.
      weak, strong: their augmentations joined by '+'; by default FixMatch's, with noise where inputs are no images.
      cluster_steps: Lloyd's iterations.
      top: widths of the server's hidden layers, none for a linear one.
      top_epochs: the server's passes over the aligned examples.
      precision: of what is sent.
    """
    vertical.demand("oneshot-vfl", task)
    wires = {} if precision == "float32" else {"cut": half(precision)}

    def encoded(data, params):
        whole = vertical.aligned(data.train, len(data.public["y"])).whole()
        return whole, jnp.where(whole["mask"][:, None], task.features(params, whole), 0)

    def show(key, message, row, data):
        return Result({"cut": encoded(data, message["party"])[1]}, 1.0)

    def answer(key, server, aggregate, cohort):
        h, batch = vertical.placed(jnp.zeros_like(server.cut), aggregate["cut"], cohort), proxy.view(cohort.public).whole()
        return server._replace(cut=h.shape[1] * jax.grad(lambda h: vertical.loss(task, server.top, h, batch))(h))  # (1)

    def train(key, message, row, data):
        start, (whole, _) = message["party"], encoded(data, message["party"])
        names = kmeans(keys.purpose(key, "clusters"), message["cut"], data.counts.shape[0], cluster_steps)  # (2)
        aligned = proxy.view({"x": whole["x"], "y": names}, data.id)
        plan = batches(key, data, work, aligned)
        plan = plan._replace(steps=jnp.where(data.size > 0, plan.steps, 0))
        wide = work if work.batch_size == "full" else work._replace(batch_size=ratio * work.batch_size)
        own = batches(keys.purpose(key, "unlabeled"), data, wide, vertical.alone(data.train, len(names)))

        def logits(model, batch, key=None):
            return vertical.outputs(model[1], task.features(model[0], batch, key)[None])

        def step(t, key, batch, carry):
            model, memory, total, kept = carry
            weakly, strongly = weak_strong(keys.purpose(key, "views"), own.at(t), weak or None, strong or None)
            labels, sure, share = streams.believed(logits(model, weakly), threshold, strongly["mask"])
            guess = {**strongly, "y": labels}

            def objective(model):
                value = examples.mean(task.metrics(logits(model, batch, key), batch)["loss"], batch["mask"])
                return value + weight * share * examples.mean(task.metrics(logits(model, guess, key), guess)["loss"], sure), value

            slope, value = jax.grad(objective, has_aux=True)(model)
            update, memory = work.optimizer.update(slope, memory, model)
            return optax.apply_updates(model, update), memory, total + value, kept + share  # (3)

        zero, (_, d), classes = 0.0 * jnp.sum(plan.steps), message["cut"].shape, data.counts.shape[0]  # which varies over the mesh
        model = start, [{"bias": jnp.zeros(classes) + zero, "kernel": jnp.zeros((d, classes)) + zero}]
        (encoder, _), _, total, kept = loop(plan, (model, work.optimizer.init(model), zero, zero), step)
        told = {name: value / jnp.maximum(plan.steps, 1) for name, value in (("loss", total), ("kept", kept))}
        return Result({"party": encoder, "cut": encoded(data, encoder)[1]}, 1.0, metrics=told)

    def finish(key, server, aggregate, cohort):
        h = vertical.placed(jnp.zeros_like(server.cut), aggregate["cut"], cohort)
        plan = proxy.epochs(key, proxy.view({"h": jnp.moveaxis(h, 0, 1), **cohort.public}), top_epochs, work.batch_size)
        direction = examples.direction(lambda layers, batch: task.metrics(vertical.outputs(layers, jnp.moveaxis(batch["h"], 1, 0)), batch)["loss"])
        layers = descend(plan, server.top, direction, work.optimizer).params  # (4)
        after = server._replace(parties=vertical.placed(server.parties, aggregate["party"], cohort), top=layers)
        return tree.select(aggregate["cut"].empty, server, after)

    def init_server(key, params, census):
        split.demand_classes("oneshot-vfl", task, census)
        count = vertical.demand_parties("oneshot-vfl", task, census)
        layers = vertical.top(keys.purpose(key, "top"), task, params, census, top or ())
        cut = jnp.zeros((census.clients, count, layers[0]["kernel"].shape[0] // census.clients))
        return Server(vertical.encoders(keys.purpose(key, "parties"), task, census), layers, cut)

    def party(server, client, clock):
        return {"party": jax.tree.map(lambda x: x[client], server.parties)}

    def party_and_gradients(server, client, clock):
        return {**party(server, client, clock), "cut": server.cut[client]}

    base = Method(init_server=init_server, steps=work.steps, task=vertical.joint(task),
                  deploy=lambda server: {"parties": server.parties, "top": server.top})
    here = {"down": {"party": known(), **wires}, "when": lambda key, clock: clock == 0}
    first = base.phase(local=show, broadcast=party, serve=answer, aggregate={"cut": together()}, up=wires, **here)
    last = base.phase(local=train, broadcast=party_and_gradients, serve=finish, aggregate={"cut": together(), "party": together()},
                      up={"party": known(), **wires}, **here)
    return base._replace(phases=(first, last))
