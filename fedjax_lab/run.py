"""A run from its configuration to its result: what `experiments.train` does, as one call.

    run = fedjax_lab.train(method="scaffold", task="digits_mlp", partition="dirichlet:0.3", rounds=40, options={"lr": 0.05})
    run.history[-1]["test_accuracy"];  run.model.predict(x)
"""
from __future__ import annotations

import functools
import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import chunks, platform, registry, spec, tasks
from fedjax_lab import config as configs
from fedjax_lab.config import Config
from fedjax_lab.engine import ledger, processes
from fedjax_lab.types import Adversary, Method, Participation, Population, Record, Simulation, State, Task, Tree

CLOCKED = ("time", "uploads", "rejected", "waiting", "training")  # what a schedule on the virtual clock counts; see parts.schedules.replay


class Diverged(RuntimeError):
    """A loss or an upload became NaN or infinite; the line says in which round and at which clients."""


class Progress(NamedTuple):
    """How far a run has come: everything that evolves. All but the state fits into JSON.

    clock: rounds trained;  seconds: since the first evaluation, compilation apart;  bytes_up, bytes_down: in all;
    flops: floating-point operations of local training, see engine.ledger;
    sums: {metric: sum over the rounds since the last evaluation};  history: one row per evaluation.
    """

    state: State
    clock: int = 0
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    flops: int = 0
    sums: Mapping[str, float] = {}
    history: tuple[dict[str, float], ...] = ()

    @property
    def row(self) -> dict[str, float] | None:
        """The evaluation after this very round, if there was one."""
        return self.history[-1] if self.history and self.history[-1]["round"] == self.clock else None


class Model(NamedTuple):
    """A trained model: its task and parameters."""

    task: Task
    params: Tree

    def predict(self, x: Any, **more: Any) -> jax.Array:
        """Outputs [B, ...] for inputs x [B, ...] (logits for classification); `more` are further arrays [B, ...] that the model reads."""
        return jax.jit(self.task.apply)(self.params, {"x": jnp.asarray(x), **more})


class Prepared(NamedTuple):
    """Everything a run needs before its first round.

    build: (chunk=...) -> Simulation, the same with so many clients side by side.
    compile_seconds: what compiling has taken so far.
    told: (rounds) -> epsilon, None without differential privacy;  privacy: what epsilon rests on, in words.
    """

    config: Config
    task: Task
    method: Method
    population: Population
    simulation: Simulation
    build: Callable[..., Simulation]
    compile_seconds: float = 0.0
    told: Callable[[int], float] | None = None
    privacy: str = ""


class Run(NamedTuple):
    """A finished run: the global model, one row per evaluation, the last state and what was run where."""

    config: Config
    model: Model
    history: list[dict[str, float]]
    state: State
    plan: Mapping[str, Any]
    compile_seconds: float


def train(config: Config | None = None, *, task: str | Task | None = None, method: str | Method | None = None,
          population: str | Population | None = None, workdir: str | None = None, resume: str = "auto",
          report: Callable[[Prepared, dict[str, float]], None] | None = None, **settings: Any) -> Run:
    """Trains a federated model.

    Args:
      config: the whole configuration, or else
      settings: fields of Config by name, for example rounds=20, options={"lr": 0.05}.
      task, method: by name, or one's own record.
      population: where the clients are, or one's own ones, instead of those that task and partition make.
      workdir: folder for the run's files, checkpoints among them; nothing is written without it.
      resume: "auto" continues a run of this configuration that the folder holds, "must" demands one, "never" demands an empty folder.
      report: called with the prepared run and each evaluation's row, the one before the first round included; of a continued run with
        the last row there is, and those to come.

    Raises:
      ValueError: a setting is not valid; the line names it, its value and the valid ones.
      Diverged: a loss or an upload became NaN or infinite; rows reported before are kept by whoever received them.
      OSError: the folder cannot be written any more; what was written before is kept.

    >>> run = train(task="digits_logreg", clients=6, cohort=3, rounds=4, eval_every=2, options={"lr": 0.1})
    >>> [row["round"] for row in run.history]
    [0, 2, 4]
    >>> run.history[-1]["test_accuracy"] > run.history[0]["test_accuracy"]
    True
    >>> run.model.predict(np.zeros((5, 8, 8, 1), np.float32)).shape
    (5, 10)
    """
    own_task, own_method, own_population = (None if isinstance(x, str) else x for x in (task, method, population))
    named = {"task": task if own_task is None else own_task.name, "method": method if own_method is None else own_method.info.name,
             "population": population if own_population is None else None}
    config = configs.make({**named, **settings}) if config is None else config
    make = functools.partial(prepare, task=own_task, population=own_population, method=own_method)
    if workdir is None:
        return follow(chunks.fitted(make(config)), report)
    from fedjax_lab.resume import as_begun, find
    from fedjax_lab.workdir import WorkDir

    start = find(workdir, config, resume)
    prepared = chunks.fitted(make(as_begun(workdir, config) if start else config))
    with WorkDir(workdir, prepared, start) as folder:
        return follow(prepared, report, folder.start, folder.keep)


