"""Least squares in float64, some clients with fewer rows than unknowns."""
from __future__ import annotations

import functools
import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

from fedjax_lab import registry
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts.transforms.composed import composed
from fedjax_lab.types import Aux, Population, Stream, Task

L, SIZES = 5, np.array([2, 3, 8, 4, 1, 6])  # 4 rows on average, which floats hold exactly
RHO, WEIGHT = 2.0, 3.0


def task() -> Task:
    def metrics(outputs, batch):
        return {"loss": (outputs - batch["y"]) ** 2}

    def loss(params, batch, key):
        values = metrics(batch["x"] @ params["w"], batch)["loss"]
        return jnp.where(batch["mask"], values, 0).sum() / jnp.maximum(batch["mask"].sum(), 1), Aux()

    return Task("line", lambda key: {"w": jnp.zeros(L)}, lambda params, batch, key=None: batch["x"] @ params["w"], loss, metrics)


@functools.cache
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(SIZES.sum(), L)) + 0.5
    return x, x @ rng.normal(size=L) + 0.1 * rng.normal(size=len(x))


def people() -> Population:
    x, y = rows()
    train = Stream({"x": x, "y": y}, (np.cumsum(SIZES) - SIZES).astype(np.int32), SIZES.astype(np.int32))
    return Population(train, train, np.zeros((6, 0), np.float32))


OPTIONS = {
    "rerce-fed": {"rho": RHO, "weight": WEIGHT}, "rerce-fed-clu": {"rho": RHO, "weight": WEIGHT},
    "consensus-admm": {"rho": RHO / (WEIGHT * 4), "solve": "exact", "weighting": "examples"},
}


@functools.cache
def history(name: str, cohort: int, segments: tuple[int, ...], **parts):
    with jax.enable_x64(True):
        method = composed(registry.make(name, task(), **OPTIONS[name]), **parts)
        return bench.history(method, people(), segments=segments, cohort=cohort, task=task())


def factors() -> tuple[np.ndarray, np.ndarray]:
    """B_k [6, L, L] and w_k = B_k b_k [6, L]."""
    x, y = rows()
    at = np.repeat(np.arange(6), SIZES)
    pieces = [(x[at == k], y[at == k]) for k in range(6)]
    b = np.stack([np.linalg.inv(2 * WEIGHT * x.T @ x + RHO * np.eye(L)) for x, _ in pieces])
    return b, np.stack([b @ (2 * WEIGHT * x.T @ y) for b, (x, y) in zip(b, pieces, strict=True)])


ALL = ("rerce-fed", "rerce-fed-clu", "consensus-admm")
LONG = (1,) * 5 + (3000,)


@pytest.mark.full
def test_without_noise_and_with_everybody_all_three_are_the_same():
    runs = {name: history(name, 6, LONG) for name in ALL}
    for a, b, c in zip(*(runs[name] for name in ALL), strict=True):
        np.testing.assert_allclose(b[0].clients.w, a[0].clients.w, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(c[0].clients.y["w"], a[0].clients.w, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(c[0].server.params["w"], b[0].server.params["w"], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(2 * a[0].server.params["w"] - a[0].server.previous["w"], b[0].server.params["w"], rtol=1e-11, atol=1e-13)
    assert runs["rerce-fed"][0][0].clients.w.dtype == np.float64


@pytest.mark.parametrize("name", ALL)
def test_the_limit_is_least_squares_on_all_rows(name):
    best = np.linalg.lstsq(*rows(), rcond=None)[0]
    state, _ = history(name, 6, LONG)[-1]
    np.testing.assert_allclose(state.server.params["w"], best, rtol=1e-10)


def test_the_invariant_of_rerce_fed():
    b, w = factors()
    inverse = np.linalg.inv(b)
    constant = np.einsum("kij,kj->i", inverse, w)
    for state, _ in history("rerce-fed", 6, LONG):
        held = np.einsum("kij,kj->i", inverse, state.clients.w) - RHO * 6 * state.server.previous["w"]
        np.testing.assert_allclose(held, constant, rtol=1e-9)


@pytest.mark.full
def test_the_absent_rest_in_one_and_go_on_in_the_other():
    b, w = factors()
    runs = {name: history(name, 3, (1,) * 4) for name in ALL[:2]}
    for name, seen in runs.items():
        np.testing.assert_allclose(seen[0][0].clients.w, w, rtol=1e-9)  # the start
        for (before, _), (after, record) in itertools.pairwise(seen):
            drawn, absent = record.rounds["ids"][0], np.setdiff1d(np.arange(6), record.rounds["ids"][0])
            old, s = before.clients, before.server.params["w"]
            if name == "rerce-fed":
                s, received = 2 * s - before.server.previous["w"], old.w
            else:
                received = old.received
            pulled = np.array([old.w[k] + RHO * b[k] @ ((s if k in drawn else received[k]) - old.w[k]) for k in range(6)])
            np.testing.assert_allclose(after.clients.w, pulled, rtol=1e-9)
            if name == "rerce-fed":
                np.testing.assert_allclose(after.server.params["w"], pulled[drawn].mean(0), rtol=1e-9)
            else:
                np.testing.assert_array_equal(after.clients.received[absent], old.received[absent])
                cache = before.server.cache["w"].copy()
                cache[drawn] = (2 * pulled - old.w)[drawn]
                np.testing.assert_allclose(after.server.params["w"], cache.mean(0), rtol=1e-9)
    start = runs["rerce-fed-clu"][0]
    np.testing.assert_allclose(start[0].server.params["w"], 2 * w.mean(0), rtol=1e-9)
    assert start[1].rounds["all_bytes_up"][0].tolist() == [8 * L] * 6 and not start[1].rounds["bytes_up"].any()
    for _, record in runs["rerce-fed-clu"][1:]:
        assert not record.rounds["all_bytes_up"].any() and record.rounds["bytes_up"][0].tolist() == record.rounds["bytes_down"][0].tolist() == [40] * 3


@pytest.mark.full
def test_noise_on_both_links_is_a_matter_of_the_wires():
    quiet, silent, loud = (history("rerce-fed-clu", 3, (1,) * 4, **wires)[-1][0] for wires in (
        {}, {"wire_up": "awgn:0", "wire_down": "awgn:0"}, {"wire_up": "awgn:1e-2", "wire_down": "awgn:1e-2"}))
    np.testing.assert_array_equal(silent.clients.w, quiet.clients.w)
    far = np.abs(loud.clients.w - quiet.clients.w).max()
    assert 1e-3 < far < 1


def test_other_losses_are_refused_in_one_line():
    problem = classifier()
    for name, more in (("rerce-fed", {}), ("rerce-fed-clu", {}), ("consensus-admm", {"solve": "exact"})):
        with pytest.raises(ValueError, match=f"'{name}' .*quadratic.* task 'tiny'") as error:
            sync.build(problem.task, registry.make(name, problem.task, **more), problem.population, bench.rota(7, 3), mesh=mesh.make(1))
        assert "\n" not in str(error.value)
