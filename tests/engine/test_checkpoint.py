"""Checkpoints: the same bits on any mesh, and damage never goes unnoticed."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny
from etils import epath

from fedjax_lab.engine import checkpoint, mesh, sync
from fedjax_lab.parts.cohorts.markov import markov
from fedjax_lab.parts.wires.topk import topk


class Leaves(NamedTuple):
    z: dict
    a: tuple


TREE = Leaves(
    {1: jnp.ones(3, jnp.bfloat16), 10: jnp.array([True, False]), 2: jnp.zeros((0, 4)), 3: ()},
    (jnp.uint32(7), jax.random.split(jax.random.key(3, impl="rbg"), 2), jnp.arange(6, dtype=jnp.int16).reshape(2, 3)),
)


def write(folder, clock, keep=2, **groups):
    with checkpoint.manager(folder, keep) as manager:
        checkpoint.save(manager, clock, {"clock": clock}, **groups)


def shapes(tree):
    return jax.eval_shape(lambda: tree)


@pytest.mark.parametrize("piece", [checkpoint.PIECE, 5])
def test_leaves_of_every_kind(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(checkpoint, "PIECE", piece)
    folder = epath.Path(tmp_path)
    write(folder, 3, state=TREE, other={"x": jnp.ones(2)})
    saved = checkpoint.newest(folder, "state")
    assert saved.notes == {"clock": 3} and set(saved.groups) == {"state"}
    found = checkpoint.place(saved.groups["state"], shapes(TREE))
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(TREE)]
    tiny.same(tiny.host(found), tiny.host(TREE))


def test_what_evolves_goes_on_on_another_mesh(tmp_path):
    """Rows, the memory of a wire and the state of a sampler, from one device to four."""
    method = tiny.averaging(tiny.task(), tiny.work(batch_size="full"))._replace(up={"model": topk(0.3)})
    sampler, meshes = markov(tiny.N, tiny.SLOTS, arrive=(0.5,)), (mesh.make(1), mesh.make(4))
    one, four = (sync.build(tiny.task(), method, tiny.population(), sampler, mesh=m, length=4, eval_batch=50) for m in meshes)
    likes = [sim.init.eval_shape(sim.world, jax.random.key(0)) for sim in (one, four)]
    programs = [sim.segment.lower(sim.world, like, jnp.int32(0), jnp.int32(0)) for sim, like in zip((one, four), likes, strict=True)]
    start, on = (program.compile() for program in programs)
    state, _ = start(one.world, tiny.start(one), jnp.int32(0), jnp.int32(2))
    write(epath.Path(tmp_path), 2, state=state)
    through, whole = tiny.host(start(one.world, state, jnp.int32(2), jnp.int32(2)))
    state = checkpoint.place(checkpoint.newest(epath.Path(tmp_path), "state").groups["state"], likes[1])
    assert {len(x.devices()) for x in jax.tree.leaves(state)} == {4}
    memory = tiny.host(state.wires[0]["model"])
    assert any(np.any(x) for x in jax.tree.leaves(memory)) and jax.tree.leaves(state.participation)
    tiny.same(tiny.host(on(four.world, state, jnp.int32(2), jnp.int32(2))), (through, whole))


def test_the_last_ones_are_kept(tmp_path):
    for clock in (1, 2, 30):
        write(epath.Path(tmp_path), clock, state={"x": jnp.full(2, clock)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000030"]
    assert checkpoint.newest(epath.Path(tmp_path), "state").notes["clock"] == 30


def spoil(file, how):
    data = file.read_bytes()
    if how == "flipped":
        file.write_bytes(bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 1, *data[len(data) // 2 + 1 :]]))
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()
    return data


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_never_read(tmp_path, how):
    """Each file of the last checkpoint in turn: either it says the same, or the one before is used and the last one named."""
    folder, trees = epath.Path(tmp_path), {n: {"x": jnp.arange(1000.0) * n, "y": jnp.float32(n)} for n in (1, 2)}
    for clock, tree in trees.items():
        write(folder, clock, state=tree)
    passed = 0
    for file in sorted(p for p in (tmp_path / "00000002").rglob("*") if p.is_file() and p.stat().st_size):
        data = spoil(file, how)
        with warnings.catch_warnings(record=True) as warned:
            saved = checkpoint.newest(folder, "state")
        named = [str(w.message) for w in warned if "00000002 is damaged and passed over" in str(w.message)]
        assert len(named) == (saved.notes["clock"] == 1), (file, named)
        tiny.same(tiny.host(checkpoint.place(saved.groups["state"], trees[1])), tiny.host(trees[saved.notes["clock"]]))
        passed += len(named)
        file.write_bytes(data)
    assert passed >= 3


def test_nothing_whole(tmp_path):
    folder = epath.Path(tmp_path) / "checkpoint"
    assert checkpoint.newest(folder, "state") is None
    (folder / "00000005").mkdir(parents=True)
    (folder / "00000006.orbax-checkpoint-tmp").mkdir()
    with pytest.warns(UserWarning) as warned:
        assert checkpoint.newest(folder, "state") is None
    text = [str(w.message) for w in warned]
    assert "00000006.orbax-checkpoint-tmp is half-written" in text[0] and "00000005 is damaged" in text[1]


@pytest.mark.parametrize("like, words", [
    ({"x": jnp.ones(3)}, "['x'] is float32[2], expected float32[3]"),
    ({"x": jnp.ones(2, jnp.int32)}, "['x'] is float32[2], expected int32[2]"),
    ({"z": jnp.ones(2)}, "['z'] is nothing, expected float32[2]"),
])
def test_another_form_is_refused(tmp_path, like, words):
    write(epath.Path(tmp_path), 1, state={"x": jnp.ones(2)})
    with pytest.raises(ValueError) as error:
        checkpoint.place(checkpoint.newest(epath.Path(tmp_path), "state").groups["state"], like)
    assert words in str(error.value)
