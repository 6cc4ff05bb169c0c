"""One-shot vertical learning: clusters of the gradients that come back are labels enough for a party to train its encoder alone.

Sun, Xu, Yang, Nath, Li, Zhao, Xu, Chen, Roth, "Communication-Efficient Vertical Federated Learning with Limited Overlapping Samples", ICCV 2023.

    (1)  H_k = f_k(x_k) of all aligned examples with the first f_k, up;   g_k,i = d CE(f_c([H_1 .. H_P]_i), y_i) / d H_k,i with the first f_c, down
    (2)  l_i = the cluster of g_k,i by k-means with as many clusters as classes: what labels alike pulls alike
    (3)  (f_k, h) <- SGD on CE(h(f_k(x_b)), l_b) + weight mean_u 1[max p(u) >= threshold] CE(h(f_k(strong(u))), argmax p(u)),
         p = softmax h(f_k(weak(u)))                                       b aligned examples, u those that the party alone has
    (4)  H_k = f_k(x_k) up,   f_c <- SGD on CE(f_c([H_1 .. H_P]), y)
    (5)  few-shot, round 1 and on:  q_u = f_k(x_u) of a party's own examples, up;   H_j,u = sum_i softmax_i(q_u . H_k,i / sqrt d) H_j,i, j != k;
         the label argmax p(u), p = softmax f_c([.. H_j,u .. q_u ..]), down where max p(u) >= threshold;   then (3) with + CE(g(f_k(weak(u))), label),
         and (4)

Keeps: 3 A d numbers of every party in the first round, for A aligned examples and d features, and later (A + U) d, and a bit for each of its
own U examples with 32 for a label; names of clusters do not matter.
Reduces to: (3) without examples of one's own with weight = 0 or threshold > 1, which is what the published code does.
Departs: all of one-shot is the first round; with shots = 0 later ones are idle. (5) is reconstructed: the paper's text leaves open how labels
of classes go together with clusters, which have other names; here g is a second head beside h. h and g are linear and start from zero in every
round, which makes the names of clusters indifferent. f_k is what the task's head reads, of one architecture for all parties; f_c is linear, or
dense layers with ReLUs between them; (4) takes the parties' optimizer and batch size. (3) takes epochs of the aligned examples, and goes
through a party's own over and over.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, loop
from fedjax_lab.parts import examples, proxy, split, streams, vertical
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.solvers.kmeans import kmeans
from fedjax_lab.parts.transforms.augment import weak_strong
from fedjax_lab.parts.wires.half import half
from fedjax_lab.parts.wires.plain import known, plain, rows_there
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Range
from fedjax_lab.types import Method, Result, Stream, Task, Tree, View

PAPER = "Communication-Efficient Vertical Federated Learning with Limited Overlapping Samples"
UNSURE, NOBODY = -1, -2


class Server(NamedTuple):
    """parties: f_k, [P, ...], which the parties hold;  top: f_c;  cut: [P, A, d], the g_k;  shots: of few-shot rounds, else ()."""

    parties: Tree
    top: Tree
    cut: jax.Array
    shots: Tree = ()


class Shots(NamedTuple):
    """h: [P, A, d], the H_k of last time;  names: int32 [P, A], the l_i, which the parties hold;  labels: int32 [P, U] of the parties' own
    examples, UNSURE where the server is not sure, NOBODY where there is no example."""

    h: jax.Array
    names: jax.Array
    labels: jax.Array


@method(family="modalities", paper=PAPER, year=2023, lr=0.01, epochs=200, batch_size=32, client_optimizer="momentum:0.9", schedule="vertical",
        everyone="since each has features that nobody else has", refuses=vertical.REFUSES)
def oneshot_vfl(task: Task, work: Work, *, threshold: Positive = 0.95, weight: NonNegative = 1.0, ratio: Count = 1, weak: str = "", strong: str = "",
                cluster_steps: Count = 50, top: tuple[Count, ...] | None = None, top_epochs: Count = 100,
                precision: Literal["float32", "bfloat16", "float16"] = "float32", shots: Annotated[int, Range(0)] = 0) -> Method:
    """Parties that cluster the first gradients, train alone on the clusters, and send their features once more.

    Args:
      threshold: the least probability of a label that is believed on a party's own examples.
      weight: of the loss on these.
      ratio: of these in a step for each aligned one.
      weak, strong: their augmentations joined by '+'; by default FixMatch's, with noise where inputs are no images.
      cluster_steps: Lloyd's iterations.
      top: widths of the server's hidden layers, none for a linear one.
      top_epochs: the server's passes over the aligned examples.
      precision: of the features and gradients that are sent.
      shots: few-shot rounds after the first one, in which the server labels examples that a party alone has.
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

    def begin(key, message, row, data):
        whole = vertical.aligned(data.train, len(data.public["y"])).whole()
        names = kmeans(keys.purpose(key, "clusters"), message["cut"], data.counts.shape[0], cluster_steps)  # (2)
        result = train(key, message["party"], data, {"x": whole["x"], "y": names}, vertical.alone(data.train, len(names)))
        return result._replace(upload={**result.upload, "names": names}) if shots else result

    def resume(key, message, row, data):
        whole = vertical.aligned(data.train, len(data.public["y"])).whole()
        own = vertical.alone(data.train, len(whole["x"]))
        taught = View(Stream({"x": own.whole()["x"], "y": message["labels"]}, jnp.zeros(1, jnp.int32), own.size[None]), jnp.int32(0), own.capacity)
        return train(key, message["party"], data, {"x": whole["x"], "y": message["names"]}, taught, labeled=True)

    def train(key, start, data, clustered, unlabeled, labeled=False):
        """From `start`, on aligned examples with names of clusters, and on one's own, whose "y" are labels or -1 where they are `labeled`."""
        plan = batches(key, data, work, proxy.view(clustered, data.id))
        plan = plan._replace(steps=jnp.where(data.size > 0, plan.steps, 0))
        wide = work if work.batch_size == "full" else work._replace(batch_size=ratio * work.batch_size)
        own = batches(keys.purpose(key, "unlabeled"), data, wide, unlabeled)

        def logits(model, batch, key=None, head=1):
            return vertical.outputs(model[head], task.features(model[0], batch, key)[None])

        def step(t, key, batch, carry):
            model, memory, total, kept = carry
            given = own.at(t)
            weakly, strongly = weak_strong(keys.purpose(key, "views"), given, weak or None, strong or None)
            labels, sure, share = streams.believed(logits(model, weakly), threshold, strongly["mask"])
            guess = {**strongly, "y": labels}

            def objective(model):
                value = examples.mean(task.metrics(logits(model, batch, key), batch)["loss"], batch["mask"])
                whole = value + weight * share * examples.mean(task.metrics(logits(model, guess, key), guess)["loss"], sure)
                if labeled:
                    whole += examples.mean(task.metrics(logits(model, weakly, key, 2), weakly)["loss"], weakly["mask"] & (given["y"] >= 0))  # (5)
                return whole, value

            slope, value = jax.grad(objective, has_aux=True)(model)
            update, memory = work.optimizer.update(slope, memory, model)
            return optax.apply_updates(model, update), memory, total + value, kept + share  # (3)

        zero, classes = 0.0 * jnp.sum(plan.steps), data.counts.shape[0]  # which varies over the mesh
        d = jax.eval_shape(task.features, start, plan.at(0)).shape[1]
        model = start, *[[{"bias": jnp.zeros(classes) + zero, "kernel": jnp.zeros((d, classes)) + zero}] for _ in range(1 + labeled)]
        (encoder, *_), _, total, kept = loop(plan, (model, work.optimizer.init(model), zero, zero), step)
        metrics = {name: value / jnp.maximum(plan.steps, 1) for name, value in (("loss", total), ("kept", kept))}
        return Result({"party": encoder, "cut": encoded(data, encoder)[1]}, 1.0, metrics=metrics)

    def ask(key, message, row, data):
        own = vertical.alone(data.train, len(data.public["y"])).whole()
        return Result({"own": (jnp.where(own["mask"][:, None], task.features(message["party"], own), 0).astype(precision), own["mask"])}, 1.0)

    def label(key, server, aggregate, cohort):
        shots = server.shots
        nobody = jnp.zeros((*shots.labels.shape, shots.h.shape[2])), jnp.zeros(shots.labels.shape, bool)
        own, there = vertical.placed(nobody, aggregate["own"], cohort)
        outputs = jax.vmap(lambda h: vertical.outputs(server.top, h))(vertical.completed(own, shots.h))
        labels, sure, _ = jax.vmap(lambda z, mask: streams.believed(z, threshold, mask))(outputs, there)
        return server._replace(shots=shots._replace(labels=jnp.where(sure, labels, jnp.where(there, UNSURE, NOBODY))))

    def finish(key, server, aggregate, cohort):
        h = vertical.placed(jnp.zeros_like(server.cut), aggregate["cut"], cohort)
        plan = proxy.epochs(key, proxy.view({"h": jnp.moveaxis(h, 0, 1), **cohort.public}), top_epochs, work.batch_size)
        direction = examples.direction(lambda layers, batch: task.metrics(vertical.outputs(layers, jnp.moveaxis(batch["h"], 1, 0)), batch)["loss"])
        layers = descend(plan, server.top, direction, work.optimizer).params  # (4)
        after = server._replace(parties=vertical.placed(server.parties, aggregate["party"], cohort), top=layers)
        if shots:
            names = vertical.placed(server.shots.names, aggregate["names"], cohort) if "names" in aggregate else server.shots.names
            after = after._replace(shots=server.shots._replace(h=h, names=names))
        return tree.select(aggregate["cut"].empty, server, after)

    def init_server(key, params, census):
        split.demand_classes("oneshot-vfl", task, census)
        count = vertical.demand_parties("oneshot-vfl", task, census)
        layers = vertical.top(keys.purpose(key, "top"), task, params, census, top or ())
        cut = jnp.zeros((census.clients, count, layers[0]["kernel"].shape[0] // census.clients))
        own = max(1, int(np.max(census.size)) - count)
        later = Shots(cut, jnp.zeros((census.clients, count), jnp.int32), jnp.full((census.clients, own), NOBODY, jnp.int32)) if shots else ()
        return Server(vertical.encoders(keys.purpose(key, "parties"), task, census), layers, cut, later)

    def party(server, client, clock):
        return {"party": jax.tree.map(lambda x: x[client], server.parties)}

    def party_and_gradients(server, client, clock):
        return {**party(server, client, clock), "cut": server.cut[client]}

    def party_and_labels(server, client, clock):
        return {**party(server, client, clock), "names": server.shots.names[client], "labels": server.shots.labels[client]}

    base = Method(init_server=init_server, steps=work.steps, task=vertical.joint(task),
                  deploy=lambda server: {"parties": server.parties, "top": server.top})
    held, both = {"party": known()}, {"cut": together(), "party": together()}
    names, stacks = ({"names": known()}, {"names": together()}) if shots else ({}, {})
    at_first, later = ({"when": when} for when in (lambda key, clock: clock == 0, lambda key, clock: (clock > 0) & (clock <= shots)))
    first = base.phase(local=show, broadcast=party, serve=answer, aggregate={"cut": together()}, up=wires, down=held, **at_first)
    last = base.phase(local=begin, broadcast=party_and_gradients, serve=finish, aggregate={**both, **stacks}, up={**held, **wires, **names},
                      down={**held, **wires}, **at_first)
    told = plain(lambda labels: jnp.sum(labels > NOBODY) + 32 * jnp.sum(labels > UNSURE))  # a bit for each example that is there
    third = base.phase(local=ask, broadcast=party, serve=label, aggregate={"own": together()}, up={"own": rows_there()}, down=held, **later)
    again = base.phase(local=resume, broadcast=party_and_labels, serve=finish, aggregate=both, up={**held, **wires},
                       down={**held, **names, "labels": told}, **later)
    return base._replace(phases=(first, last, third, again) if shots else (first, last))
