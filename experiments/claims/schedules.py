"""Claims of the schedules family: asynchronous methods against others at equal virtual time."""
from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from experiments.claims.personalization import RATES, pooled
from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Row, Scenario, Side
from experiments.claims.scenarios import Clients
from fedjax_lab.data import population

PACE = "linear:80"
TWO_SPEEDS = "geometric:" + "/".join(["0.5"] * 4 + ["0.0625"] * 36)
SPEEDS = np.maximum(np.random.default_rng(0).exponential(1, 8), 0.1).round(3)  # seconds a step, of eight silos
SILOS = "steps:" + "/".join(map(str, SPEEDS))


def time_to(target: float) -> Metric:
    """Virtual time until the curve, made monotone and interpolated between evaluations, reaches the target; infinite where it never does."""

    def value(rows: Sequence[Row]) -> float:
        before = rows[0]
        for row in rows[1:]:
            if row["test_accuracy"] >= target:
                share = (target - before["test_accuracy"]) / (row["test_accuracy"] - before["test_accuracy"])
                return before["time"] + share * (row["time"] - before["time"])
            before = row if row["test_accuracy"] >= before["test_accuracy"] else {**before, "time": row["time"]}
        return math.inf

    return Metric(f"virtual time to {target:.0%} test accuracy", value, higher=False)


def unrest(rows: Sequence[Row]) -> float:
    """Deviation of the test loss over the last fifth of the virtual time."""
    return float(np.std([row["test_loss"] for row in rows if row["time"] > 0.8 * rows[-1]["time"]]))


NOTE = ("On the tuning seeds FedFix is better at every rate up to 1, by 1.2 to 1.6 times; the rate chosen, 1, is far above the card's grid (at most 0.05).")
SMALL = ("With the card's first controls alpha is 1 / (1 + sqrt(t (t - o + 1))), 0.04 for a fresh model at update 600, where FedAsync mixes in "
         "0.6 / sqrt(t - o + 1). On seed 0 at lr=0.316 FedASMU reaches 90 % after 57.1 with the card's lam=1, 44.1 with lam=4 and 33.0 with lam=10, "
         "FedAsync after 30.9; without what it takes over in mid-training (gamma=0) it is 57.1 too.")
LOSS = Metric("test loss at a quarter of the time", lambda rows: rows[-1]["test_loss"], higher=False)
UNREST = Metric("deviation of the test loss over the last fifth of the time", unrest, higher=False)


def fixed() -> list[Claim]:
    """FedFix on F-80 at T = 25, a quarter of the card's 100; and its Async, which makes about 40 updates in a unit of time."""

    def where(time: int, every: int) -> Scenario:
        return Scenario(f"MNIST 14x14, 5,000 examples at 20 clients, MLP 196-64-32-10, dirichlet:0.1, delays F-80, up to virtual time {time}",
                        {"cohort": 20, "rounds": 2 * time, "eval_every": every, "eval_clients": 1}, {"local_steps": 10, "batch_size": 64},
                        pooled("dirichlet:0.1", 5000, 2000))

    ticks = {"schedule": f"ticks:0.5,law={PACE}"}
    average = Side("fedavg", {}, RATES, {"schedule": f"ticks:1,law={PACE}", "allow_untested": True, "rounds": 25, "eval_every": 25})
    one_by_one = Side("fedfix", {}, RATES, {"schedule": f"buffered:1,law={PACE}", "rounds": 1000, "eval_every": 20})
    return [Claim("fedfix/f80", Side("fedfix", {}, RATES, ticks), average, where(25, 50), LOSS, Margin("times", 1.11), note=NOTE),
            Claim("fedfix/f80-async", Side("fedfix", {}, RATES, ticks), one_by_one, where(25, 1), UNREST, Margin("times", 1.43))]


def two_speeds() -> Clients:
    """40 clients of equal size with two digits each, of which the first four have digits of 0 to 4 only."""

    def make():
        task, people = pooled("iid", 5000, 2000, clients=40)()
        left = [np.flatnonzero(people.train.examples["y"] == digit).tolist() for digit in range(10)]
        kinds = [(0, 1), (2, 3), (4, 0), (1, 2), *((j % 10, (j + 1 + j // 10) % 10) for j in range(36))]
        owners = [[left[digit].pop() for digit in kind for _ in range(50)] for kind in kinds]
        test = people.test.examples
        return task, population.from_arrays(people.train.examples["x"], people.train.examples["y"], owners, test["x"], test["y"], key=jax.random.key(0))

    return make


def polled() -> list[Claim]:
    where = Scenario("MNIST 14x14, 40 clients of 100 examples with two digits each, the four fast ones with digits of 0 to 4 only, MLP 196-64-32-10, "
                     "steps of geometric time (1/2 and 1/16), up to virtual time 2,800", {"cohort": 8, "rounds": 400, "eval_every": 400, "eval_clients": 1},
                     {"local_steps": 20, "batch_size": 20}, two_speeds(), reduced="a horizon of 5,000")
    buffer = {"schedule": f"buffered:10,law={TWO_SPEEDS}", "cohort": 40, "rounds": 60, "eval_every": 60}
    return [Claim("favano/two-speeds", Side("favano", {}, RATES, {"schedule": f"polling:7,law={TWO_SPEEDS}"}),
                  Side("fedbuff", {"server_lr": 1.0, "beta": 0.0}, RATES, buffer), where, ACCURACY, Margin("plus", 3))]


def grouped() -> list[Claim]:
    where = Scenario("MNIST 14x14, 5,000 examples at 8 silos of exponential seconds a step, at least 0.1, MLP 196-64-32-10, pathological:4, up to virtual "
                     "time 1,300 or more", {"cohort": 8, "rounds": 160, "eval_every": 2, "eval_clients": 1},
                     {"local_steps": 50, "batch_size": 64, "client_optimizer": "sgd"}, pooled("pathological:4", 5000, 2000, 8))
    compass = Side("fedcompass", {}, RATES, {"schedule": f"compass:{SILOS}", "rounds": 400, "eval_every": 4})
    buffer = Side("fedbuff", {"server_lr": 1.0, "beta": 0.0}, RATES, {"schedule": f"buffered:3,law={SILOS}"})
    average = Side("fedavg", {}, RATES, {"schedule": f"buffered:8,law={SILOS}", "allow_untested": True, "rounds": 25, "eval_every": 1})
    return [Claim("fedcompass/silos", compass, average, where, time_to(0.9), Margin("times", 1.43)),
            Claim("fedcompass/silos-fedbuff", compass, buffer, where, time_to(0.9), Margin("times", 1.11))]


def learned() -> list[Claim]:
    """Both under one schedule, in which FedASMU alone pays for its second download."""
    where = Scenario("MNIST 14x14, 6,000 examples at 30 clients, MLP 196-64-32-10, dirichlet:0.3, half-normal times, 5 clients 8 times as slow, 3 started every "
                     "0.3, 1,200 uploads", {"cohort": 3, "rounds": 1200, "eval_every": 10, "eval_clients": 1}, {"local_steps": 10, "batch_size": 20},
                     pooled("dirichlet:0.3", 6000, 2000, 30), reduced="a CNN")
    pace = "triggered:0.3,law=halfnormal+stragglers:0.17/8"
    return [Claim("fedasmu/stragglers", Side("fedasmu", {}, RATES, {"schedule": f"{pace},latency=0.05"}),
                  Side("fedasync", {}, RATES, {"schedule": pace, "allow_untested": True}), where, time_to(0.9), Margin("times", 1.11), note=SMALL)]


CLAIMS = (*fixed(), *polled(), *grouped(), *learned())
