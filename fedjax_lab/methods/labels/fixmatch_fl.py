"""FixMatch in federated averaging: what the model is sure of on a weakly changed image is the label of a strongly changed one.

Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, "FixMatch: Simplifying Semi-Supervised Learning with Consistency and
Confidence", NeurIPS 2020.

    (1)  p(u) = softmax f(weak(u); z),   l(u) = argmax p(u)           z the client's model y, the received x^t, or a mean of y's (labeler)
    (2)  y <- y - lr grad [ mean_b CE(f(b; y), label) + weight mean_u 1[max p(u) >= threshold] CE(f(strong(u); y), l(u)) ]
         in each step a batch b of labeled and one of unlabeled examples u, `ratio` times as large; z <- decay z + (1 - decay) y with ema
    (3)  x^{t+1} = sum_i n_i y_i / sum_i n_i
    (4)  x^{t+1} is trained for `server_epochs` of the public examples with their labels: for labels that are at the server only

Keeps: without an example that the labeler is sure of, unlabeled data do nothing; l is a constant for the gradient.
Reduces to: FedAvg on the labeled examples with threshold > 1, step by step.
Departs: a client takes as many steps as FedAvg on all of its examples and goes through each of its streams over and over. Labeled examples are
changed by --augment alone. Normalization statistics are those of the labeled batches. The mean of models starts in each round from x^t.
"""
from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, descend, gradient, loop, with_stats
from fedjax_lab.parts import proxy, streams
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.transforms.augment import weak_strong
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Range, Share
from fedjax_lab.types import Method, Result, Task

PAPER = "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"


@method(family="labels", paper=PAPER, year=2020)
def fixmatch_fl(task: Task, work: Work, *, threshold: Positive = 0.95, weight: NonNegative = 1.0, ratio: Count = 1,
                labeler: Literal["local", "global", "ema"] = "local", decay: Share = 0.99, weak: str = "", strong: str = "",
                server_epochs: Annotated[int, Range(0)] = 0, server_lr: Positive = 0.1, weighting: Weighting = "examples") -> Method:
    """FedAvg whose clients also learn from what the model is sure of on their unlabeled examples.

    Args:
      threshold: the least probability of a label that is believed; above 1 none is.
      weight: of the loss on unlabeled examples.
      ratio: unlabeled examples in a step for each labeled one, 1 to 7.
      labeler: who labels: the client's own model, the one that it received, or the running mean of its own.
      decay: of that mean.
      weak, strong: augmentations joined by '+'; by default those of the paper, with noise where inputs are no images.
      server_epochs: passes of the server over the public examples after the mean.
      server_lr: of SGD in them.
      weighting: clients count by all of their examples, or all alike.
    """

    def local(key, message, client, data):
        x, found = message["model"], streams.streams(data)
        known = streams.over(key, data, work, found.labeled)
        wide = work if work.batch_size == "full" else work._replace(batch_size=ratio * work.batch_size)
        unknown = streams.over(keys.purpose(key, "unlabeled"), data, wide, found.unlabeled)

        def step(t, key, batch, carry):
            y, z, state, total, kept = carry
            weakly, strongly = weak_strong(keys.purpose(key, "views"), unknown.at(t), weak or None, strong or None)
            said = task.apply({"local": y, "global": x, "ema": z}[labeler], weakly)
            labels, sure, share = streams.believed(said, threshold, strongly["mask"])  # (1)

            def objective(y):
                value, aux = task.loss(y, batch, key)
                return value + weight * share * streams.taught(task, y, strongly, labels, sure, key)[0], aux

            (value, aux), slope = jax.value_and_grad(objective, has_aux=True)(y)
            update, state = work.optimizer.update(slope, state, y)
            y = with_stats(optax.apply_updates(y, update), aux.stats)  # (2)
            z = tree.add(tree.scale(decay, z), tree.scale(1 - decay, y)) if labeler == "ema" else z
            return y, z, state, total + value.astype(total.dtype), kept + share

        zero = 0 * jnp.sum(known.steps, dtype=jnp.float32)  # varies over the mesh as the carry does
        y, _, _, total, kept = loop(known, (x, x if labeler == "ema" else (), work.optimizer.init(x), zero, zero), step)
        means = {name: value / jnp.maximum(known.steps, 1) for name, value in (("loss", total), ("kept", kept))}
        return Result({"model": tree.sub(y, x)}, weigh(weighting, data), metrics=means)

    def serve(key, x, aggregate, cohort):
        x = tree.add(x, aggregate["model"])  # (3)
        if not server_epochs:
            return x
        plan = proxy.epochs(key, proxy.view(cohort.public), server_epochs, work.batch_size)
        return descend(plan, x, gradient(task), optax.sgd(server_lr)).params  # (4)

    def init_server(key, params, census):
        streams.demanded("fixmatch-fl", task, census)
        if server_epochs:
            proxy.demanded("fixmatch-fl", census)
        return params

    return Method(local, init_server=init_server, serve=serve, steps=work.steps)
