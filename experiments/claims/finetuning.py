"""Claims of the finetuning family, with the margins of their cards, on a foundation model made here: a small ViT trained on upright digits."""
from __future__ import annotations

import functools

import jax
import numpy as np

from experiments.claims.records import ACCURACY, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import Clients
from fedjax_lab import starts, tasks
from fedjax_lab.data import scenario, source, sources

RATES = {"lr": (0.001, 0.00316, 0.01)}
OPTIONS = {"epochs": 1, "batch_size": 32, "client_optimizer": "adamw"}


@functools.cache  # claims with the same clients share runs
def turned(partition: str = "dirichlet:0.1", *, upright: int = 10000, train: int = 6000, test: int = 2000, clients: int = 20,
           width: int = 32, depth: int = 3) -> Clients:
    """TinyViT-shift: a ViT trained on upright digits of MNIST; clients have others, turned by 90 degrees and inverted."""

    def make():
        origin, rng = sources.load("mnist"), np.random.default_rng(11)
        rows, tests = rng.permutation(origin.examples)[: upright + train], rng.permutation(len(origin.test["y"]))[:test]

        def shifted(arrays, at):
            return {"x": np.ascontiguousarray(1 - np.rot90(arrays["x"][at], 1, (1, 2))), "y": np.asarray(arrays["y"][at])}

        small = source.make("mnist turned", shifted(origin.train, rows[upright:]), shifted(origin.test, tests), origin.classes)
        people = scenario.build(partition, small, key=jax.random.key(0), clients=clients)
        vit = {"patch": "7", "width": str(width), "depth": str(depth)}
        task = tasks.build("tiny ViT", "vit", {k: v[:1] for k, v in small.train.items()}, small.classes, vit, small.manifest)
        public = {k: np.asarray(v[rows[:upright]]) for k, v in origin.train.items()}
        return starts.started("public:steps=1500,lr=0.002", task, people._replace(public=public)), people

    return make


def shift(cohort: int = 5, rounds: int = 30, **settings) -> Scenario:
    text = ("TinyViT-shift (a ViT of width 32 and depth 3 after 1,500 steps on 10,000 upright digits of MNIST; 6,000 others, turned and inverted, "
            f"Dirichlet(0.1)), {cohort} of 20 clients, {rounds} rounds")
    return Scenario(text, {"cohort": cohort, "rounds": rounds, "eval_every": rounds, **settings}, OPTIONS, turned(), reduced="width 48, depth 4")


WHOLE = shift(20, 10)
PRIVATE = shift(privacy="dp-fedavg:noise=0.5,clip=1")
PRIVATE = PRIVATE._replace(text=f"{PRIVATE.text}, clipped to 1, noise 0.5")
FEDIT, FFALORA = Side("fedit", {"ranks": (8,), "scale": 2.0}, RATES), Side("ffalora", {"rank": 8, "scale": 2.0}, RATES)
RANKS = tuple(Side(name, {"ranks": (16, 8, 4, 2), "scale": 2.0}, RATES) for name in ("flora", "fedit"))  # FedIT fills up with zeros
ALIKE = shift()
ALIKE = ALIKE._replace(reduced=f"{ALIKE.reduced}; the card of FedIT has no experiment, this is FFA-LoRA's margin")


def tuned(name: str, method: Side, baseline: Side, points: float, where: Scenario | None = None) -> Claim:
    return Claim(name, method, baseline, where or shift(), ACCURACY, Margin("plus", points), tuning=(100,))


CLAIMS = (
    tuned("fedit/tinyvit", FEDIT, Side("fedavg", {}, RATES), -1, ALIKE),
    tuned("ffalora/tinyvit", FFALORA, FEDIT, -1),
    tuned("ffalora/tinyvit-private", FFALORA, FEDIT, 0, PRIVATE),
    tuned("flora/tinyvit", Side("flora", {"ranks": (8,), "scale": 2.0}, RATES), FEDIT, 0.5, WHOLE),
    tuned("flora/tinyvit-ranks", *RANKS, 1, WHOLE),
)
