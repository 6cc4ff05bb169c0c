"""Claims of the finetuning family, with the margins of their cards, on a foundation model made here: a small ViT trained on upright digits."""
from __future__ import annotations

import jax
import numpy as np

from experiments.claims.records import ACCURACY, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import Clients
from fedjax_lab import starts, tasks
from fedjax_lab.data import scenario, source, sources

RATES = {"lr": (0.001, 0.00316, 0.01)}
OPTIONS = {"epochs": 1, "batch_size": 32, "scale": 2.0, "client_optimizer": "adamw"}


def turned(partition: str = "dirichlet:0.1", *, upright: int = 10000, train: int = 2000, test: int = 2000, clients: int = 20) -> Clients:
    """TinyViT-shift: a ViT trained on upright digits of MNIST; clients have others, turned by 90 degrees and inverted."""

    def make():
        origin, rng = sources.load("mnist"), np.random.default_rng(11)
        rows, tests = rng.permutation(origin.examples)[: upright + train], rng.permutation(len(origin.test["y"]))[:test]

        def shifted(arrays, at):
            return {"x": np.ascontiguousarray(1 - np.rot90(arrays["x"][at], 1, (1, 2))), "y": np.asarray(arrays["y"][at])}

        small = source.make("mnist turned", shifted(origin.train, rows[upright:]), shifted(origin.test, tests), origin.classes)
        people = scenario.build(partition, small, key=jax.random.key(0), clients=clients)
        vit = {"patch": "7", "width": "32", "depth": "3"}
        task = tasks.build("tiny ViT", "vit", {k: v[:1] for k, v in small.train.items()}, small.classes, vit, small.manifest)
        public = {k: np.asarray(v[rows[:upright]]) for k, v in origin.train.items()}
        return starts.started("public:steps=1500,lr=0.002", task, people._replace(public=public)), people

    return make


def shift(rounds: int = 10, **settings) -> Scenario:
    """All 20 clients in every round."""
    text = ("TinyViT-shift (a ViT of width 32 and depth 3 after 1,500 steps on 10,000 upright digits of MNIST; 2,000 others, turned and inverted, "
            f"Dirichlet(0.1)), 20 of 20 clients, {rounds} rounds")
    return Scenario(text, {"cohort": 20, "rounds": rounds, "eval_every": rounds, **settings}, OPTIONS, turned(), reduced="6,000 digits, depth 4")


PRIVATE = shift(privacy="dp-fedavg:noise=0.5,clip=1")
PRIVATE = PRIVATE._replace(text=f"{PRIVATE.text}, clipped to 1, noise 0.5")
FEDIT = Side("fedit", {"rank": 8}, RATES)

CLAIMS = (
    Claim("ffalora/tinyvit", Side("ffalora", {"rank": 8}, RATES), FEDIT, shift(), ACCURACY, Margin("plus", -1)),
    Claim("ffalora/tinyvit-private", Side("ffalora", {"rank": 8}, RATES), FEDIT, PRIVATE, ACCURACY, Margin("plus", 0)),
)
