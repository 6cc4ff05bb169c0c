from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import registry, spec
from fedjax_lab.parts.wires import entropy
from fedjax_lab.parts.wires.fedzip import clustered, fedzip, pruned

KEY = jax.random.key(7)
SIZES = jax.jit(entropy.sizes)


def change(seed=0, shape=(40, 25)):
    rng = np.random.default_rng(seed)
    return {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32), "bias": jnp.asarray(rng.normal(size=11), jnp.float32)}


def sent(wire, value, row=()):
    """(code, row, what arrives, bits)."""

    @jax.jit
    def one(value, row):
        code, row = wire.encode(KEY, value, row)
        return code, row, wire.decode(code), wire.bits(code)

    return one(value, row)


def streams():
    """Labels from crowded to empty, 0 the commonest."""
    rng = np.random.default_rng(0)
    for n, rare in ((1, 0.0), (2, 0.5), (17, 0.4), (256, 0.3), (257, 0.01), (1000, 0.002), (1000, 0.0), (64, 1.0)):
        labels = np.where(rng.random(n) < rare, rng.integers(1, 3, n), 0).astype(np.int8)
        yield labels if rare < 1 else np.ones(n, np.int8)


@pytest.mark.parametrize("code", entropy.CODES)
def test_what_is_written_is_read_and_takes_what_was_said(code):
    for labels in streams():
        text = entropy.write(labels, code)
        assert set(text) <= {"0", "1"}
        np.testing.assert_array_equal(entropy.read(text, len(labels)), labels)
        assert len(text) == entropy.TAG + int(SIZES(jnp.asarray(labels))[entropy.CODES.index(code)])


def test_each_code_is_the_shortest_of_some_stream():
    best = {int(np.argmin(SIZES(jnp.asarray(labels)))) for labels in streams()}
    close = np.zeros(300, np.int8)
    close[np.array([7, 291])] = (1, 2)  # far apart: places are cheaper than steps
    assert best | {int(np.argmin(SIZES(jnp.asarray(close))))} == {0, 1, 2}


@pytest.mark.parametrize("options", [{}, {"survivors": True}, {"share": 0.02}, {"share": 1.0}], ids=str)
def test_the_host_decodes_the_same_tensors_from_as_many_bits(options):
    wire, value = fedzip(**options), change()
    code, row, arrived, said = sent(wire, value, wire.init(value))
    total = 0
    for one, name in zip(code[0], ("bias", "kernel"), strict=True):
        labels, centers = np.asarray(one.labels.values), np.asarray(one.centers)
        text = min((entropy.write(labels, code) for code in entropy.CODES), key=len)
        total += len(text) + 8 * len(centers.tobytes())
        np.testing.assert_array_equal(centers[entropy.read(text, len(labels))].reshape(value[name].shape), arrived[name])
        assert len(np.unique(arrived[name])) <= 3 and np.bincount(labels, minlength=3).argmax() == 0
    assert said == total and row == ()


def test_only_the_largest_are_kept():
    x = change()["kernel"]
    kept = np.asarray(pruned(x, 0.2))
    assert np.count_nonzero(kept) == 200 and np.abs(x)[kept != 0].min() >= np.abs(x)[kept == 0].max()
    np.testing.assert_array_equal(kept[kept != 0], x[kept != 0])
    np.testing.assert_array_equal(pruned(x, 1.0), x)
    assert np.count_nonzero(pruned(x[0], 0.01)) == 25


@pytest.mark.parametrize("survivors", [False, True])
def test_the_error_within_clusters_does_not_grow(survivors):
    x = pruned(change()["kernel"], 0.2).reshape(-1)
    errors = []
    many = jax.jit(jax.vmap(lambda passes: clustered(x, passes, survivors)))  # the number of passes may be traced
    for centers, labels in zip(*map(np.asarray, many(jnp.arange(9))), strict=True):
        assert (np.diff(centers) > 0).all() and (not survivors or centers[1] == 0)
        errors.append(np.sum((np.asarray(x) - centers[labels]) ** 2))
    assert (np.diff(errors) <= 1e-4).all() and (survivors or errors[-1] < errors[0])


def test_heavy_tails_leave_nothing_but_the_middle_unless_survivors_are_clustered():
    x = jnp.asarray(np.random.default_rng(0).standard_t(1.2, 20_000), jnp.float32).reshape(200, 100)
    shares = []
    for survivors in (False, True):
        code = sent(fedzip(survivors=survivors), {"w": x})[0]
        shares.append(float(np.mean(code[0][0].labels.values != 0)))
    assert shares[0] < 0.002 and shares[1] > 0.15


def test_nothing_stays_nothing_and_memory_keeps_the_rest():
    wire = fedzip()
    zero = jax.tree.map(jnp.zeros_like, change())
    assert not any(np.any(x) for x in jax.tree.leaves(sent(wire, zero)[2]))
    wire, total, arrived = fedzip(0.1, memory=True), 0, 0
    row = wire.init({"w": change()["kernel"]})
    for seed in range(3):
        value = change(seed)["kernel"]
        _, row, got, _ = sent(wire, {"w": value}, row)
        total, arrived = total + value, arrived + got["w"]
    np.testing.assert_allclose(arrived + row[0][0], total, rtol=1e-4, atol=1e-5)


def test_gaussian_changes_shrink_thirty_times():
    x = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 200)), jnp.float32)}
    sizes = {share: 32 * 60_000 / int(sent(fedzip(share), x)[3]) for share in (0.2, 0.02)}
    assert 24 < sizes[0.2] < 32 and 100 < sizes[0.02] < 180


def test_it_is_registered():
    assert spec.build("wire", "fedzip:0.05,passes=2,survivors=true", registry.catalog("wire")).init(change()) == ()
