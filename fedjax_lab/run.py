"""A run from its configuration to its result: what `experiments.train` does, as one call.

    run = fedjax_lab.train(method="scaffold", task="digits_mlp", partition="dirichlet:0.3", rounds=40, options={"lr": 0.05})
    run.history[-1]["test_accuracy"];  run.model.predict(x)
"""
from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import config as configs
from fedjax_lab import platform, registry, spec, tasks
from fedjax_lab.config import Config
from fedjax_lab.types import Method, Population, Simulation, State, Task, Tree


class Diverged(RuntimeError):
    """A loss or an upload became NaN or infinite; the line says in which round and at which clients."""


class Model(NamedTuple):
    """A trained model: its task and parameters."""

    task: Task
    params: Tree

    def predict(self, x: Any, **more: Any) -> jax.Array:
        """Outputs [B, ...] for inputs x [B, ...] (logits for classification); `more` are further arrays that the model reads."""
        return jax.jit(self.task.apply)(self.params, {"x": jnp.asarray(x), **more})


class Prepared(NamedTuple):
    """Everything a run needs before its first round."""

    config: Config
    task: Task
    method: Method
    population: Population
    simulation: Simulation


class Run(NamedTuple):
    """A finished run: the global model, one row per evaluation, the last state and what was run where."""

    config: Config
    model: Model
    history: list[dict[str, float]]
    state: State
    plan: Mapping[str, Any]
    compile_seconds: float


def train(config: Config | None = None, *, task: str | Task | None = None, method: str | Method | None = None,
          population: Population | None = None, report: Callable[[Prepared, dict[str, float]], None] | None = None, **settings: Any) -> Run:
    """Trains a federated model.

    Args:
      config: the whole configuration, or else
      settings: fields of Config by name, for example rounds=20, options={"lr": 0.05}.
      task, method: by name, or one's own record.
      population: one's own clients, instead of those that task and partition make.
      report: called with the prepared run and each evaluation's row, the one before the first round included.

    Raises:
      ValueError: a setting is not valid; the line names it, its value and the valid ones.
      Diverged: a loss or an upload became NaN or infinite; rows reported before are kept by whoever received them.
    """
    own_task, own_method = (None if isinstance(x, str) else x for x in (task, method))
    named = {"task": task if own_task is None else own_task.name, "method": method if own_method is None else own_method.info.name}
    config = configs.make({**named, **settings}) if config is None else config
    return follow(prepare(config, task=own_task, population=population, method=own_method), report)


def follow(prepared: Prepared, report: Callable[[Prepared, dict[str, float]], None] | None = None) -> Run:
    """Trains what was prepared; see `train`."""
    history, state, start = [], None, time.perf_counter()
    for state, row in rounds(prepared):
        if not history:
            compile_seconds = time.perf_counter() - start
        history.append(row)
        if report is not None:
            report(prepared, row)
    params = prepared.method.deploy(state.server)
    return Run(prepared.config, Model(prepared.task, params), history, state, prepared.simulation.plan, compile_seconds)


def prepare(config: Config, *, task: Task | None = None, population: Population | None = None, method: Method | None = None) -> Prepared:
    """Data, task, method and program of a run, checked and ready; nothing is compiled yet."""
    from fedjax_lab.engine import mesh, sync
    from fedjax_lab.parts.cohorts.uniform import uniform

    platform.prepare(config.devices, config.precision, config.cache_dir)
    if population is None or task is None:
        population, task = _data(config, population, task)
    method = registry.make(config.method, task, **config.options) if method is None else method
    if config.cohort > population.clients:
        raise ValueError(f"--cohort={config.cohort}: more than the {population.clients} clients there are; choose 1..{population.clients}")
    devices = mesh.make(None if config.devices == "auto" else config.devices)
    simulation = sync.build(
        task, method, population, uniform(population.clients, config.cohort), mesh=devices, lanes=max(config.lanes, 1),
        chunk=default_chunk(task, devices, config.cohort) if config.chunk == "auto" else config.chunk,
        length=min(config.eval_every, config.rounds), eval_clients=config.eval_clients,
    )
    return Prepared(config, task, method, population, simulation)


