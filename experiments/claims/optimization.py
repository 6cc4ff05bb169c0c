"""Claims of the optimization family, with the margins of its cards."""
from __future__ import annotations

import math

from experiments.claims import probes, scenarios
from experiments.claims.records import (
    ACCURACY,
    DISTANCE,
    FINE,
    Claim,
    Margin,
    Metric,
    Row,
    Scenario,
    Side,
    late,
    rounds_to,
)
from experiments.claims.scenarios import digits, mnist, quad

MORE = (0, 1, 2, 3, 4)  # seeds, where few test examples make accuracies coarse
ONE = (100,)  # tuning seed, where a run is long and rates are far apart
THRICE = (100, 101, 102)  # tuning seeds, where rates are close
THREE = {"lr": (0.0316, 0.1, 0.316)}
STEPS = {"local_steps": 16, "batch_size": 10}
PRESENT = "bernoulli:q=1/0.1"  # even clients always, odd ones in a tenth of the rounds
SCALES = (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)
EPOCHS = {"epochs": 5, "batch_size": 10}


def at(method: str, **options) -> Side:
    """A side with its rates given, as on the card."""
    return Side(method, options, {})


def fine(method: str, **options) -> Side:
    """A side whose rate is chosen for bowls."""
    return Side(method, options, {"lr": FINE})


def fedavg() -> list[Claim]:
    def claim(partition: str, margin: float, rounds: int, most: int, every: int) -> Claim:
        averaged = Side("fedavg", EPOCHS, THREE, {"rounds": rounds, "eval_every": every})
        return Claim(f"fedavg/{partition.partition(':')[0]}", averaged, Side("fedsgd", {}, THREE), mnist(most, partition=partition, every=5),
                     rounds_to(0.9), Margin("times", margin), tuning=ONE)

    return [claim("iid", 5, 30, 200, 1), claim("shards:2", 1.5, 150, 400, 5)]


def momentum() -> list[Claim]:
    full, few = quad(20, 16, 400, noise=1.0), quad(4, 16, 400, noise=1.0)
    small_full, small_few = (quad(cohort, 8, 250, noise=3.0) for cohort in (20, 4))
    opened = quad(20, 8, 250, noise=3.0, rows=160)  # N K of them, since little of the first gradients is forgotten where beta is small
    rate, small = {"lr": 0.05}, {"lr": 0.005, "server_lr": 0.4}
    steps = {"lr": (0.001, 0.00316, 0.01, 0.0316, 0.1), "server_lr": (0.1, 0.2, 0.4, 0.8, 1.6)}
    server = {"server_lr": (0.0125, 0.025, 0.05, 0.1, 0.2), "beta": (0.01, 0.0316, 0.1)}
    both = {"lr": (0.001, 0.01, 0.1), **server}
    accurate = digits(50, options=STEPS)
    sampled = digits(200, cohort=4, options=STEPS, every=2)
    return [
        Claim("fedavg-m/card", at("fedavg-m", **rate), at("fedavg", **rate), full, DISTANCE, Margin("times", 10)),
        Claim("fedavg-m/quad", fine("fedavg-m"), fine("fedavg"), full, DISTANCE, Margin("times", 10),
              note="At a rate chosen for it FedAvg hardly drifts; what is left of FedAvg-M's error is the noise of the "
                   "gradients, which momentum does not lessen."),
        Claim("fedavg-m/digits", Side("fedavg-m"), Side("fedavg"), accurate, ACCURACY, Margin("plus", 2),
              note="Both are near 97% after 50 rounds; FedAvg-M is there sooner (4 points ahead after 10 rounds, on the tuning seeds)."),
        Claim("scaffold-m/card", at("scaffold-m", **rate), at("scaffold", **rate), few, DISTANCE, Margin("times", 1.15)),
        Claim("scaffold-m/card-full", at("scaffold-m", **rate), at("scaffold", **rate), full, DISTANCE, Margin("times", 1.15)),
        Claim("scaffold-m/quad", fine("scaffold-m"), fine("scaffold"), few, DISTANCE, Margin("times", 1.15),
              note="At so small a rate what is left on both sides is the noise of the gradients, which momentum does not lessen; it does at "
                   "larger rates, as in card and card-full."),
        Claim("scaffold-m/digits", Side("scaffold-m"), Side("scaffold"), sampled, rounds_to(0.85), Margin("times", 1)),
        Claim("fedavg-m-vr/card", at("fedavg-m-vr", **small), at("fedavg-m", **small), small_full, DISTANCE, Margin("times", 2)),
        Claim("fedavg-m-vr/quad", Side("fedavg-m-vr", {"lr": 0.0005}, server), Side("fedavg-m", {}, both), opened, DISTANCE,
              Margin("times", 2), tuning=THRICE,
              note="The method's drift is not damped, so its lr is fixed and small, the smaller the better; beta is chosen with the rates, "
                   "since it says over how many rounds noise is averaged."),
        Claim("scaffold-m-vr/card", at("scaffold-m-vr", **small), at("scaffold-m", **small), small_few, DISTANCE, Margin("times", 4)),
        Claim("scaffold-m-vr/card-large", at("scaffold-m-vr", **rate), at("scaffold-m", **rate), few, DISTANCE, Margin("times", 4)),
        Claim("scaffold-m-vr/quad", Side("scaffold-m-vr", {}, steps), Side("scaffold-m", {}, steps), small_few, DISTANCE, Margin("times", 4),
              note="SCAFFOLD-M takes a step so small that it averages the noise over as many rounds as the recursion does with beta 0.1; the "
                   "method is ahead at the card's larger steps, as in card and card-large."),
    ]


