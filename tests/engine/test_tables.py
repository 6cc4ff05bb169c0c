"""Client tables off the devices in the files of a checkpoint: only what was written, block by block, and damage is noticed."""
from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny
from etils import epath

from fedjax_lab.engine import checkpoint, tables

N = 1000


def table(known=slice(3, None, 7), seed=0) -> tables.Rows:
    rng, there = np.random.default_rng(seed), np.zeros(N, bool)
    there[known] = True
    rows = ({"a": rng.normal(size=(N, 4)).astype(jnp.bfloat16), "b": rng.normal(size=(N, 2, 3)).astype(np.float32)}, rng.integers(0, 9, N, np.int32), np.zeros((N, 0), np.float32))
    return tables.Rows(jax.tree.map(lambda x: np.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, np.zeros((), x.dtype)), rows), there)


def blank() -> tables.Rows:
    return jax.tree.map(np.zeros_like, table())


def saved(folder, clock, state):
    with checkpoint.manager(folder, 2) as manager:
        checkpoint.save(manager, clock, {"clock": clock}, state=state)


@pytest.mark.parametrize("block", [tables.BLOCK, 50])
@pytest.mark.parametrize("known", [slice(0), slice(3, None, 7), slice(None)], ids=str)
def test_a_checkpoint_brings_a_table_back(tmp_path, monkeypatch, block, known):
    monkeypatch.setattr(tables, "BLOCK", block)
    folder, state = epath.Path(tmp_path), {"clients": table(known), "server": jnp.arange(3.0)}
    saved(folder, 4, state)
    found = checkpoint.place(checkpoint.newest(folder, "state").groups["state"], {"clients": blank(), "server": jnp.zeros(3)})
    tiny.same(tiny.host(found), tiny.host(state))
    count = table(known).known.sum()
    files = sorted((p.stat().st_size for p in tmp_path.glob("00000004/state_tables/0*")), reverse=True)
    assert files == sorted((count * size for size in (4 * 2, 6 * 4, 4, 0)), reverse=True)


def test_what_is_saved_is_the_table_of_that_moment(tmp_path):
    live, then = table(), table()
    with checkpoint.manager(epath.Path(tmp_path), 2) as manager:
        checkpoint.save(manager, 1, {}, state=live)
        for leaf in jax.tree.leaves(live):
            leaf[...] = 1
    found = checkpoint.place(checkpoint.newest(epath.Path(tmp_path), "state").groups["state"], blank())
    tiny.same(found, then)


class Watched(np.ndarray):
    """An array that notes how many of its rows are taken at a time."""

    most = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        Watched.most = max(Watched.most, len(found))
        return found


def test_it_is_read_and_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 400)
    rows = np.arange(N * 10, dtype=np.float32).reshape(N, 10)
    tables.write(epath.Path(tmp_path), {".clients": tables.Rows(rows.view(Watched), np.ones(N, bool))})
    assert Watched.most == 10  # of 40 bytes each
    found = tables.read(epath.Path(tmp_path))[".clients.rows"]
    assert isinstance(found.base, np.memmap)  # and not read yet
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_never_read(tmp_path, how):
    folder, states = epath.Path(tmp_path), {n: {"clients": table(seed=n)} for n in (1, 2)}
    for clock, state in states.items():
        saved(folder, clock, state)
    files = [p for p in (tmp_path / "00000002" / "state_tables").iterdir() if p.stat().st_size and "commit" not in p.name]
    assert len(files) == 4
    for file in files:
        data = file.read_bytes()
        middle = len(data) // 2
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(data[:middle] + (bytes([data[middle] ^ 1]) + data[middle + 1 :] if how == "flipped" else b""))
        with warnings.catch_warnings(record=True) as warned:
            found = checkpoint.newest(folder, "state")
        assert found.notes["clock"] == 1 and "00000002 is damaged and passed over" in str(warned[0].message)
        tiny.same(checkpoint.place(found.groups["state"], {"clients": blank()}), states[1])
        file.write_bytes(data)
    assert checkpoint.newest(folder, "state").notes["clock"] == 2


def test_another_form_is_refused(tmp_path):
    saved(epath.Path(tmp_path), 1, table())
    found = checkpoint.newest(epath.Path(tmp_path), "state").groups["state"]
    other = blank()._replace(rows=np.zeros((N, 5), np.float32))
    with pytest.raises(ValueError, match=r"\.rows is nothing, expected float32\[143, 5\]"):
        checkpoint.place(found, other)
