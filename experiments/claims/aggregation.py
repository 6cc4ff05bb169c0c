"""Claims of what is aggregated in closed form or by matching, with the margins of their cards."""
from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from experiments.claims.records import ACCURACY, TUNED, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import Clients
from fedjax_lab import tasks
from fedjax_lab.data import scenario, source, sources


def embedded(name: str, embed: Callable[[np.ndarray], np.ndarray], partition: str, clients: int, train: int, test: int = 10000) -> Clients:
    """Logistic regression on what `embed` makes of pixels [M, 784] of MNIST, in units of their deviation; so many examples in all."""

    def make():
        origin, rng = sources.load("mnist"), np.random.default_rng(10)
        sides = []
        for side, count in ((origin.train, train), (origin.test, test)):
            at = np.sort(rng.permutation(len(side["y"]))[:count])
            x = np.asarray(side["x"])[at].reshape(-1, 784).astype(np.float64)
            x = x / 255 if x.max() > 1 else x
            sides.append({"x": embed((x - 0.13) / 0.31).astype(np.float32), "y": np.asarray(side["y"])[at]})
        small = source.make(name, *sides, origin.classes)
        people = scenario.build(partition, small, key=jax.random.key(0), clients=clients)
        example = {k: v[:1] for k, v in small.train.items()}
        return tasks.build(name, "logreg", example, small.classes, {}, small.manifest), people

    return make


def random_relu(x: np.ndarray) -> np.ndarray:
    """512 random features, always the same."""
    return np.maximum(x @ np.random.default_rng(10).normal(size=(784, 512)) / 28, 0)


def closed() -> Claim:
    text = ("MNIST, 10,000 examples, 512 fixed random ReLU features, a linear classifier, dirichlet(0.01), 100 of 100 clients; one round against 50 rounds "
            "of 2 epochs")
    where = Scenario(text, {"cohort": 100, "rounds": 50, "eval_every": 50}, {"batch_size": 50},
                     embedded("mnist random features", random_relu, "dirichlet:0.01", 100, 10000), double=True)
    exact = Side("analyticfl", {}, {}, {"rounds": 1, "eval_every": 1})
    return Claim("analyticfl/probe", exact, Side("fedavg", {"epochs": 2}, TUNED), where, ACCURACY, Margin("plus", 3))


def matching() -> list[Claim]:
    text = "DIG (UCI digits, dirichlet(0.5)), 4 of 4 clients with MLPs 64-50-50-10 of different initializations, one round of 20 epochs"
    where = Scenario(text, {"task": "digits_mlp:widths=100/100", "partition": "dirichlet:0.5", "clients": 4, "cohort": 4, "rounds": 1, "eval_every": 1},
                     {"epochs": 20, "batch_size": 20})
    grid = {"lr": (0.00316, 0.01, 0.0316)}
    naive, oneshot = Side("fedma", {"match_by": "place", "retrain": False}, grid), Side("fedma", {"retrain": False}, grid)
    return [Claim("fedma/naive", Side("fedma", {}, grid), naive, where, ACCURACY, Margin("plus", 20)),
            Claim("fedma/pfnm", Side("fedma", {}, grid), oneshot, where, ACCURACY, Margin("plus", 0))]


CLAIMS = (closed(), *matching())