def delta_sgd() -> list[Claim]:
    text = "linear regression d=20 without noise, 10 clients of input variances 10^U(-2, 2), all of them, 10 local steps, 150 rounds"
    settings = {"cohort": 10, "rounds": 150, "eval_every": 10}
    scaled = Scenario(text, settings, {"local_steps": 10, "batch_size": "full"},
                      scenarios.least_squares(clients=10, dim=20, size=40, client_scale=2.0))
    tuned = Side("delta-sgd", {}, {})
    return [
        Claim("delta-sgd/scales-small", tuned, at("fedavg", lr=1e-4), scaled, DISTANCE, Margin("times", 1e4)),
        Claim("delta-sgd/scales-large", tuned, at("fedavg", lr=0.1), scaled, DISTANCE, Margin("times", 1e4)),
        Claim("delta-sgd/scales-tuned", tuned, Side("fedavg", {}, {"lr": SCALES}), scaled, DISTANCE, Margin("times", 1e4)),
        Claim("delta-sgd/digits", tuned, Side("fedavg"), digits(50, options={"epochs": 1, "batch_size": 10}), ACCURACY, Margin("plus", -1)),
        Claim("delta-sgd/mnist", tuned, Side("fedavg"), mnist(100, options={"epochs": 1, "batch_size": 10}), ACCURACY, Margin("plus", -1)),
    ]


def savic() -> list[Claim]:
    text = "least squares without noise, feature scales exp(-3.5 .. 3.5), 8 clients of 40 examples, 8 local steps of batch 4, 100 rounds"
    scaled = Scenario(text, {"cohort": 8, "rounds": 100, "eval_every": 5}, {"local_steps": 8, "batch_size": 4},
                      scenarios.least_squares(clients=8, dim=10, size=40, feature_scale=3.5))
    loss = Metric("final loss over the first", lambda rows: rows[-1]["test_loss"] / rows[0]["test_loss"], False)
    oasis = Side("savic", {"rule": "oasis"})
    mixed = digits(40, partition="dirichlet:0.3", options=STEPS)._replace(reduced="CIF (CIFAR-10, 3-conv CNN)")
    adam, own = Side("savic", {}, THREE), Side("savic", {"scaling": "local"}, THREE)
    return [
        Claim("savic/scales", oasis, Side("fedavg"), scaled, loss, Margin("times", 1000), tuning=(100, 101, 102, 103, 104)),
        Claim("savic/digits", adam, Side("fedavg", {}, THREE), mixed, ACCURACY, Margin("plus", 1), MORE),
        Claim("savic/global", adam, own, mixed, ACCURACY, Margin("plus", 0), MORE),
    ]


