"""Claims of the classical methods whose cards have one."""
from __future__ import annotations

from experiments.claims import scenarios
from experiments.claims.optimization import at, fine
from experiments.claims.records import ACCURACY, DISTANCE, RATES, Claim, Margin, Metric, Row, Scenario, Side, last_quarter
from experiments.claims.scenarios import mnist, quad


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
    slow = mnist(60, options={"epochs": 20, "batch_size": 10})
    slow = slow._replace(text=slow.text + ", 20 epochs, nine in ten too slow for them")
    partial = {"participation": "uniform+stragglers:0.9,steps=random,redraw=true"}
    prox = Side("fedprox", {}, {"lr": RATES, "mu": (0.001, 0.01, 0.1)}, partial)
    return [Claim("fedprox/stragglers", prox, Side("fedavg", settings={"cohort": 1}), slow, ACCURACY, Margin("plus", 3))]


def accuracy() -> list[Claim]:
    skewed = mnist(60, options={"epochs": 5, "batch_size": 10})._replace(reduced="CIF (CIFAR-10, 3-conv CNN, Dirichlet)")
    momentum = Side("fedavgm", {}, {"lr": RATES, "server_lr": (0.1, 0.316, 1.0)})
    sharp = Side("fedsam", {}, {"lr": RATES, "rho": (0.01, 0.0316, 0.1)})
    return [Claim("fedavgm/mnist", momentum, Side("fedavg"), skewed, ACCURACY, Margin("plus", 2)),
            Claim("fedsam/mnist", sharp, Side("fedavg"), skewed, ACCURACY, Margin("plus", 0.5)),
            Claim("fedcm/mnist", Side("fedcm"), Side("fedavg"), skewed, ACCURACY, Margin("plus", 2))]


def fedopt() -> list[Claim]:
    text = "sparse logistic regression, four topics of ag_news_small by 1,000 words, Dirichlet(0.3), 10 of 100 clients, 100 rounds"
    sparse = Scenario(text, {"cohort": 10, "rounds": 100, "eval_every": 10}, {"epochs": 1, "batch_size": 10}, scenarios.headlines())
    both = {"lr": RATES, "server_lr": (0.01, 0.0316, 0.1, 0.316, 1.0)}
    average = Side("fedavg", {}, both)
    return [Claim(f"{name}/headlines", Side(name, {}, both), average, sparse, ACCURACY, Margin("plus", 2)) for name in ("fedadam", "fedyogi")]


CLAIMS = [*scaffold(), *fednova(), *fedlin(), *fedvarp(), *fedprox(), *accuracy(), *fedopt()]
