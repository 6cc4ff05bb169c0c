"""What keeps every path fast: one compilation, no data in the program, nothing fetched by the host inside it, and a donated state."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny

from fedjax_lab import config as configs
from fedjax_lab import many, run
from fedjax_lab.engine import mesh

PATHS = {
    "population on the host": {"streamed": True},
    "rows on the host": {"client_state": "host"},
    "population on the host, rows in files": {"streamed": True, "client_state": "disk"},
    "phases with everyone": {},
}
SETTINGS = {"task": "tiny", "cohort": 4, "rounds": 5, "eval_every": 2, "devices": 2, "options": {"batch_size": "full"}}


@pytest.fixture
def dumped(tmp_path):
    """Gives the text of the program of this name, lowered since."""
    jax.config.update("jax_dump_ir_to", str(tmp_path / "programs"))
    yield lambda name: next((tmp_path / "programs").glob(f"*_{name}_*")).read_text()
    jax.config.update("jax_dump_ir_to", None)


def simulation(path):
    task, traces = tiny.counted(tiny.task())
    method = tiny.averaging(task, tiny.work(batch_size="full"))
    if path == "phases with everyone":
        method = method._replace(phases=(method.phase(everyone=True, when=lambda key, clock: clock % 2 == 0), method.phase()))
    return tiny.build(method, devices=2, chunk=2, the_task=task, **PATHS[path]), traces


def go(sim, state, clock, rounds, due):
    return sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(rounds), jnp.bool_(due))


def lean(program) -> bool:
    """Whether a program holds no large constant, and calls nothing on the host."""
    literals = re.findall(r"dense<(\"0x[0-9A-F]+\"|\[[^>]*\])>", program)
    return max(map(len, literals), default=0) < 300 and not re.search(r"@\w*callback|infeed|outfeed", program)


@pytest.mark.parametrize("path", PATHS)
def test_one_lean_program_serves_every_segment(path, dumped):
    sim, traces = simulation(path)
    first = tiny.start(sim)
    state, _ = go(sim, first, 0, 2, True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.server))
    assert lean(dumped("jit_segment"))
    before = len(traces), len(tiny.COMPILED)
    for clock, rounds, due in ((2, 1, False), (3, 4, True), (7, 0, True), (7, 4, False)):
        state, record = go(sim, state, clock, rounds, due)
        assert bool(record.evaluation["test_loss"]) == due
    assert (len(traces), len(tiny.COMPILED)) == before and min(before) > 0


@pytest.mark.full
def test_phases_with_everyone_move_nothing_between_host_and_device():
    sim, _ = simulation("phases with everyone")
    arguments = jax.device_put((jnp.int32(0), jnp.int32(2), jnp.bool_(True)), mesh.replicated(mesh.make(2)))
    state, _ = sim.segment(sim.world, tiny.start(sim), *arguments)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(sim.segment(sim.world, state, *arguments))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device"):
        sim.segment(sim.world, tiny.start(sim), np.int32(0), *arguments[1:])


def cells(**more):
    return many.grid(configs.make({**SETTINGS, **more}), range(2), {"lr": (0.1, 0.2)})


def test_a_sweep_compiles_one_lean_program_for_all_its_calls(dumped, tmp_path):
    results = many.each(cells(cache_dir=str(tmp_path / "cache")), task=tiny.task(), population=tiny.population(), at_once=2)
    found = [next(results), next(results)]
    before = len(tiny.COMPILED)
    found += results
    assert len(found) == 4 and len(tiny.COMPILED) == before and lean(dumped("jit_device"))


def test_a_sweep_moves_nothing_between_host_and_device(tmp_path):
    group = many._prepare(cells(cache_dir=str(tmp_path)), tiny.task(), tiny.population(), None)
    arguments = (group.batch.world, *many._arguments(group, group.cells, group.names))
    program = group.batch.run.lower(*arguments).compile()
    arguments = jax.device_put(arguments, program.input_shardings[0])
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(program(*arguments))


def test_a_run_compiles_nothing_after_its_first_round(tmp_path):
    config = configs.make({**SETTINGS, "cache_dir": str(tmp_path), "max_segment_seconds": 1e-9, "checkpoint_every": 1})
    steps = run.rounds(run.prepare(config, task=tiny.task(), population=tiny.population()))
    clocks = [next(steps).clock, next(steps).clock]
    before = len(tiny.COMPILED)
    clocks += [now.clock for now in steps]
    assert clocks == [0, 1, 2, 3, 4, 5] and len(tiny.COMPILED) == before