def follow(prepared: Prepared, report: Callable[[Prepared, dict[str, float]], None] | None = None, start: Progress | None = None,
           keep: Callable[[Progress], None] | None = None) -> Run:
    """Trains what was prepared; see `train`.

    Args:
      prepared, report: see `train`.
      start: where to go on, round 0 by default.
      keep: called with the progress after every device call, before `report`.
    """
    begin, compile_seconds = time.perf_counter() - prepared.compile_seconds, None
    for now in rounds(prepared, start):
        first = compile_seconds is None
        if first:
            compile_seconds = time.perf_counter() - begin
        if keep is not None:
            keep(now)
        if report is not None and (first or now.row):
            report(prepared, now.history[-1])
    model = Model(prepared.method.task or prepared.task, prepared.simulation.deploy(now.state))
    return Run(prepared.config, model, list(now.history), now.state, prepared.simulation.plan, compile_seconds)


def prepare(config: Config, *, task: Task | None = None, population: Population | None = None, method: Method | None = None,
            build: Callable[..., Any] | None = None) -> Prepared:
    """Data, task, method and program of a run, checked and ready; nothing is compiled yet.

    Args:
      config: the whole configuration.
      task, population, method: one's own, instead of those that the configuration names.
      build: what lowers the method to a program, by default engine.sync's.

    Raises:
      ValueError: a setting is not valid; the line names it, its value and the valid ones.

    >>> prepared = prepare(Config(task="digits_logreg", clients=6, cohort=3))
    >>> prepared.population.clients, prepared.simulation.plan["parameters"]
    (6, 650)
    """
    from fedjax_lab import schedules
    from fedjax_lab.engine import mesh, sync

    platform.prepare(config.devices, config.precision, config.cache_dir)
    if population is None or task is None:
        population, task = processes.each(lambda: _data(config, population, task))
        processes.agree("the data", str(population.manifest))
    task, method = _dressed(config, task, method, population)
    schedule, participation = schedules.lowering(config, method, population)
    adversary = attacked(config, method, participation)
    masked(config, method, adversary)
    devices = mesh.make(None if config.devices == "auto" else config.devices, config.model_devices)
    processes.agree("the configuration", str([f for f in configs.flags(config) if not f.startswith(("--data_dir", "--cache_dir"))]))
    build = functools.partial(
        build or sync.build, task, method, population, participation, mesh=devices, lanes=max(config.lanes, 1),
        length=min(config.eval_every, config.rounds), eval_clients=config.eval_clients, streamed=config.population != "device",
        client_state=config.client_state, schedule=schedule, adversary=adversary,
    )
    chunk = config.chunk
    if chunk == "auto":
        chunk = int(processes.gather(chunks.first(config, task, population.train.examples, devices, participation.slots))[0, 0])
    simulation = build(chunk=chunk)
    return Prepared(config, task, method, population, simulation, build, 0.0, *told(config, method, population, simulation))


