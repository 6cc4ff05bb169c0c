"""Claims of the family of tasks in succession, with the margins of their cards."""
from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import optax

from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Row, Scenario, Side
from experiments.claims.scenarios import Clients
from fedjax_lab import tasks
from fedjax_lab.data import population, scenario, source, sources
from fedjax_lab.local import descend, gradient
from fedjax_lab.parts import proxy

ADAM = {"lr": (0.000316, 0.001, 0.00316)}


def characters(base: int = 100, missions: int = 12, ways: int = 5, shots: int = 5) -> Clients:
    """Omniglot at 14x14: `base` characters are public; a client has `shots` drawings of each of `ways` others that nobody else has. Models
    start from 20 epochs of the public drawings. Tested on further drawings of all these characters."""

    def make():
        origin, rng = sources.load("omniglot_small:side=14"), np.random.default_rng(10)
        chosen = rng.permutation(origin.classes)[:base + missions * ways]
        name = np.full(origin.classes, -1, np.int32)
        name[chosen] = np.arange(len(chosen))
        sides = []
        for side in (origin.train, origin.test):
            y = name[side["y"]]
            sides.append({"x": side["x"][y >= 0], "y": y[y >= 0]})
        train, test = sides
        first = {c: rng.permutation(np.flatnonzero(train["y"] == c))[:shots] for c in range(base, len(chosen))}
        owners = [np.concatenate([first[base + m * ways + j] for j in range(ways)]) for m in range(missions)]
        people = population.from_arrays(train["x"], train["y"], owners, test["x"], test["y"], key=jax.random.key(0))
        public = {k: v[train["y"] < base] for k, v in train.items()}
        small = source.make("omniglot 14x14", train, test, len(chosen))
        task = tasks.build("omniglot 14x14", "mlp", {k: v[:1] for k, v in train.items()}, len(chosen), {"widths": "256/64"}, small.manifest)

        def begun(key):
            plan = proxy.epochs(key, proxy.view(public), 20, 32)
            return descend(plan, task.init(key), gradient(task), optax.adam(1e-3)).params

        return task._replace(init=begun), people._replace(public=public)

    return make


def reconnaissance() -> Claim:
    text = ("Omniglot 14x14, MLP 196-256-64-160 that has learned 100 public characters for 20 epochs, 12 clients with 5 other characters each, 5 drawings of each, "
            "one client a round, in turn, 12 rounds; tested on all 160 characters")
    where = Scenario(text, {"cohort": 1, "rounds": 12, "eval_every": 12, "participation": "cyclic"}, {"client_optimizer": "adam", "epochs": 10, "batch_size": 5},
                     characters(), reduced="28x28 and two convolutions")
    note = "the baseline does best where it hardly trains and keeps the public characters, at the smallest rates that tuning reaches"
    return Claim("fedrecon/omniglot", Side("fedrecon", {}, ADAM), Side("fedavg", {}, ADAM), where, ACCURACY, Margin("plus", 30), note=note)


def permuted(count: int = 4, examples: int = 2000, clients: int = 20, rounds: int = 8) -> Clients:
    """MNIST at 14x14 with its pixels in another order for each task, the same examples in all; "task0", "task1", .. are the accuracies on the tasks."""

    def make():
        origin, rng = sources.load("mnist"), np.random.default_rng(11)
        sides = []
        for side in (origin.train, origin.test):
            at = np.sort(rng.permutation(len(side["y"]))[:examples])
            x = np.asarray(side["x"])[at].astype(np.float32).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))
            sides.append({"x": x / 255 if x.max() > 1 else x, "y": np.asarray(side["y"])[at]})
        small = source.make("permuted mnist", *sides, origin.classes)
        people = scenario.build(f"iid+domain_incremental:permuted,groups={count},rounds={rounds}", small, key=jax.random.key(0), clients=clients)
        task = tasks.build("permuted mnist", "mlp", {k: v[:1] for k, v in people.train.examples.items()}, 10, {"widths": "100/100"}, small.manifest)

        def metrics(outputs, batch):
            values = task.metrics(outputs, batch)
            return {**values, **{f"task{t}": count * values["accuracy"] * (batch["task"] == t) for t in range(count)}}

        return task._replace(metrics=metrics), people

    return make


def _forgotten(rows: Sequence[Row]) -> float:
    """The mean over all tasks but the last of the best accuracy minus the last one."""
    tables = [[row[f"test_task{t}"] for row in rows] for t in range(sum(name.startswith("test_task") for name in rows[0]) - 1)]
    return 100 * float(np.mean([max(table) - table[-1] for table in tables]))


def orthogonal() -> list[Claim]:
    text = "permuted MNIST 14x14, 4 tasks of 2,000 images, MLP 196-100-100-10, iid, 10 of 20 clients, 8 rounds of 2 epochs a task"
    where = Scenario(text, {"cohort": 10, "rounds": 32, "eval_every": 8}, {"epochs": 2, "batch_size": 10}, permuted(), reduced="28x28")
    grid = {"lr": (0.01, 0.0316, 0.1)}
    mine, plain = {"task_rounds": 8, "head": ""}, {"weighting": "uniform"}
    fixed = [Side(name, {**options, "lr": 0.0316}, {}) for name, options in (("fot", mine), ("fedavg", plain))]  # what does not learn does not forget
    average = ACCURACY._replace(name="final test accuracy, mean over the tasks, %")
    forgotten = Metric("accuracy that was lost again, mean over the tasks but the last, %", _forgotten, False)
    return [Claim("fot/permuted", Side("fot", mine, grid), Side("fedavg", plain, grid), where, average, Margin("plus", 10)),
            Claim("fot/forgetting", *fixed, where, forgotten, Margin("times", 2))]


CLAIMS = (reconnaissance(), *orthogonal())
