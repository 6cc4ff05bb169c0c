"""How many clients train side by side on a device: what fits into memory, what is fast, and what was found fast before.

Side by side, clients share what a step costs beside its products. On a CPU that pays while their models stay in a core's cache; on an
accelerator it is what fills the device.
"""
from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lab import config as configs
from fedjax_lab import guard, platform, tree
from fedjax_lab.config import Config
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.types import Simulation, Task

CACHE = 2**20  # bytes of a core's cache for the models, gradients and changes of clients side by side
SIDE = 8  # of them on a CPU: more were no faster, and lanes are as many
SHARE = 0.5  # of the free memory that clients side by side may take
TRIAL = 0.1  # of a run's time that trying other chunks may take
APART = ("rounds", "seed", "data_seed", "eval_every", "eval_clients", "target_accuracy")  # fields of Config that do not bear on speed

Say = Callable[[str], None]


def first(config: Config, task: Task, examples: Mapping[str, Any], mesh, slots: int) -> int:
    """The chunk to begin with: the one that was found fastest before, or what fits.

    Args:
      config: of the run;  task: its task;  examples: {field: [M, ...]} of its population;  slots: clients in a round.
      mesh: from engine.mesh.make.
    """
    each = -(-slots // mesh.shape[meshes.CLIENTS])
    known = _read(config).get(_name(config, mesh.size))
    return _even(each, known or _fits(config, task, examples, mesh))


def _fits(config: Config, task: Task, examples: Mapping[str, Any], mesh) -> int:
    params = jax.eval_shape(task.init, jax.random.key(0))
    model = tree.nbytes(params)
    if mesh.devices.flat[0].platform == "cpu":
        if any(len(leaf.shape) >= 4 for leaf in jax.tree.leaves(params)):
            return 1  # side by side, convolutions become grouped ones
        return min(SIDE, 1 << max(0, (CACHE // max(3 * model, 1)).bit_length() - 1))
    rows = config.options.get("batch_size", 0)
    client = 4 * model + activations(task, params, examples, rows if isinstance(rows, int) and rows else 32)
    return max(1, int(platform.room(SHARE) / mesh.size // max(client, 1)))


def activations(task: Task, params: Any, examples: Mapping[str, Any], rows: int) -> int:
    """Bytes of all that the loss of a batch of `rows` examples computes: an upper bound of what its gradient keeps."""
    batch = {k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype) for k, v in examples.items()}
    batch["mask"] = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    return _outputs(jax.make_jaxpr(task.loss)(params, batch, jax.random.key(0)).jaxpr)


def _outputs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(v, "jaxpr", v) for v in equation.params.values() if hasattr(getattr(v, "jaxpr", v), "eqns")]
        total += sum(_outputs(j) for j in inner) if inner else sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
    return total


def _even(each: int, chunk: int) -> int:
    """The chunk of at most this size that leaves the fewest empty places among the `each` clients of a device."""
    return -(-each // -(-each // max(1, min(chunk, each))))


def fitted(prepared: Any, say: Say = lambda line: None) -> Any:
    """A prepared run (run.Prepared) with its program compiled, with the chunk halved where memory does not suffice, and with --chunk=auto
    the fastest of a few where the run is long enough for trying to pay. Its configuration names the chunk.

    Args:
      prepared: from run.prepare;  say: called with a line on what was chosen and why.
    """
    begin, wanted = time.perf_counter(), prepared.simulation.plan["chunk"]
    prepared = _halved(prepared, say)
    compiled = time.perf_counter() - begin
    if prepared.config.chunk == "auto" and prepared.simulation.plan["chunk"] == wanted:
        prepared = _fastest(prepared, compiled, say)
    chosen = prepared.simulation.plan["chunk"]
    return prepared._replace(config=dataclasses.replace(prepared.config, chunk=chosen), compile_seconds=time.perf_counter() - begin)


def _halved(prepared: Any, say: Say) -> Any:
    """Compiles the program and runs it without rounds, which takes the memory that rounds take."""
    while True:
        chunk = prepared.simulation.plan["chunk"]
        try:
            _call(prepared.simulation, 0)
            return prepared
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or chunk == 1:
                raise
            say(f"out of memory with chunk {chunk}; goes on with {chunk // 2}")
            prepared = prepared._replace(simulation=prepared.build(chunk=chunk // 2))


def _call(simulation: Simulation, rounds: int, state: Any = None) -> tuple[Any, float]:
    state = simulation.init(simulation.world, jax.random.key(0)) if state is None else state
    begin = time.perf_counter()
    out = jax.block_until_ready(simulation.segment(simulation.world, state, jnp.int32(0), jnp.int32(rounds), jnp.bool_(False)))
    return out[0], time.perf_counter() - begin


def pace(simulation: Simulation) -> float:
    """Seconds per round of a compiled program, its first round apart."""
    state, _ = _call(simulation, 1)
    rounds = min(simulation.length, 3)
    return min(_call(simulation, rounds, jax.tree.map(jnp.copy, state))[1] for _ in range(2)) / rounds


def _fastest(prepared: Any, compiled: float, say: Say) -> Any:
    config, simulation = prepared.config, prepared.simulation
    plan = simulation.plan
    alone = plan["population"] == plan["client_state"] == "device" and jax.process_count() == 1
    others = _candidates(config, plan) if alone and _name(config, plan["devices"]) not in _read(config) else []
    if not others:
        return prepared
    found = {plan["chunk"]: (pace(simulation), simulation)}
    for chunk in others:
        fastest = min(seconds for seconds, _ in found.values())
        if len(found) * compiled > TRIAL * config.rounds * fastest:
            break
        try:
            other = prepared.build(chunk=chunk)
            found[chunk] = pace(other), other
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            say(f"out of memory with chunk {chunk}")
    best = min(found, key=lambda chunk: found[chunk][0])
    if len(found) > 1:
        tried = ", ".join(f"{chunk} {1e3 * seconds:.3g} ms" for chunk, (seconds, _) in sorted(found.items()))
        say(f"chunk {best}: the fastest of those tried (a round takes with {tried}); remembered")
        _remember(config, plan["devices"], best)
    return prepared._replace(simulation=found[best][1])


def _candidates(config: Config, plan: Mapping[str, Any]) -> list[int]:
    """Other chunks worth trying, the likeliest first."""
    each, now = -(-plan["cohort"] // (plan["devices"] // config.model_devices)), plan["chunk"]
    wanted = (1, SIDE, 4 * SIDE) if plan["platform"] == "cpu" else (now // 4, now // 16, 1)
    return [c for c in dict.fromkeys(_even(each, max(1, w)) for w in wanted) if c != now]


def _name(config: Config, devices: int) -> str:
    """What a found chunk belongs to."""
    free = {f.name for f in configs.fields() if f.metadata.get("free")} | set(APART)
    flags = [flag for flag in configs.flags(config) if flag[2:].partition("=")[0] not in free]
    return " ".join([f"jax {jax.__version__},", str(devices), jax.devices()[0].device_kind, str(config.model_devices), *flags])


def _file(config: Config) -> Any:
    return platform.cache_folder(config.cache_dir) / "chunks.json"


def _read(config: Config) -> dict[str, int]:
    try:
        return json.loads(_file(config).read_text())
    except (OSError, ValueError):
        return {}


def _remember(config: Config, devices: int, chunk: int) -> None:
    try:
        guard.write(_file(config), json.dumps({**_read(config), _name(config, devices): chunk}, indent=1) + "\n")
    except OSError:
        return  # a read-only home only costs the trial


__all__ = ["activations", "first", "fitted", "pace"]
