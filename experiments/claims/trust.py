"""Claims of the trust family, with the margins of their cards."""
from __future__ import annotations

import jax
import numpy as np

from experiments.claims import probes
from experiments.claims.personalization import OWN, pooled
from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Row, Scenario, Side
from fedjax_lab.config import Config

RATES = {"lr": (0.0316, 0.1, 0.316)}
NETS = {"2nn": "MLP 784-200-200-10", "lenet5": "LeNet-5"}

APART = "(5) adds a client's own change whole to the others' mean, so that models stay apart: with rewards of all entries, or a bound of 2, it stays so."


def silos(text: str, attack: str, clients: int, rounds: int, model: str, partition: str = "iid", **options) -> Scenario:
    """4,000 examples of MNIST at some silos that all take part, some of which attack where an attack is given."""
    settings = {"cohort": clients, "rounds": rounds, "eval_every": rounds, "attack": attack}
    ending = f", --attack={attack}" if attack else ""
    return Scenario(f"{text}, {clients} clients ({partition}) of MNIST, 4,000 examples, {NETS[model]}, {rounds} rounds{ending}", settings,
                    {"batch_size": 20, **options}, pooled(partition, 4000, 2000, clients, by=1, model=model))


def robust() -> list[Claim]:
    noise = silos("3 of 15 send uniform noise", "free-rider:share=0.2,sends=uniform,low=0,scale=0.2", 15, 150, "lenet5", local_steps=1)
    flag = Side("fedavg", {}, RATES, {"aggregator": "flag"})
    return [
        Claim("flag/noise", flag, Side("fedavg", {}, RATES), noise, ACCURACY, Margin("plus", 30)),
        Claim("flag/noise-median", flag, Side("fedavg", {}, RATES, {"aggregator": "median"}), noise, ACCURACY, Margin("plus", 0)),
    ]


def reputation() -> list[Claim]:
    """RFFL: free-riders are found, who has more to give gets more, and nobody else loses by it."""
    rates, law = {"lr": (0.05, 0.15, 0.45)}, "iid:sizes=powerlaw"
    settings, options = {"cohort": 7, "rounds": 30, "eval_every": 10}, {"batch_size": 32, "epochs": 2, "lr_decay": 0.977}
    text = "7 clients (power law) of MNIST 14x14, 3,000 examples, MLP 196-64-32-10, 30 rounds"
    riders = Scenario(f"2 free-riders among {text}", {**settings, "attack": "free-rider:share=0.29,sends=uniform"}, options, pooled(law, 3000, 2000, 7))
    honest = Scenario(text, {**settings, "eval_every": 30}, options, pooled(law, 3000, 2000, 7))

    def by_round_20(rows: list[Row]) -> float:
        return 100 * next(row["excluded"] for row in rows if row["round"] == 20)

    found = Metric("runs in which all free-riders are left out by round 20, %", by_round_20, True, probe=probes.excluded)
    fair = Metric("correlation of the honest clients' test accuracy with what each reaches alone", lambda rows: rows[-1]["fairness"], True,
                  probe=probes.standing)
    good = Metric("honest clients' mean test accuracy, %", lambda rows: 100 * rows[-1]["honest_accuracy"], True, probe=probes.standing)
    fixed = [Side(name, {"lr": 0.15}, {}) for name in ("rffl", "fedavg")]
    tuned = [Side(name, {}, rates) for name in ("rffl", "fedavg")]
    return [Claim("rffl/riders", *fixed, riders, found, Margin("plus", 80), seeds=(0, 1, 2, 3, 4)),
            Claim("rffl/fairness", *fixed, riders, fair, Margin("plus", 0.8)),
            Claim("rffl/accuracy", *tuned, riders, good, Margin("plus", -2)),
            Claim("rffl/honest", *tuned, honest, OWN, Margin("plus", -2), note=APART)]