def told(config: Config, method: Method, population: Population, simulation: Simulation) -> tuple[Callable[[int], float] | None, str]:
    """What the rounds tell of the clients, and in words what that rests on."""
    from fedjax_lab import schedules
    from fedjax_lab.parts.privacy import accountant

    if method.release is None:
        return None, ""
    if schedules.chosen(config, method) != schedules.SYNC:
        raise ValueError(f"--privacy={config.privacy} --schedule={config.schedule}: epsilon is for rounds with a server; choose --schedule=sync")
    bare = accountant.bare(method, simulation.fields())
    if bare:
        return lambda rounds: math.inf if rounds else 0.0, f"epsilon is infinite: {', '.join(bare)} of the upload is neither clipped nor noised"
    return accountant.epsilon(method.release, config.participation, population.clients)


def masked(config: Config, method: Method, adversary: Adversary | None) -> None:
    """Raises ValueError where --privacy hides single uploads, and another flag needs them."""
    from fedjax_lab import schedules
    from fedjax_lab.engine import malice

    if "secagg" not in [spec.parse(item)[0] for item in spec.chain(config.privacy or "")]:
        return
    needs = {f"--schedule={config.schedule}": schedules.chosen(config, method) != schedules.SYNC and "rounds that all who were drawn began together",
             f"--attack={config.attack}": malice.forges(adversary) and "to see and change single uploads; choose attacks on data such as label-flip",
             f"--stats={config.stats}": config.stats == "local" and "the statistics in each upload"}
    for flag, why in needs.items():
        if why:
            raise ValueError(f"--privacy={config.privacy} {flag}: single uploads are masked, and the other needs {why}; leave one out")


def attacked(config: Config, method: Method, participation: Participation) -> Adversary | None:
    """Who attacks, and how; a warning where they are more than the aggregator is made for."""
    from fedjax_lab.parts.attacks import text

    adversary = text.from_text(config.attack, config.data_seed)
    line = text.beyond(adversary, method, participation.slots)
    if line:
        warnings.warn(f"--attack={config.attack}: {line}", stacklevel=3)
    return adversary


def _dressed(config: Config, task: Task, method: Method | None, population: Population) -> tuple[Task, Method]:
    """The task and the method with what --init, --augment and --stats say."""
    from fedjax_lab import starts
    from fedjax_lab.parts.transforms import statistics
    from fedjax_lab.parts.transforms.augment import augmented

    if config.stats != "averaged" and not statistics.present(task):
        raise ValueError(f"--stats={config.stats}: task '{task.name}' has no normalization statistics; leave --stats out")
    if method is not None and (config.init or config.augment or config.stats == "frozen"):
        flag = f"--init={config.init}" if config.init else f"--augment={config.augment}" if config.augment else f"--stats={config.stats}"
        raise ValueError(f"{flag}: the method given has a task already; change that task before, or give the method by name")
    task = starts.started(config.init, task, population, config.cache_dir) if config.init else task
    task = statistics.frozen(task) if config.stats == "frozen" else task
    task = augmented(task, config.augment, population.train.examples) if config.augment else task
    return task, method_of(config, task, method)


def method_of(config: Config, task: Task, method: Method | None = None) -> Method:
    """The method that a configuration makes for a dressed task, from traced options too; or the one given, dressed like it."""
    from fedjax_lab.parts.transforms import statistics
    from fedjax_lab.parts.transforms.composed import composed

    method = registry.make(config.method, task, **config.options) if method is None else method
    method = composed(method, wire_up=config.wire_up, wire_down=config.wire_down, aggregator=config.aggregator, server=config.server,
                      privacy=config.privacy, cohort=config.cohort)
    return statistics.local(method) if config.stats == "local" else method


def _data(config: Config, population: Population | None, task: Task | None) -> tuple[Population, Task]:
    from fedjax_lab.data import scenario

    source, model = tasks.load(config.task, config.data_dir, config.cache_dir)
    if population is None:
        population = _placed(config, ready(config, source) if source.ready else scenario.build(**scene(config, source)))
    return population, model(population.train.examples) if task is None else task


def ready(config: Config, source: Any) -> Population:
    """The population that the source itself makes.

    Raises:
      ValueError: another one is asked for.
    """
    given = {"partition": config.partition, "partition_file": config.partition_file, "client_test": config.client_test, "clients": config.clients}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name}={value}: '{source.name}' makes its own clients; leave it out, its options are arguments of the task")
    return source.ready


