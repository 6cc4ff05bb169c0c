"""What is measured: always FedAvg with one epoch, lr 0.1 and batches that divide the clients' examples where a reference is asked for.

    w1  2NN on MNIST, 100 clients of two label shards, 10 a round, B=10 (McMahan et al. 2017)
    w2  the CNN in the same setting
    w3  2NN, 1,000 iid clients of 60 examples, 100 a round, B=20
    w4  logistic regression, 10,000 iid clients of 6 examples, 1,000 a round, B=6
    w5  2NN, 10,000 clients of 100 generated examples of 784 numbers, 2,000 a round, B=20: 3.2 GB of data, for an accelerator
    digits  a small MLP on the embedded digits, 100 clients, Dirichlet(0.3), 10 a round, B=10: nothing to download
"""
from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from experiments.bench import reference
from fedjax_lab import config as configs
from fedjax_lab import run, spec

LR = 0.1
MNIST = ("w1", "w2", "w3", "w4")


class Workload(NamedTuple):
    """Who trains what. `pace` is how many rounds make a device call of about half a second on two CPU cores.

    partition: "" where the source makes its own clients.  options: of the source, NAME=VALUE joined by commas.
    """

    source: str
    model: str
    partition: str
    clients: int
    cohort: int
    batch_size: int
    pace: int
    options: str = ""


WORKLOADS = {
    "w1": Workload("mnist", "2nn", "shards:2", 100, 10, 10, 10),
    "w2": Workload("mnist", "cnn", "shards:2", 100, 10, 10, 1),
    "w3": Workload("mnist", "2nn", "iid", 1_000, 100, 20, 10),
    "w4": Workload("mnist", "logreg", "iid", 10_000, 1_000, 6, 30),
    "w5": Workload("crowd", "2nn", "", 10_000, 2_000, 20, 5, "size=100,dim=784"),
    "digits": Workload("digits", "mlp", "dirichlet:0.3", 100, 10, 10, 5),
}
PAIRS = 5  # device calls that are timed, unless --rounds says otherwise


def chosen(items: Iterable[str]) -> list[str]:
    """The workloads that --workload names, each once.

    Raises:
      ValueError: there is none of that name.
    """
    names: list[str] = []
    for name in (part.strip() for item in items for part in item.split(",")):
        if name not in (*WORKLOADS, "all"):
            raise ValueError(f"--workload={name}: unknown; valid: {spec.nearest(name, [*WORKLOADS, 'all'])}")
        names += MNIST if name == "all" else [name]
    return list(dict.fromkeys(names))


def configure(name: str, given: Mapping[str, str], npz: str | None = None) -> configs.Config:
    """The configuration of a workload.

    Args:
      given: fields of Config as text, those of no workload; rounds, and eval_every, the rounds of a device call, have defaults.
      npz: a file with x_train, y_train, x_test, y_test instead of the mnist of data_dir.

    Raises:
      ValueError: a value is not valid.
    """
    w = WORKLOADS[name]
    pace = {"eval_every": str(w.pace), "rounds": str(PAIRS * w.pace)}
    if "eval_every" in given and given["eval_every"].isdecimal():
        pace["rounds"] = str(PAIRS * int(given["eval_every"]))
    options = {"lr": LR, "epochs": 1, "batch_size": w.batch_size}
    values = {**pace, **given, "method": "fedavg", "options": options, "cohort": w.cohort, "eval_clients": 1}
    if w.source == "crowd":
        if given.get("partition_file"):
            raise ValueError(f"--partition_file={given['partition_file']}: workload {name} makes its own clients")
        task = f"crowd_{w.model}:clients={w.clients},{w.options}"
    else:
        values |= {} if given.get("partition_file") else {"partition": w.partition, "clients": w.clients}
        task = f"{w.source}_{w.model}"
    if npz is not None:
        _check(name, npz, given.get("data_dir"))
        task = f"npz_{w.model}:path={npz}"
    return configs.make({**values, "task": task})


def _check(name: str, npz: str, data_dir: str | None) -> None:
    if name not in MNIST:
        raise ValueError(f"--npz={npz}: workload {name} has its own data; valid with {', '.join(MNIST)}")
    if data_dir is not None:
        raise ValueError(f"--npz={npz}: --data_dir is given too; choose one of them")
    if not zipfile.is_zipfile(npz) or "," in npz:
        raise ValueError(f"--npz={npz}: not there, no .npz, or a comma in its name; expected one with x_train, y_train, x_test, y_test")


def kernels(model: str, shape: tuple[int, ...], classes: int) -> list[tuple[int, ...]]:
    """The kernels of a workload's model for inputs of this shape: [in, out] of dense layers, [h, w, in, out] of convolutions."""
    if model == "cnn":
        height, width, channels = shape
        return [(5, 5, channels, 32), (5, 5, 32, 64), (height // 4 * (width // 4) * 64, 512), (512, classes)]
    widths = [math.prod(shape), *{"logreg": (), "mlp": (128,), "2nn": (200, 200)}[model], classes]
    return list(itertools.pairwise(widths))


def shapes(prepared: run.Prepared) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The shape of one input, and the kernels."""
    shape = tuple(prepared.population.train.examples["x"].shape[1:])
    classes = prepared.population.counts.shape[1] or 10
    return shape, kernels(prepared.config.task.partition(":")[0].rpartition("_")[2], shape, classes)


def check_even(prepared: run.Prepared, kind: str) -> None:
    """Whether a page of code can do the same work.

    Raises:
      ValueError: not, because clients or devices are uneven.
    """
    batch, sizes = prepared.config.options["batch_size"], np.asarray(prepared.population.train.size)
    if len(set(sizes.tolist())) > 1 or sizes[0] % batch or prepared.config.cohort % prepared.simulation.plan["devices"]:
        even = ", ".join(name for name in WORKLOADS if name != "digits")
        raise ValueError(f"--{kind}: needs clients of one size that batches of {batch} divide, and a cohort that the devices divide; "
                         f"valid with {even} and their own partition")


def rival(prepared: run.Prepared, kind: str) -> reference.Setup:
    """The plain JAX program that does the same work on the same clients: the same cohort size, batches and epochs.

    Args:
      prepared: with even clients, see `check_even`.
      kind: "reference" or "plain", see `reference`.
    """
    config, train = prepared.config, prepared.population.train
    batch, sizes = config.options["batch_size"], np.asarray(train.size)
    rows = np.asarray(train.offset)[:, None] + np.arange(sizes[0])
    rows = rows if train.index is None else np.asarray(train.index)[rows]
    x, y, layers = np.asarray(train.examples["x"]), np.asarray(train.examples["y"]), shapes(prepared)[1]
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    x = x if len(layers[0]) == 4 else x.reshape(len(x), -1)
    settings = (layers, x, y.astype(np.int32), rows.astype(np.int32), config.cohort, batch, LR)
    key = jax.random.key(config.seed)
    if kind == "plain":
        return reference.looped(*settings, key)
    return reference.scanned(*settings, prepared.simulation.plan["devices"], key)