def fedspeed() -> list[Claim]:
    many = mnist(40, options=EPOCHS)._replace(reduced="CIF (CIFAR-10, 3-conv CNN, Dirichlet(0.3), 10 of 50 clients), 60 rounds")
    speed, dyn = Side("fedspeed", {}, THREE), Side("feddyn", {}, THREE)
    exact = {"lr": 0.05, "lam": 0.1}
    return [
        Claim("fedspeed/quad", at("fedspeed", rho=0.1, **exact), at("fedavg", lr=0.05), quad(4, 16, 400), DISTANCE, Margin("times", 1000),
              note="Not yet at its limit: in NumPy 400 rounds with lam 0.1 leave 0.25, 2,000 rounds or lam 1 leave 0.0005, rho's bias."),
        Claim("fedspeed/fedavg", speed, Side("fedavg", {}, THREE), many, ACCURACY, Margin("plus", 2), tuning=ONE,
              note="The direction shows in every seed; FedAvg is at 91% here and at 77% in the table that the margin is taken from."),
        Claim("fedspeed/feddyn", speed, dyn, many, ACCURACY, Margin("plus", 0.5), tuning=ONE),
    ]


def fedstale() -> list[Claim]:
    q = (1.0, 0.1)

    def bowls(apart: float) -> Scenario:
        text = f"24 unit bowls, minima {apart:g} apart from 0 on either side, odd clients there with q=0.1, noise 0.5, 5 local steps, 600 rounds"
        return Scenario(text, {"participation": PRESENT, "cohort": 24, "rounds": 600, "eval_every": 5}, {"local_steps": 5, "batch_size": 1},
                        scenarios.opposed(apart=apart))

    def stale(beta: float) -> Side:
        return at("fedstale", beta=beta, lr=0.05, q=q)

    text = "DIG (UCI digits, MLP 64-64-10), 24 clients, odd ones name five digits otherwise and are there with q=0.1, 400 rounds"
    named = Scenario(text, {"participation": PRESENT, "cohort": 24, "rounds": 400, "eval_every": 10}, {"epochs": 1, "batch_size": 10},
                     scenarios.swapped())
    loss = late("test_loss", "late test loss on both kinds of clients")
    half = Side("fedstale", {"beta": 0.5, "q": q})
    return [
        Claim("fedstale/alike", stale(0.0), stale(1.0), bowls(0.0), DISTANCE, Margin("times", 1.2)),
        Claim("fedstale/near-0", stale(0.5), stale(0.0), bowls(0.2), DISTANCE, Margin("times", 1.1)),
        Claim("fedstale/near-1", stale(0.5), stale(1.0), bowls(0.2), DISTANCE, Margin("times", 1.1)),
        Claim("fedstale/apart-0", stale(1.0), stale(0.0), bowls(1.0), DISTANCE, Margin("times", 3)),
        Claim("fedstale/apart-half", stale(1.0), stale(0.5), bowls(1.0), DISTANCE, Margin("times", 1.5)),
        Claim("fedstale/digits", half, Side("fedstale", {"beta": 0.0, "q": q}), named, loss, Margin("times", 1)),
    ]


def squares() -> Scenario:
    """Least squares where clients have minima of their own."""
    text = "heterogeneous least squares, 10 features, 40 examples each, w_k 2 N(0, I) apart, 10 of 20 clients, 5 local steps of batch 4, 300 rounds"
    return Scenario(text, {"cohort": 10, "rounds": 300, "eval_every": 10}, {"local_steps": 5, "batch_size": 4},
                    scenarios.least_squares(clients=20, dim=10, size=40, spread=2.0, noise=0.1))


def fedamd() -> list[Claim]:
    skewed = mnist(100, options={"local_steps": 10, "batch_size": 20})
    return [
        Claim("fedamd/card", at("fedamd", p=0.2, lr=0.05), at("fedavg", lr=0.05), squares(), DISTANCE, Margin("times", 1000)),
        Claim("fedamd/card-sequential", at("fedamd", p="sequential", lr=0.05), at("fedavg", lr=0.05), squares(), DISTANCE, Margin("times", 1e6)),
        Claim("fedamd/squares", Side("fedamd"), Side("fedavg"), squares(), DISTANCE, Margin("times", 1000)),
        Claim("fedamd/mnist", Side("fedamd"), Side("fedavg"), skewed, ACCURACY, Margin("plus", 2)),
    ]