def _placed(config: Config, population: Population) -> Population:
    """The population in arrays, or in files of the cache folder."""
    from fedjax_lab.data import mapped

    if config.population == "disk":
        return mapped.mapped(population, platform.cache_folder(config.cache_dir) / "populations")
    return mapped.held(population) if config.population == "device" else population


def scene(config: Config, source: Any) -> dict[str, Any]:
    """The arguments of scenario.build that a configuration makes of a source."""
    text = config.partition or ("" if config.partition_file else default_partition(source))
    given = config.partition_file or any(spec.parse(item)[0] in ("natural", "vertical") for item in spec.chain(text))
    return {"text": text, "source": source, "key": jax.random.key(config.data_seed), "clients": config.clients or (None if given else 100),
            "client_test": config.client_test, "partition_file": config.partition_file}


def default_partition(source: Any) -> str:
    """Natural clients where the source has them, communities of a graph, else Dirichlet(0.3) over the classes, else at random."""
    return "natural" if source.keys else "community" if source.edges is not None else "dirichlet:0.3" if source.classes else "iid"


def rounds(prepared: Prepared, start: Progress | None = None) -> Iterator[Progress]:
    """Trains, yielding the progress before the first round and after every device call; the state in it is dead once the next is asked for.

    A device call ends at an evaluation, at a checkpoint's round, or after about `max_segment_seconds`; where it ends changes no bit.

    Args:
      prepared: by `prepare`.
      start: where to go on, round 0 by default.

    Raises:
      ValueError: a target accuracy of a task that has no accuracy.
      Diverged: see `train`.

    >>> prepared = prepare(Config(task="digits_logreg", clients=6, cohort=3, rounds=2))
    >>> losses = {now.clock: now.row["test_loss"] for now in rounds(prepared) if now.row}
    >>> sorted(losses), losses[2] < losses[0]
    ([0, 2], True)
    """
    config, sim = prepared.config, prepared.simulation
    if start is not None and finished(config, start):
        yield start
        return
    now = start or Progress(sim.init(sim.world, jax.random.key(config.seed)))
    origin, limit, spent = None, 1, spending(prepared)
    while origin is None or not finished(config, now):
        count = 0 if origin is None else min(int(processes.gather(limit)[0, 0]), _distance(config, now.clock))
        begin = time.perf_counter()
        due = jnp.bool_(_evaluated(config, now.clock + count))
        state, record = sim.segment(sim.world, now.state, jnp.int32(now.clock), jnp.int32(count), due)
        record = jax.device_get(record)
        end = time.perf_counter()
        if origin is None:  # nothing but an evaluation, and the compilation
            origin = end - now.seconds
        else:
            limit = max(1, int(count * config.max_segment_seconds / (end - begin)))
        now = advance(config, now._replace(state=state, seconds=end - origin), record, count, spent, released(prepared))
        yield now
        if config.target_accuracy is not None and "test_accuracy" not in record.evaluation:
            raise ValueError(f"--target_accuracy={config.target_accuracy}: task '{prepared.task.name}' has no accuracy, only a loss")


def finished(config: Config, now: Progress) -> bool:
    """Whether all rounds are trained or the target accuracy is reached."""
    target, row = config.target_accuracy, now.row or {}
    return now.clock >= config.rounds or (target is not None and row.get("test_accuracy", -1) >= target)


def _evaluated(config: Config, clock: int) -> bool:
    """Whether an evaluation belongs to this round."""
    return clock % config.eval_every == 0 or clock >= config.rounds


def _distance(config: Config, clock: int) -> int:
    """Rounds from here to the next evaluation or checkpoint."""
    every, _ = configs.interval(config.checkpoint_every)
    return int(min(config.eval_every - clock % config.eval_every, every - clock % every, config.rounds - clock))


def spending(prepared: Prepared) -> Callable[[Mapping[str, np.ndarray]], int]:
    """(reports of rounds) -> operations of local training in them."""
    return functools.partial(ledger.spent, prepared.simulation.costs(), np.asarray(prepared.population.train.size))


