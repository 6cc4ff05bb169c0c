"""Times rounds of FedAvg on fixed workloads: python -m experiments.bench --workload=w1 --npz=mnist.npz

One JSON object per workload on the standard output, and nothing else there. The program is compiled without the cache of earlier
processes. A device call trains --eval_every rounds and ends in an evaluation; its time less that of a call without rounds, divided by
its rounds, is the time of each of its rounds, and seconds_per_round is the median over the timed rounds. Several workloads run in a
process each, so that none inherits the memory of another.

    w1  2NN on MNIST, 100 clients of two label shards, 10 a round, E=1, B=10, lr 0.1 (McMahan et al. 2017)
    w2  the CNN in the same setting
    w3  2NN, 1,000 iid clients of 60 examples, 100 a round, E=1, B=20
    w4  logistic regression, 10,000 iid clients of 6 examples, 1,000 a round, E=1, B=6
    digits  a small MLP on the embedded digits, 100 clients, Dirichlet(0.3), 10 a round, E=1, B=10: nothing to download
"""
from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from experiments import screen
from fedjax_lab import config as configs
from fedjax_lab import run, spec, workdir
from fedjax_lab.types import State

FLAGS = flags.FLAGS
CONFIG = ("partition_file", "rounds", "eval_every", "seed", "chunk", "devices", "lanes", "precision", "data_dir", "cache_dir")
DEFAULTS = {"rounds": "20", "eval_every": "5"}


class Workload(NamedTuple):
    """What is trained on whom; always FedAvg with one epoch and lr 0.1."""

    source: str
    model: str
    partition: str
    clients: int
    cohort: int
    batch_size: int


WORKLOADS = {
    "w1": Workload("mnist", "2nn", "shards:2", 100, 10, 10),
    "w2": Workload("mnist", "cnn", "shards:2", 100, 10, 10),
    "w3": Workload("mnist", "2nn", "iid", 1_000, 100, 20),
    "w4": Workload("mnist", "logreg", "iid", 10_000, 1_000, 6),
    "digits": Workload("digits", "mlp", "dirichlet:0.3", 100, 10, 10),
}


def define() -> None:
    """The flags: what to time, where its data is, and the fields of Config that do not belong to a workload."""
    flags.DEFINE_multi_string("workload", ["all"], f"{', '.join(WORKLOADS)}, or all for w1..w4; repeatable, or several joined by commas",
                              flag_values=FLAGS)
    flags.DEFINE_string("npz", None, "an .npz with x_train y_train x_test y_test, instead of the mnist of --data_dir", flag_values=FLAGS)
    flags.DEFINE_string("warmup", "5", "rounds before the timed ones (default: 5)", flag_values=FLAGS)
    for field in configs.fields():
        if field.name in CONFIG:
            default = DEFAULTS.get(field.name, field.default)
            flags.DEFINE_string(field.name, None, f"{field.metadata['help']} (default: {default})", flag_values=FLAGS)


def chosen(items: list[str]) -> list[str]:
    """The workloads that --workload names, each once.

    Raises:
      ValueError: there is none of that name.
    """
    names: list[str] = []
    for name in (part.strip() for item in items for part in item.split(",")):
        if name not in (*WORKLOADS, "all"):
            raise ValueError(f"--workload={name}: unknown; valid: {spec.nearest(name, [*WORKLOADS, 'all'])}")
        names += ["w1", "w2", "w3", "w4"] if name == "all" else [name]
    return list(dict.fromkeys(names))


def configure(name: str) -> configs.Config:
    """The configuration of a workload under the flags.

    Raises:
      ValueError: a flag's value is not valid.
    """
    w = WORKLOADS[name]
    given = {**DEFAULTS, **{k: getattr(FLAGS, k) for k in CONFIG if getattr(FLAGS, k) is not None}}
    task = f"{w.source}_{w.model}"
    if FLAGS.npz is not None:
        _check_npz(name)
        task = f"npz_{w.model}:path={FLAGS.npz}"
    options = {"lr": 0.1, "epochs": 1, "batch_size": w.batch_size}
    owners = {} if FLAGS.partition_file is not None else {"partition": w.partition, "clients": w.clients}
    return configs.make({**given, **owners, "method": "fedavg", "options": options, "task": task, "cohort": w.cohort, "eval_clients": 1})


