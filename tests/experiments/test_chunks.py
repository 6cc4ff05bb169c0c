"""How many clients train side by side: the rule, the trial, what is remembered, and what happens where memory is short."""
from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from fedjax_lab import chunks, config, run
from fedjax_lab.models import classification

SETTINGS = {"task": "digits_logreg", "clients": 20, "cohort": 12, "rounds": 4, "eval_every": 2, "eval_clients": 1, "devices": 2,
            "options": {"local_steps": 1}}


def settings(tmp_path, **more):
    return config.make({**SETTINGS, "cache_dir": str(tmp_path), **more})


@pytest.fixture
def lines():
    return []


def outcome(prepared):
    return run.follow(prepared).history


def test_a_small_model_shares_and_a_large_one_does_not(tmp_path):
    plans = {task: run.prepare(settings(tmp_path, task=task)).simulation.plan["chunk"] for task in ("digits_logreg", "digits_2nn", "digits_cnn")}
    assert plans == {"digits_logreg": 6, "digits_2nn": 1, "digits_cnn": 1}  # 12 slots on 2 devices; 2nn leaves the cache; cnn has convolutions


@pytest.mark.parametrize("each, chunk, even", [(5, 8, 5), (10, 8, 5), (9, 8, 5), (500, 8, 8), (1, 8, 1), (7, 1, 1), (6, 100, 6)])
def test_chunks_leave_few_places_empty(each, chunk, even):
    assert chunks._even(each, chunk) == even
    assert -(-each // even) == -(-each // min(chunk, each))  # no more of them than need be


def test_activations_are_those_of_the_loss():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.Dense(1000)(x))

    examples = {"x": np.zeros((9, 3), np.float32), "y": np.zeros(9, np.int32)}
    batch = {k: v[:1] for k, v in examples.items()} | {"mask": np.ones(1, bool)}
    task = classification("wide", Net(), batch)
    params = jax.eval_shape(task.init, jax.random.key(0))
    small, large = (chunks.activations(task, params, examples, rows) for rows in (10, 20))
    layer = 10 * 1000 * 4  # bytes: its product alone, and with its bias
    assert 2 * layer <= small <= 4 * layer and 1.9 * small < large <= 2 * small


def slow_but(fast):
    """A clock by which the chunk `fast` is the fastest, and enough rounds for trying."""
    return lambda simulation: 100.0 + abs(simulation.plan["chunk"] - fast)


@pytest.mark.full
def test_the_fastest_of_a_few_is_taken_and_remembered(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(chunks, "pace", slow_but(1))
    prepared = chunks.fitted(run.prepare(settings(tmp_path, rounds=400)), lines.append)
    assert prepared.simulation.plan["chunk"] == prepared.config.chunk == 1
    assert len(lines) == 1 and lines[0].startswith("chunk 1: the fastest") and "6 1.05e+05 ms" in lines[0]
    monkeypatch.setattr(chunks, "pace", slow_but(6))  # not asked again, in a run of other length and seed
    again = chunks.fitted(run.prepare(settings(tmp_path, rounds=200, seed=7)), lines.append)
    assert again.simulation.plan["chunk"] == 1 and len(lines) == 1
    other = run.prepare(settings(tmp_path, cohort=10))
    assert other.simulation.plan["chunk"] == 5  # another configuration


def test_trying_must_pay(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(chunks, "pace", lambda simulation: 1e-4 * simulation.plan["chunk"])
    assert chunks.fitted(run.prepare(settings(tmp_path)), lines.append).simulation.plan["chunk"] == 6
    assert not lines and not (tmp_path / "chunks.json").exists()


def test_a_damaged_memory_is_no_memory(tmp_path):
    (tmp_path / "chunks.json").write_text('{"half')
    assert run.prepare(settings(tmp_path)).simulation.plan["chunk"] == 6


def short(prepared, most):
    """The prepared run on a machine that has memory for `most` clients side by side."""

    def build(chunk):
        simulation = prepared.build(chunk=chunk)

        def segment(*args):
            if simulation.plan["chunk"] > most:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
            return simulation.segment(*args)

        return simulation._replace(segment=segment)

    return prepared._replace(simulation=build(prepared.simulation.plan["chunk"]), build=build)


@pytest.mark.parametrize("chunk", ["auto", pytest.param(6, marks=pytest.mark.full)])
def test_memory_that_does_not_suffice_halves_the_chunk(tmp_path, lines, chunk):
    prepared = chunks.fitted(short(run.prepare(settings(tmp_path, chunk=chunk)), most=2), lines.append)
    assert lines == ["out of memory with chunk 6; goes on with 3", "out of memory with chunk 3; goes on with 1"]
    assert prepared.config.chunk == 1
    alone = outcome(run.prepare(settings(tmp_path, chunk=1)))
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in outcome(prepared)] == \
        [{k: v for k, v in row.items() if k != "seconds"} for row in alone]


def test_memory_for_nobody_is_an_error(tmp_path, lines):
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        chunks.fitted(short(run.prepare(settings(tmp_path)), most=0), lines.append)


@pytest.mark.full
def test_a_run_goes_on_with_the_chunk_that_it_began_with(tmp_path):
    folder = tmp_path / "run"
    begun = {**SETTINGS, "cache_dir": str(tmp_path), "workdir": str(folder)}
    fedjax_run = run.train(**begun, chunk=2)
    assert fedjax_run.plan["chunk"] == 2
    longer = run.train(**{**begun, "rounds": 6})
    assert longer.plan["chunk"] == 2 and longer.history[-1]["round"] == 6
    assert json.loads((folder / "config.json").read_text())["config"]["chunk"] == 2