def released(prepared: Prepared) -> Callable[[int], Mapping[str, Any]]:
    """(rounds) -> the columns of a row that say what they told: epsilon, and in words what it rests on; none without differential privacy."""
    if prepared.told is None:
        return lambda rounds: {}
    return lambda rounds: {"epsilon": prepared.told(rounds), "privacy": prepared.privacy}


def advance(config: Config, now: Progress, record: Record, count: int, spent: Callable[[Mapping[str, np.ndarray]], int],
            told: Callable[[int], Mapping[str, Any]] = lambda rounds: {}) -> Progress:
    """The progress after `count` more rounds, from their reports and what they took and told, with a row where an evaluation is due.

    Raises:
      Diverged: see `train`.
    """
    _check_finite(record, now.clock, count)
    reports = {k: v[:count] for k, v in record.rounds.items()}
    up, down = (moved(reports, way) for way in ("bytes_up", "bytes_down"))
    add = functools.partial(functools.reduce, operator.add)  # one by one: the cut of the rounds must not show
    sums = {k: add(v.tolist(), now.sums.get(k, 0.0)) for k, v in reports.items() if v.ndim == 1 and v.dtype != bool and k not in CLOCKED}
    now = now._replace(clock=now.clock + count, bytes_up=now.bytes_up + up, bytes_down=now.bytes_down + down, flops=now.flops + spent(reports), sums=sums)
    if now.row or not _evaluated(config, now.clock):
        return now
    clocked = {k: (record.rounds[k][count - 1].item() if count else 0) for k in CLOCKED if k in record.rounds}
    row = _row(now, record.evaluation, {**clocked, **told(now.clock)})
    if now.history and not np.isfinite(row["test_loss"]):
        raise Diverged(f"round {now.clock}: the test loss of the global model is not finite")
    return now._replace(sums={}, history=(*now.history, row))


def moved(reports: Mapping[str, np.ndarray], way: str) -> int:
    """All bytes of these rounds one way. Uploads that a schedule rejected were sent too, and their models before: each counts like the mean of
    those heard in the round in which it is reported."""
    total = sum(int(v.sum(dtype=np.int64)) for k, v in reports.items() if k.endswith(way))
    if "refused" not in reports:
        return total
    each, heard = reports[way].sum(1, dtype=np.int64), np.maximum(reports["heard"].sum(1), 1)
    return total + int((reports["refused"][:, 0] * each // heard).sum())


def _row(now: Progress, evaluation: Mapping[str, np.ndarray], clocked: Mapping[str, Any]) -> dict[str, Any]:
    rounds = now.clock - now.history[-1]["round"] if now.history else 0
    names = sorted(evaluation, key=lambda k: (not k.startswith("test_"), k))  # the global model first
    evaluated = {k: float(evaluation[k]) for k in names}
    trained = {f"train_{k}": v / rounds for k, v in now.sums.items() if rounds}
    return {"round": now.clock, "seconds": round(now.seconds, 4), **clocked, **evaluated, **trained,
            "bytes_up": now.bytes_up, "bytes_down": now.bytes_down, "flops": now.flops}


def _check_finite(record, clock: int, count: int) -> None:
    reports = {k: v[:count] for k, v in record.rounds.items()}
    ids, broken = reports["ids"], ~reports["finite"] & reports["mask"]
    if "all_finite" in reports:  # of phases with everyone, by id
        everyone = np.arange(reports["all_finite"].shape[1])
        ids = np.concatenate([ids, np.broadcast_to(everyone, reports["all_finite"].shape)], 1)
        broken = np.concatenate([broken, ~reports["all_finite"]], 1)
    failed = broken.any(1) | ~reports["sound"]
    if failed.any():
        first = int(np.argmax(failed))
        if not broken[first].any():
            raise Diverged(f"round {clock + first + 1}: what the server made of the uploads is not finite, though every client's loss was; "
                           "a smaller lr is the usual cure")
        clients = sorted({*ids[first][broken[first]].tolist()})
        named = ", ".join(map(str, clients[:10])) + (f" and {len(clients) - 10} more" if len(clients) > 10 else "")
        raise Diverged(f"round {clock + first + 1}: loss or upload is not finite at client{'s' * (len(clients) > 1)} {named}; "
                       "a smaller lr is the usual cure")