def _data(config: Config, population: Population | None, task: Task | None) -> tuple[Population, Task]:
    from fedjax_lab.data import scenario

    source, model = tasks.load(config.task, config.data_dir, config.cache_dir)
    if population is None:
        text = config.partition or ("" if config.partition_file else default_partition(source))
        natural = any(spec.parse(item)[0] == "natural" for item in spec.chain(text))
        population = scenario.build(
            text, source, key=jax.random.key(config.data_seed), clients=config.clients or (None if natural else 100),
            client_test=config.client_test, partition_file=_checked(config.partition_file),
        )
        if config.clients not in (None, population.clients):
            raise ValueError(f"--clients={config.clients}: the partition makes {population.clients} clients; leave --clients out")
    return population, model(population.train.examples) if task is None else task


def _checked(path: str | None) -> str | None:
    """The partition file, if it is one that numpy can read."""
    from etils import epath

    if path is not None and epath.Path(path).expanduser().exists():
        file = epath.Path(path).expanduser()
        if file.is_dir() or not zipfile.is_zipfile(io.BytesIO(file.read_bytes())):
            raise ValueError(f"--partition_file={path}: is no .npz file; expected one whose `idx` is an integer array [clients, n], padded with -1")
    return path


def default_partition(source: Any) -> str:
    """Natural clients where the source has them, else Dirichlet(0.3) over the classes, else at random."""
    return "natural" if source.keys else "dirichlet:0.3" if source.classes else "iid"


def default_chunk(task: Task, mesh, cohort: int) -> int:
    """Clients side by side: on a CPU few, since one client's products already fill a core; elsewhere as many as a memory share allows."""
    if mesh.devices.flat[0].platform == "cpu":
        return 1
    from fedjax_lab import tree

    size = tree.nbytes(jax.eval_shape(task.init, jax.random.key(0)))
    return int(max(1, min(-(-cohort // mesh.size), 2**31 // max(4 * size, 1))))


def rounds(prepared: Prepared) -> Iterator[tuple[State, dict[str, float]]]:
    """Trains, yielding (state, row) before the first round and after every evaluation; a yielded state is dead once the next is asked for.

    Raises:
      Diverged: see `train`.
    """
    config, sim = prepared.config, prepared.simulation
    state = sim.init(sim.world, jax.random.key(config.seed))
    clock, traffic, started = 0, np.zeros(2, np.int64), None
    while True:
        count = 0 if started is None else min(sim.length, config.rounds - clock)
        state, record = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(count))
        record = jax.device_get(record)
        started = started or time.perf_counter()
        _check_finite(record, clock, count)
        clock += count
        traffic += [int(record.rounds[k][:count].astype(np.int64).sum()) for k in ("bytes_up", "bytes_down")]
        yield state, _row(record, clock, count, time.perf_counter() - started, traffic)
        if config.target_accuracy is not None and "test_accuracy" not in record.evaluation:
            raise ValueError(f"--target_accuracy={config.target_accuracy}: task '{prepared.task.name}' has no accuracy, only a loss")
        reached = config.target_accuracy is not None and record.evaluation["test_accuracy"] >= config.target_accuracy
        if clock >= config.rounds or reached:
            return


def _row(record, clock: int, count: int, seconds: float, traffic: np.ndarray) -> dict[str, float]:
    ledger = ("ids", "mask", "finite", "bytes_up", "bytes_down")
    trained = {f"train_{k}": float(v[:count].mean()) for k, v in record.rounds.items() if k not in ledger and count}
    names = sorted(record.evaluation, key=lambda k: (not k.startswith("test_"), k))  # the global model first
    evaluated = {k: float(record.evaluation[k]) for k in names}
    return {"round": clock, "seconds": round(seconds, 4), **evaluated, **trained, "bytes_up": int(traffic[0]), "bytes_down": int(traffic[1])}


def _check_finite(record, clock: int, count: int) -> None:
    finite, ids, mask = (record.rounds[k][:count] for k in ("finite", "ids", "mask"))
    broken = ~finite & mask
    if broken.any():
        first = int(np.argmax(broken.any(1)))
        clients = ids[first][broken[first]].tolist()
        named = ", ".join(map(str, clients[:10])) + (f" and {len(clients) - 10} more" if len(clients) > 10 else "")
        raise Diverged(f"round {clock + first + 1}: loss or upload is not finite at client{'s' * (len(clients) > 1)} {named}; "
                       "a smaller lr is the usual cure")
    if count and not np.isfinite(record.evaluation["test_loss"]):
        raise Diverged(f"round {clock + count}: the test loss of the global model is not finite")