def _check_npz(name: str) -> None:
    if WORKLOADS[name].source != "mnist":
        raise ValueError(f"--npz={FLAGS.npz}: workload {name} has its own data; valid with w1, w2, w3, w4")
    if FLAGS.data_dir is not None:
        raise ValueError(f"--npz={FLAGS.npz}: --data_dir is given too; choose one of them")
    if not zipfile.is_zipfile(FLAGS.npz) or "," in FLAGS.npz:
        raise ValueError(f"--npz={FLAGS.npz}: not there, no .npz, or a comma in its name; expected an .npz with x_train, y_train, x_test, y_test")


def measure(prepared: run.Prepared, warmup: int) -> dict[str, Any]:
    """Compiles, warms up and times what was prepared; the result is ready for JSON.

    Args:
      prepared: its config's rounds are timed, eval_every of them in a device call.
      warmup: rounds trained before.
    """
    sim, rounds = prepared.simulation, prepared.config.rounds
    with cold():
        start = time.perf_counter()
        state = jax.block_until_ready(sim.init(sim.world, jax.random.key(prepared.config.seed)))
        state, *_ = segment(sim, state, 0, 0)
        compile_seconds = time.perf_counter() - start
    for clock, count in calls(0, warmup, sim.length):
        state, *_ = segment(sim, state, clock, count)
    empty, full, examples = [], [], []
    for clock, count in calls(warmup, rounds, sim.length):
        state, _, seconds = segment(sim, state, clock, 0)
        empty.append(seconds)
        state, record, seconds = segment(sim, state, clock, count)
        full += [(seconds, count)] * count
        examples += examples_of(prepared, record, count)
    evaluation = float(np.median(empty))
    pace = max(float(np.median([(seconds - evaluation) / count for seconds, count in full])), 1e-9)
    plan = sim.plan
    return {
        "seconds_per_round": pace, "compile_seconds": compile_seconds - evaluation, "evaluation_seconds": evaluation,
        "clients_per_second": plan["cohort"] / pace, "examples_per_second": float(np.mean(examples)) / pace, "peak_rss_mb": peak_rss_mb(),
        "test_accuracy": float(record.evaluation["test_accuracy"]), "rounds": rounds, "warmup": warmup,
        **{k: plan[k] for k in ("clients", "cohort", "parameters", "platform", "devices", "chunk", "lanes")}, "versions": workdir.versions(),
    }


def segment(sim, state: State, clock: int, count: int) -> tuple[State, Any, float]:
    """One device call of `count` rounds and an evaluation, with the seconds it took."""
    start = time.perf_counter()
    state, record = jax.block_until_ready(sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(count)))
    return state, record, time.perf_counter() - start


def calls(first: int, rounds: int, length: int) -> Iterator[tuple[int, int]]:
    """(clock, count) of the device calls that make up these rounds."""
    return ((clock, min(length, first + rounds - clock)) for clock in range(first, first + rounds, length))


def examples_of(prepared: run.Prepared, record: Any, count: int) -> list[int]:
    """Training examples of each round's cohort; every one is used once, since there is one epoch."""
    ids, mask = (np.asarray(record.rounds[k])[:count] for k in ("ids", "mask"))
    return np.where(mask, prepared.population.train.size[ids], 0).sum(1).tolist()


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Without compiled programs of earlier processes."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once whether to use the cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def peak_rss_mb() -> float:
    """The most memory this process has held on the host, in 1e6 bytes. Linux's getrusage also counts the parent's, before exec."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 2 for a request that is not valid."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument '{argv[1]}'; settings are flags, --name=value")
        names = chosen(FLAGS.workload)
        warmup = spec.convert(Annotated[int, spec.Range(0)], FLAGS.warmup, "--warmup")
        prepared = [configure(name) for name in names]
        if len(names) > 1:
            return max(subprocess.run(command(name), check=False).returncode for name in names)
        result = measure(run.prepare(prepared[0]), warmup)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"workload": names[0], **result}), flush=True)
    return 0


def command(name: str) -> list[str]:
    """What times one workload with the same flags in a process of its own."""
    given = [f"--{k}={getattr(FLAGS, k)}" for k in (*CONFIG, "npz", "warmup") if getattr(FLAGS, k) is not None]
    return [sys.executable, "-m", "experiments.bench", f"--workload={name}", *given]


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.WARNING)  # JAX reports every step of its own
    app.run(main, flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
