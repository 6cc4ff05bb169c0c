"""Claims of the classical methods whose cards have one."""
from __future__ import annotations

from experiments.claims import scenarios
from experiments.claims.optimization import MORE, ONE, PRESENT, STEPS, THREE, at, fine, squares
from experiments.claims.records import ACCURACY, DISTANCE, Claim, Margin, Metric, Row, Scenario, Side, last_quarter
from experiments.claims.scenarios import digits, quad


def _wander(rows: list[Row]) -> float:
    """The variance of the late iterates, summed over the coordinates."""
    late = last_quarter(rows)
    places = [[row[name] for row in late] for name in rows[0] if name.removeprefix("test_x").isdigit()]
    means = [sum(x) / len(x) for x in places]
    return sum(sum((v - m) ** 2 for v in x) / len(x) for x, m in zip(places, means, strict=True))


def scaffold() -> list[Claim]:
    few = quad(4, 16, 400, noise=1.0)
    return [
        Claim("scaffold/card", at("scaffold", lr=0.05), at("fedavg", lr=0.05), few, DISTANCE, Margin("times", 100)),
        Claim("scaffold/quad", fine("scaffold"), fine("fedavg"), few, DISTANCE, Margin("times", 100)),
    ]


def fednova() -> list[Claim]:
    text = "QUAD with minima N(0, I), all 20 clients, K_i ~ U{1..29} local steps, no noise, 400 rounds"
    uneven = Scenario(text, {"cohort": 20, "rounds": 400, "eval_every": 10}, {"batch_size": 1, "weighting": "uniform"},
                      scenarios.bowls(spread=1.0, steps=(1, 29)))
    return [Claim("fednova/card", at("fednova", lr=0.02), at("fedavg", lr=0.02), uneven, DISTANCE, Margin("times", 3)),
            Claim("fednova/quad", fine("fednova"), fine("fedavg"), uneven, DISTANCE, Margin("times", 3))]


def fedlin() -> list[Claim]:
    text = "QUAD with minima N(0, I), all 20 clients, K_i ~ U{1..29} local steps, no noise, 200 rounds"
    uneven = Scenario(text, {"cohort": 20, "rounds": 200, "eval_every": 10}, {"batch_size": 1}, scenarios.bowls(spread=1.0, steps=(1, 29)))
    average = Side("fedavg", {"weighting": "uniform"})
    return [Claim("fedlin/quad", at("fedlin", lr=0.3), average, uneven, DISTANCE, Margin("times", 1e6))]


def fedvarp() -> list[Claim]:
    few = quad(4, 4, 400)
    few = few._replace(settings={**few.settings, "eval_every": 5})
    return [Claim("fedvarp/card", at("fedvarp", lr=0.02), at("fedavg", lr=0.02), few, Metric("variance of the late iterates", _wander, False),
                  Margin("times", 100))]


def fedprox() -> list[Claim]:
    slow = digits(30, cohort=10, options={"epochs": 20, "batch_size": 10})
    slow = slow._replace(text=slow.text + ", 20 epochs, nine in ten too slow for them", reduced="MN (MNIST, 100 clients)")
    partial = {"participation": "uniform+stragglers:0.9,steps=random,redraw=true"}
    prox = Side("fedprox", {}, {**THREE, "mu": (0.001, 0.01, 0.1)}, partial)
    return [Claim("fedprox/stragglers", prox, Side("fedavg", {}, THREE, {"cohort": 1}), slow, ACCURACY, Margin("plus", 3), MORE, ONE)]


def sampled() -> list[Claim]:
    """Two of 20 clients with few digits each."""
    skewed = digits(100, cohort=2, options=STEPS)._replace(reduced="CIF (CIFAR-10, 3-conv CNN)")

    def claim(name: str, over: str, points: float, **rates: tuple[float, ...]) -> Claim:
        return Claim(f"{name}/digits", Side(name, {}, {**THREE, **rates}), Side(over, {}, THREE), skewed, ACCURACY, Margin("plus", points), MORE)

    return [claim("fedavgm", "fedavg", 2, server_lr=(0.1, 0.316, 1.0)), claim("fedsam", "fedavg", 0.5, rho=(0.01, 0.0316, 0.1)),
            claim("fedcm", "fedavg", 2), claim("fedgamma", "scaffold", 0.5), claim("fedsmoo", "fedspeed", 0.5)]


def fedopt() -> list[Claim]:
    text = "sparse logistic regression, four topics of ag_news_small by 1,000 words, Dirichlet(0.3), 10 of 100 clients, 100 rounds"
    sparse = Scenario(text, {"cohort": 10, "rounds": 100, "eval_every": 10}, {"epochs": 1, "batch_size": 10}, scenarios.headlines())
    both = {"lr": (1.0, 10.0, 100.0), "server_lr": (0.0316, 0.1, 0.316)}
    average = Side("fedavg", {}, both)
    return [Claim(f"{name}/headlines", Side(name, {}, both), average, sparse, ACCURACY, Margin("plus", 2))
            for name in ("fedadagrad", "fedyogi", "fedadam")]


def exact() -> list[Claim]:
    still = quad(4, 16, 400)
    average = at("fedavg", lr=0.05)
    return [Claim("feddyn/quad", at("feddyn", lr=0.05, lam=1.0), average, still, DISTANCE, Margin("times", 1e6)),
            Claim("feddc/quad", at("feddc", lr=0.05, alpha=1.0), average, still, DISTANCE, Margin("times", 1e6)),
            Claim("mime/quad", at("mime", lr=0.05, base="sgd"), average, quad(20, 16, 400), DISTANCE, Margin("times", 1e6))]


def fedau() -> list[Claim]:
    text = "24 unit bowls, minima 1 apart from 0 on either side, odd clients there with q=0.1, noise 0.5, 5 local steps, 600 rounds"
    rare = Scenario(text, {"participation": PRESENT, "cohort": 24, "rounds": 600, "eval_every": 5}, {"local_steps": 5, "batch_size": 1},
                    scenarios.opposed(apart=1.0))
    return [Claim("fedau/apart", at("fedau", lr=0.05), at("fedavg", lr=0.05), rare, DISTANCE, Margin("times", 2))]


def reduced_variance() -> list[Claim]:
    average = at("fedavg", lr=0.05)
    return [Claim(f"{name}/squares", at(name, lr=0.05), average, squares(), DISTANCE, Margin("times", 100)) for name in ("fedpage", "bvr-l-sgd")]


CLAIMS = [*fedprox(), *scaffold(), *fednova(), *exact(), *sampled(), *fedopt(), *fedvarp(), *fedlin(), *fedau(), *reduced_variance()]
