"""Claims of the personalization and aggregation families, with the margins of their cards."""
from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Row, Scenario, Side
from experiments.claims.scenarios import Clients, digits
from fedjax_lab import tasks
from fedjax_lab.data import population, scenario, source, sources

RATES = {"lr": (0.0316, 0.1, 0.316)}
LOCAL = {"epochs": 2, "batch_size": 20}


def _mine(rows: Sequence[Row]) -> float:
    """Accuracy on the clients' own test sets, mean over the clients: of the personal models where there are any, else of the global one."""
    last = rows[-1]
    return 100 * last.get("personal_client_test_accuracy_mean", last["client_test_accuracy_mean"])


OWN = Metric("clients' mean test accuracy, of their personal models where there are any, %", _mine, True)
GLOBAL = Metric("clients' mean test accuracy of the global model, %", lambda rows: 100 * rows[-1]["client_test_accuracy_mean"], True)


@functools.cache  # claims with the same clients share runs
def pooled(partition: str, train: int, test: int, clients: int = 20, *, by: int = 2, model: str = "mlp:widths=64/32") -> Clients:
    """MNIST, that many examples in all, pooled to 14x14 for an MLP 196-64-32-10 where nothing else is said; clients are tested by their own
    mix of labels.

    Args:
      by: pixels of a side that become one; 1 leaves the images as they are.
      model: with its options; further ones after a '+', which clients have in turn.
    """
    side, title = 28 // by, f"mnist {28 // by}x{28 // by}"

    def make():
        origin, rng = sources.load("mnist"), np.random.default_rng(8)
        sides = []
        for half, count in ((origin.train, train), (origin.test, test)):
            at = np.sort(rng.permutation(len(half["y"]))[:count])
            x = np.asarray(half["x"][at], np.float32).reshape(count, side, by, side, by, 1).mean((2, 4))
            sides.append({"x": x if x.max() <= 1 else x / 255, "y": np.asarray(half["y"][at])})
        small = source.make(title, *sides, origin.classes)
        people = scenario.build(partition, small, key=jax.random.key(0), clients=clients)
        example = {k: v[:1] for k, v in small.train.items()}
        return tasks.made(f"mnist_{model}", example, small.classes, small.manifest), people

    return make


def p20(rounds: int = 40, *, cohort: int = 20, partition: str = "dirichlet:0.1", train: int = 4000, **options) -> Scenario:
    """P20: 4,000 examples of MNIST at 20 clients, Dirichlet(0.1)."""
    text = f"P20 (MNIST 14x14, {train:,} examples, MLP 196-64-32-10, {partition}), {cohort} of 20 clients, {rounds} rounds"
    return Scenario(text, {"cohort": cohort, "rounds": rounds, "eval_every": rounds}, {**LOCAL, **options}, pooled(partition, train, 2000))


def against(name: str, points: float, over: str = "fedavg", where: Scenario | None = None, **options) -> Claim:
    """A method against another on P20 by the clients' own accuracy."""
    return Claim(f"{name}/p20" if over == "fedavg" else f"{name}/p20-{over}", Side(name, options, RATES), Side(over, {}, RATES), where or p20(), OWN,
                 Margin("plus", points))


def personal() -> list[Claim]:
    envelope = p20(60)
    envelope = envelope._replace(options={"batch_size": 20})
    moreau = Side("pfedme", {"local_steps": 10, "lam": 15.0}, {**RATES, "personal_lr": (0.025, 0.05, 0.1)})
    average = Side("fedavg", {"epochs": 2}, RATES)
    rich, poor = (p20(40, partition="pathological:2", train=n) for n in (4000, 400))
    return [
        against("fedavgft", 5, finetune_epochs=2), against("ditto", 0, lam=0.1), against("ditto", 0, "local", lam=0.1),
        against("fedper", 5), Claim("fedrep/p20-fedper", Side("fedrep", {"head_epochs": 2}, RATES), Side("fedper", {}, RATES), p20(), OWN, Margin("plus", -1)),
        against("apfl", 5),
        Claim("pfedme/p20", moreau, average, envelope, OWN, Margin("plus", 5)),
        *factors(),
        Claim("local/rich", Side("local", {}, RATES), Side("fedavg", {}, RATES), rich, OWN, Margin("plus", 0)),
        Claim("local/poor", Side("fedavg", {}, RATES), Side("local", {}, RATES), poor._replace(text=poor.text + "; the method is FedAvg here"), OWN,
              Margin("plus", 0)),
    ]