def histories() -> list[Claim]:
    """MUD-HoG on flipped signs, noise and flipped labels at once."""
    attack = "sign-flip:share=0.15,scale=1+gaussian:share=0.15,std=0.01,onto=own+label-flip:share=0.15,source=1,target=7"
    mixed = silos("9 of 20 attack, a third each", attack, 20, 25, "2nn", "dirichlet:0.5", epochs=4, client_optimizer="momentum:0.9")
    mixed = mixed._replace(reduced="no unreliable clients, no weight decay")
    early = mixed._replace(settings={**mixed.settings, "eval_every": 5})

    def by_round_10(rows: list[Row]) -> float:
        return 100 * next(row["recall"] for row in rows if row["round"] == 10)

    recall = Metric("sign-flippers and noisy clients confirmed by round 10, %", by_round_10, True, probe=probes.confirmed((0, 1)))
    rates = {"lr": (0.00316, 0.01, 0.0316)}
    hog, plain = Side("mud-hog", {}, rates), Side("fedavg", {}, rates)
    fixed = [side._replace(options={"lr": 0.01}, rates={}) for side in (hog, plain)]
    return [Claim("mud-hog/mixed", hog, plain, mixed, ACCURACY, Margin("plus", 5)),
            Claim("mud-hog/krum", hog, plain._replace(settings={"aggregator": "krum:0.4"}), mixed, ACCURACY, Margin("plus", 3)),
            Claim("mud-hog/recall", *fixed, early, recall, Margin("plus", 100))]


def adversarial() -> list[Claim]:
    """FAL on inputs changed by 0.15 at most."""
    scene = silos("inputs changed by 0.15", "", 10, 25, "lenet5", "dirichlet:0.5", epochs=2)._replace(reduced="5 epochs")
    near = probes.robust(0.15)
    robust_accuracy = Metric("accuracy on changed inputs (PGD-20, 2 starts, and FGSM), %", lambda rows: 100 * rows[-1]["robust_accuracy"], True, probe=near)
    sides = Side("fal", {"rho": 0.15, "steps": 5}, RATES), Side("fedavg", {"weighting": "uniform"}, RATES)
    return [Claim("fal/robust", *sides, scene, robust_accuracy, Margin("plus", 30), tuning=(100,)),
            Claim("fal/clean", *sides, scene, ACCURACY._replace(probe=near), Margin("plus", -5), tuning=(100,))]  # of the same runs


def crowd(seed: int, parties: int, users: int, bits: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """(items, party) [parties users]: items by Zipf's law of exponent 1.2, of which this share has another's name at each party."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(1 << bits)
    weights = 1 / np.arange(1, len(codes) + 1) ** 1.2
    items = []
    for _ in range(parties):
        own, moved = codes.copy(), rng.random(len(codes)) < apart
        own[moved] = rng.permutation(codes[moved])
        items.append(rng.choice(own, users, p=weights / weights.sum()))
    return np.concatenate(items), np.repeat(np.arange(parties), users)


def found(config: Config) -> list[Row]:
    """What TAPS finds of a crowd, after one report of each user."""
    from fedjax_lab.parts.reports import taps

    items, party = crowd(config.seed, 4, 25_000, 16, 0.3)
    end = taps.taps(jax.random.key(config.seed), items, party, **config.options)
    return [{"round": 1, "f1": taps.f1(end.items, items, 10), "ncr": taps.ncr(end.items, items, 10), "bytes_up": end.bytes_up, "bytes_down": end.bytes_down}]


def hitters() -> list[Claim]:
    """TAPS against prefix trees of every party alone, and against TAP."""
    scene = Scenario("4 parties of 25,000 users, items of 16 bits by Zipf(1.2), 30 % renamed at each party, epsilon 3, the 10 most frequent",
                     {"rounds": 1}, {"k": 10, "epsilon": 3.0}, lambda: (None, None))
    metric, seeds = Metric("F1, %", lambda rows: 100 * rows[-1]["f1"], True, run=found), tuple(range(20))
    whole, alone = Side("taps", {}, {}), Side("taps", {"shared": 0, "cap": 1, "prune": False}, {})
    return [Claim("taps/pem", whole, alone, scene, metric, Margin("plus", 10), seeds),
            Claim("taps/tap", whole, Side("taps", {"prune": False}, {}), scene, metric, Margin("plus", 0), seeds)]


CLAIMS = [*robust(), *reputation(), *histories(), *adversarial(), *hitters()]