def _decibels(rows: list[Row]) -> float:
    last = rows[-1]
    return 10 * math.log10(last.get("personal_client_test_loss_mean", last["test_loss"]))


def rerce_fed() -> list[Claim]:
    deviation = Metric("mean squared deviation of the clients' models, of the server's where they have none, dB", _decibels, False)
    few, continual = (at(name, weight=1e4, rho=1.0) for name in ("rerce-fed", "rerce-fed-clu"))
    admm = at("consensus-admm", solve="exact", average="sampled", weighting="examples", rho=1 / (2e4 * 14.5))

    def noisy(variance: str) -> Scenario:
        text = f"least squares, 32 features, 4 of 20 clients of 10 to 19 examples, noise of variance {variance} on every link, 400 rounds"
        links = {"wire_up": f"awgn:{variance}", "wire_down": f"awgn:{variance}"}
        return Scenario(text, {"cohort": 4, "rounds": 400, "eval_every": 10, **links}, {}, scenarios.underdetermined(), double=True,
                        reduced="128 features, 100 clients, 500 rounds")

    claims = [(f"/{name}", noisy(v)) for name, v in (("quiet", "6.25e-4"), ("loud", "1e-2"))]
    return [Claim(f"rerce-fed-clu{name}", continual, few, s, deviation, Margin("plus", 3)) for name, s in claims] + [
        Claim(f"rerce-fed{name}", few, admm, s, deviation, Margin("plus", 10)) for name, s in claims]


def fedlex() -> list[Claim]:
    skewed = mnist(40, options=EPOCHS, every=1)._replace(reduced="an exploration of up to 150 epochs; here 30")
    side, average = Side("fedlex", {"cap": 30}, THREE), Side("fedavg", {}, THREE)
    return [
        Claim("fedlex/rounds", side, average, skewed, rounds_to(0.8), Margin("times", 1), tuning=ONE),
        Claim("fedlex/final", side, average, skewed, ACCURACY, Margin("plus", 0.5), tuning=ONE,
              note="The mask costs it: on the tuning seed, with lr=0.1 and server_lr=0.1, it ends at 72% with guidance and at 88% with "
                   "mask_on=nothing; why is not known. The paper trains with Adam, the row with plain SGD, as on the card."),
    ]


def fedbr() -> list[Claim]:
    turned = digits(60, partition="dirichlet:0.1+rotation:4", options={"local_steps": 20, "batch_size": 10})
    return [
        Claim("fedbr/both", Side("fedbr"), Side("fedavg"), turned, ACCURACY, Margin("plus", 1.5), MORE,
              note="Ahead in four of five seeds at the same rate; the margin is what the card expects, not what it measured."),
        Claim("fedbr/uncertain", Side("fedbr", {"mu": 0.0}), Side("fedavg"), turned, ACCURACY, Margin("plus", 0.5), MORE),
    ]


def _mean_agreement(rows: list[Row]) -> float:
    return math.fsum(row["head_agreement"] for row in rows[1:]) / (len(rows) - 1)


def fedimpro() -> list[Claim]:
    deep = digits(60, clients=10, cohort=5, options={"epochs": 1, "batch_size": 10})
    deep = deep._replace(text=deep.text.replace("64-64-10", "64-64-64-10"), settings={**deep.settings, "task": "digits_mlp:widths=64/64"})
    sparse = deep._replace(settings={**deep.settings, "eval_every": 10})
    alike = Metric("mean cosine of the clients' changes of the head", _mean_agreement, True, probe=probes.head_agreement)
    drawn = Side("fedimpro", {"ramp": 30.0})
    tuned = {"lr": 0.1}
    return [
        Claim("fedimpro/digits", drawn, Side("fedavg"), deep, ACCURACY, Margin("plus", 1), MORE),
        Claim("fedimpro/heads", at("fedimpro", ramp=30.0, **tuned), at("fedavg", **tuned), sparse, alike, Margin("plus", 0.05)),
    ]


CLAIMS = [*fedavg(), *momentum(), *delta_sgd(), *savic(), *fedspeed(), *fedstale(), *fedamd(), *rerce_fed(), *fedlex(), *fedbr(), *fedimpro()]