def factors() -> list[Claim]:
    start, rates = {"start": "matched"}, {"lr": (0.05, 0.1, 0.2)}
    return [
        against("pfedpara", 5, **start), against("pfedpara", -0.5, "fedper", **start),
        Claim("fedpara/low-rank", Side("fedpara", {"share": 0.0, **start}, rates), Side("fedpara", {"share": 0.0, "form": "low_rank", **start}, rates),
              p20(40, partition="iid", train=2000), ACCURACY, Margin("plus", 1)),
    ]


def chosen() -> list[Claim]:
    """What clients share of the model, and of their losses, is their own choice."""
    ten = p20(20, cohort=10, epochs=3)
    ten = ten._replace(text=ten.text.replace("20 clients", "10 clients"), clients=pooled("dirichlet:0.1", 4000, 2000, clients=10))
    select, fine = Side("fedselect", {}, RATES), {"lr": (0.00316, 0.01, 0.0316, 0.1)}
    half = p20(60, cohort=10)
    hyper, short = Side("hyperfl", {"hidden": 32, "epochs": 5}, fine), p20(30)._replace(reduced="60 rounds, CNN-S")
    return [
        Claim("fedselect/p10", select, Side("fedavg", {}, RATES), ten, OWN, Margin("plus", 5)),
        Claim("fedselect/p10-fedper", select, Side("fedper", {}, RATES), ten, OWN, Margin("plus", -0.5)),
        Claim("pgfed/p20", Side("pgfed", {}, fine), Side("fedavg", {"client_optimizer": "momentum"}, fine), half, OWN, Margin("plus", 5),
              note="It misses the margin by 0.03 points."),
        Claim("pgfed/p20-fedavgft", Side("pgfed", {}, fine), Side("fedavgft", {"client_optimizer": "momentum", "finetune_epochs": 2}, fine), half, OWN,
              Margin("plus", 0.3)),
        Claim("pfedgate/p20", Side("pfedgate", {"sparsity": (1.0,)}, RATES), Side("fedavg", {}, RATES), p20(60), OWN, Margin("plus", 0)),
        Claim("pfedgate/half", Side("pfedgate", {}, RATES), Side("pfedgate", {"sparsity": (1.0,)}, RATES), p20(60), OWN, Margin("plus", -1.5)),
        Claim("hyperfl/p20", hyper, Side("fedavg", {"epochs": 5}, fine), short, OWN, Margin("plus", 5), tuning=(100,)),
    ]


def clustered() -> list[Claim]:
    text = "C4 (MNIST 14x14, MLP 196-64-32-10, 2,000 examples at 20 clients, in four groups rotated by 0, 90, 180 and 270 degrees), 20 of 20 clients, 60 rounds"
    turned = Scenario(text, {"cohort": 20, "rounds": 60, "eval_every": 60}, {"local_steps": 10, "batch_size": "full"}, pooled("iid+rotation:4", 2000, 1000))
    return [Claim("ifca/c4", Side("ifca", {"clusters": 4}, RATES), Side("fedavg", {}, RATES), turned, OWN, Margin("plus", 5))]


def weighted() -> list[Claim]:
    skewed = Scenario("MNIST 14x14, 3,000 examples, MLP 196-64-32-10, five clients with two digits each and one with all, 6 of 6 clients, 40 rounds",
                      {"cohort": 6, "rounds": 40, "eval_every": 40}, {"epochs": 10, "batch_size": 64}, two_each(3000), reduced="CIFAR-10")
    level = digits(40, options={"epochs": 10, "batch_size": 20}, every=40)
    accuracy = Metric("final test accuracy, %", lambda rows: 100 * rows[-1]["test_accuracy"], True)
    return [Claim("feddisco/niid2", Side("feddisco", {}, RATES), Side("fedavg", {}, RATES), skewed, accuracy, Margin("plus", 1.5)),
            Claim("l-dawa/digits", Side("l-dawa", {}, RATES), Side("fedavg", {}, RATES), level, accuracy, Margin("plus", 0))]


def two_each(examples: int) -> Clients:
    """NIID-2: clients of equal size, five with two digits each that nobody else of them has, and one with all ten."""

    def make():
        task, people = pooled("iid", examples, 2000, clients=6)()
        y, rng, size = people.train.examples["y"], np.random.default_rng(9), examples // 6
        rows = [rng.permutation(np.flatnonzero((y == 2 * k) | (y == 2 * k + 1)))[:size] for k in range(5)]
        rest = np.setdiff1d(np.arange(len(y)), np.concatenate(rows))
        least = min(size, *(len(r) for r in rows))
        owners = [*(r[:least] for r in rows), rng.permutation(rest)[:least]]
        test = people.test.examples
        return task, population.from_arrays(people.train.examples["x"], y, owners, test["x"], test["y"], key=jax.random.key(0))

    return make


CLAIMS = (*personal(), *chosen(), *clustered(), *weighted())
