"""FedETF: the classifier is a simplex that nobody trains.

Li, Shang, He, Lin, Wu, "No Fear of Classifier Biases: Neural Collapse Inspired Federated Learning with Synthetic and Fixed Classifier",
ICCV 2023.

    (1)  M = sqrt(C / (C - 1)) P (I - 1 1^T / C)            P [d, C] with orthonormal columns, drawn once
    (2)  h = W u + w, u the features;  outputs = s M^T h / ||h||
    (3)  y <- y - lr grad CE(outputs + log n_k, labels)     y = (body, W, w, s) from x^t;  n_k counts of client k's labels, 1 where 0
    (4)  x^{t+1} = sum_i n_i y_i / sum_i n_i
    (5)  when client k is evaluated: (3) once more on a copy, then in turn `tune_epochs` of CE(outputs) in an own M_k, which starts
         from M, by SGD, and as many in (W, w) by SGD with momentum 0.9

Keeps: M^T M = C / (C - 1) (I - 1 1^T / C); M is never trained, sent or averaged. Evaluation is without log n_k.
Reduces to: FedAvg of the model under M for clients with even labels, where (3) is the plain cross entropy.
Departs: the model's own head gives way: the leaves named by `head` are in no message. The paper's weight decay, which shrinks s too,
is client_optimizer=momentum:weight_decay=5e-4. s starts from 10 and may be 1 for other networks.
"""
from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.lengths import unit
from fedjax_lab.parts.transforms.outputs import demand, reread
from fedjax_lab.parts.transforms.split import Cut, cut
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive, Range
from fedjax_lab.types import Method, Result, Task

PAPER = "No Fear of Classifier Biases: Neural Collapse Inspired Federated Learning with Synthetic and Fixed Classifier"
Times = Annotated[int, Range(0)]


def simplex(width: int, classes: int, seed: int = 0) -> np.ndarray:
    """M [width, classes], float32: unit columns, any two with the cosine -1 / (classes - 1).

    Raises:
      ValueError: fewer dimensions than classes.
    """
    if width < classes or classes < 2:
        raise ValueError(f"'fedetf' needs at least two classes and as many features; the model has {width} features for {classes} classes")
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, classes)))
    center = np.eye(classes) - 1 / classes
    return (np.sqrt(classes / (classes - 1)) * (q * np.sign(np.diag(r))) @ center).astype(np.float32)  # (1)


@method(family="representation", paper=PAPER, year=2023, lr=0.04, epochs=3, batch_size=128, client_optimizer="momentum:0.9")
def fedetf(task: Task, work: Work, *, temperature: Positive = 10.0, head: str = "head", tune_turns: Times = 20, tune_epochs: Times = 3,
           head_lr: Positive = 0.1, projection_lr: Positive = 0.05, seed: Times = 0, weighting: Weighting = "examples") -> Method:
    """FedAvg under a fixed simplex of class directions, with a projection onto it and losses that know a client's labels.

    Args:
      temperature: s at the start.
      head: a word in the path of the leaves whose place the simplex takes, one of them the matrix [features, classes].
      tune_turns: how often a client's own simplex and projection are trained in turn when it is evaluated.
      tune_epochs: passes over its data each time.
      head_lr: rate of its simplex.
      projection_lr: rate of its projection.
      seed: of the simplex.
      weighting: clients count by their examples, or all alike.
    """
    demand("fedetf", task)
    halves = cut(task, lambda params: named(params, head))
    features, classes = _matrix(halves)
    M = simplex(features, classes, seed)

    def init(key):
        kernel = jax.random.normal(keys.purpose(key, "projection"), (features, features)) / np.sqrt(features)
        projection = {"kernel": kernel, "bias": jnp.zeros(features)}
        return {"body": halves.part(task.init(key), False), "projection": projection, "scale": jnp.float32(temperature)}

    def h(params, batch, key=None):
        u = task.features(halves.shared_only(params["body"]), batch, key)
        return unit(u @ params["projection"]["kernel"] + params["projection"]["bias"])

    def under(prior=0.0) -> Task:
        return reread(task, h, lambda params, z: params["scale"] * z @ params.get("simplex", M) + prior)._replace(init=init)  # (2)

    def trained(key, x, data):
        aware = under(jnp.log(jnp.maximum(data.counts, 1)))
        return descend(batches(key, data, work), x, gradient(aware), work.optimizer)  # (3)

    def local(key, message, client, data):
        x = message["model"]
        end = trained(key, x, data)
        return Result({"model": tree.sub(end.params, x)}, weigh(weighting, data), metrics={"loss": end.loss})  # (4)

    def tuned(key, y, data, name, optimizer):
        def direction(key, own, batch):
            loss, v, stats = gradient(under())(key, {**y, name: own}, batch)
            return loss, v[name], stats

        plan = batches(keys.purpose(key, name), data, work._replace(epochs=tune_epochs, local_steps=0))
        return {**y, name: descend(plan, y[name], direction, optimizer).params}

    def personal(key, x, client, data):
        def turn(i, y):
            y = tuned(jax.random.fold_in(key, i), y, data, "simplex", optax.sgd(head_lr))
            return tuned(jax.random.fold_in(key, i), y, data, "projection", optax.sgd(projection_lr, 0.9))

        y = {**trained(key, x, data).params, "simplex": jnp.asarray(M) + 0 * x["scale"]}
        return jax.lax.fori_loop(0, tune_turns if tune_epochs else 0, turn, y)  # (5)

    return Method(local, steps=work.steps, personal=personal, task=under())


def _matrix(halves: Cut) -> tuple[int, int]:
    """The shape of the head's one matrix."""
    found = [leaf.shape for leaf in halves.part(halves.like, True).values() if len(leaf.shape) == 2]
    if len(found) != 1:
        raise ValueError(f"'fedetf' needs a head with one matrix [features, classes]; the leaves chosen have {len(found)}")
    return found[0]
