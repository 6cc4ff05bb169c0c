"""Robust rules against what their papers say, in float64 numpy, one upload after the other."""
from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.aggregators import bounded, coordinate, nearest
from fedjax_lab.parts.aggregators import flag as flags
from fedjax_lab.parts.gram import distances
from fedjax_lab.parts.transforms.composed import rule_of


def pairwise(g):
    return np.array([[((a - b) ** 2).sum() for b in g] for a in g])


def krum_order(g, f, d=None):
    """Best first; of two that are each other's only neighbor, the one that is nearer to all."""
    d, n = pairwise(g) if d is None else d, len(g)
    near = [np.sort(np.delete(d[i], i))[: max(n - f - 2, 1)].sum() for i in range(n)]
    return np.lexsort((d.sum(1), near))


def krum(g, w, f):
    return g[krum_order(g, f)[0]]


def multi_krum(g, w, f):
    best = krum_order(g, f)[: len(g) - f - 2]
    return np.average(g[best], 0, w[best])


def bulyan(g, w, f):
    d, left, chosen = pairwise(g), list(range(len(g))), []
    for _ in range(len(g) - 2 * f):
        best = left[krum_order(g[left], f, d[np.ix_(left, left)])[0]] if len(left) > 1 else left[0]
        chosen.append(best)
        left.remove(best)
    out = np.empty(g.shape[1])
    for j in range(g.shape[1]):
        v = g[chosen, j]
        near = np.argsort(np.abs(v - np.median(v)), kind="stable")[: len(g) - 4 * f]
        out[j] = np.average(v[near], weights=w[np.array(chosen)[near]])
    return out


def nnm(g, w, f):
    return np.array([g[np.argsort(d, kind="stable")[: len(g) - f]].mean(0) for d in pairwise(g)])


def rfa(g, w, f):
    v = np.average(g, 0, w)
    for _ in range(8):
        b = w / np.maximum(np.linalg.norm(v - g, axis=1), 1e-6)
        v = b @ g / b.sum()
    return v


def centered_clip(g, w, f):
    v = np.median(g, 0)
    for _ in range(3):
        far = np.linalg.norm(g - v, axis=1)
        v = v + w / w.sum() @ (np.minimum(1, np.median(far) / far)[:, None] * (g - v))
    return v


def norm_clip(g, w, f):
    size = np.linalg.norm(g, axis=1)
    return np.average(g * np.minimum(1, np.median(size) / size)[:, None], 0, w)


def flag(g, w, f, steps=5, lam=0.0):
    """From the singular vectors of the columns themselves."""
    n = len(g)
    x = (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    d = np.stack([x[:, i] - x[:, j] for i, j in pairs], 1) if lam else np.zeros((len(x), 0))
    y = np.zeros((len(x), 1))
    for _ in range(steps):
        c, cc = ((np.abs(1 - ((y.T @ v) ** 2).sum(0)) + 1e-7) ** -0.25 for v in (x, d))
        y = np.linalg.svd(np.concatenate([c * x, np.sqrt(lam / (n * (n - 1))) * cc * d], 1), full_matrices=False)[0][:, : (n + 2) // 2]
    return np.median(np.linalg.norm(g, axis=1)) * y @ (y.T @ x @ w) / w.sum()


RULES = {
    "flag": (lambda f: flags.flag(), flag), "flag-pairs": (lambda f: flags.flag(lam=3.0, steps=2), lambda g, w, f: flag(g, w, f, 2, 3.0)),
    "krum": (lambda f: nearest.krum(f=f), krum), "multi-krum": (lambda f: nearest.multi_krum(f=f), multi_krum),
    "bulyan": (lambda f: nearest.bulyan(f=f), bulyan), "rfa": (lambda f: bounded.rfa(), rfa),
    "centered-clip": (lambda f: bounded.centered_clip(), centered_clip), "norm-clip": (lambda f: bounded.norm_clip(), norm_clip),
    "nnm": (lambda f: nearest.nnm(f=f), lambda g, w, f: np.average(nnm(g, w, f), 0, w)),
    "nnm+median": (lambda f: rule_of(f"nnm:f={f}+median:weights=equal"), lambda g, w, f: np.median(nnm(g, w, f), 0)),
    "nnm+krum": (lambda f: rule_of(f"nnm:f={f}+krum:f={f}"), lambda g, w, f: krum(nnm(g, w, f), w, f)),
    "norm-clip+rfa": (lambda f: rule_of("norm-clip:1+rfa"),
                      lambda g, w, f: rfa(g * np.minimum(1, 1 / np.linalg.norm(g, axis=1))[:, None], w, f)),
    "trimmed-mean": (lambda f: coordinate.trimmed_mean(f=f, weights="equal"),
                     lambda g, w, f: np.sort(g, 0)[f : len(g) - f].mean(0)),
}


def stack_of(rng, n, d, f, far):
    """n uploads of which f are `far` away, near each other's size otherwise, as a tree [n, ...]; and the same in float64 [n, d]."""
    g = 1 + rng.normal(size=(n, d)) * rng.uniform(0.5, 2, (n, 1))
    g[rng.choice(n, f, replace=False)] *= -far
    g = g.astype(np.float32)
    return {"a": g[:, : d // 3].reshape(n, 1, -1), "b": g[:, d // 3 :]}, g.astype(np.float64)


def flat(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


LARGE = 100, 100_000, 20
CASES = [(name, 23, 60, 4) for name in RULES] + [pytest.param(name, *LARGE, marks=pytest.mark.full) for name in RULES if name != "flag-pairs"]


@functools.cache
def combine(name, f):
    rule = RULES[name][0](f)
    return jax.jit(lambda stack, weight: rule.combine(stack, weight, None))


def rows(where, stack, other):
    return jax.tree.map(lambda v: np.where(where.reshape(-1, *[1] * (v.ndim - 1)), v, other).astype(v.dtype), stack)


NEAR_TIES = {("flag", 100_000, 1)}  # the subspace ends between eigenvalues that are 0.6% apart: resolved in float64


@pytest.mark.parametrize("far", [1, 1e4])
@pytest.mark.parametrize(("name", "n", "d", "f"), CASES)
def test_rules_are_the_papers(name, n, d, f, far):
    rng = np.random.default_rng(n)
    stack, g = stack_of(rng, n, d, f, far)
    weight = rng.integers(1, 9, n).astype(np.float32)
    here = rng.permutation(n) >= n // 10  # the rest is not heard, and its rows are rotten
    wide = (name, d, far) in NEAR_TIES
    with jax.enable_x64(wide):
        given = jax.tree.map(lambda v: v.astype(np.float64 if wide else np.float32), (rows(here, stack, np.nan), weight * here))
        got = combine(name, f)(*given)
    expected = RULES[name][1](g[here], weight[here].astype(np.float64), f)
    np.testing.assert_allclose(flat(got), expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", RULES)
def test_the_order_the_unheard_and_nan_change_nothing(name):
    rng = np.random.default_rng(3)
    stack, _ = stack_of(rng, 23, 60, 4, 50)
    rule, weight, here = combine(name, 4), rng.integers(1, 4, 23).astype(np.float32), np.arange(23) > 1
    expected, close = flat(rule(stack, weight * here)), {"rtol": 1e-4, "atol": 1e-5}
    order = rng.permutation(23)
    np.testing.assert_allclose(flat(rule(jax.tree.map(lambda v: v[order], stack), (weight * here)[order])), expected, **close)
    if name != "trimmed-mean":  # for which NaN is the largest value
        for rotten in (np.nan, np.inf):
            np.testing.assert_allclose(flat(rule(rows(here, stack, rotten), weight)), expected, **close)
    assert not flat(rule(stack, 0 * weight)).any()


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("nnm", "norm-clip")])
def test_breakdown(name):
    """As f colluders go to infinity the aggregate stays with the honest."""
    stack, g = stack_of(np.random.default_rng(5), 23, 60, 0, 1)
    reach = np.linalg.norm(g - g.mean(0), axis=1).max()
    for far in (1e2, 1e4) if name == "rfa" else (1e2, 1e6):  # Weiszfeld's steps cross a constant share of the way
        attacked = rows(np.arange(23) >= 4, stack, far)
        got = bounded.rfa(60).combine(attacked, np.ones(23, np.float32), None) if name == "rfa" else combine(name, 4)(attacked, np.ones(23, np.float32))
        assert np.linalg.norm(flat(got) - g.mean(0)) < 2 * reach


def test_no_upload_moves_the_mean_of_clipped_ones_by_more_than_its_share():
    stack, _ = stack_of(np.random.default_rng(5), 23, 60, 0, 1)
    sent = [flat(bounded.norm_clip(3.0).combine(rows(np.arange(23) > 0, stack, v), np.ones(23, np.float32), None)) for v in (0, 1e6)]
    assert np.linalg.norm(sent[1] - sent[0]) <= 3 / 23 + 1e-5 and np.linalg.norm(sent[1]) <= 3


def test_without_attackers_rules_are_the_mean():
    stack, g = stack_of(np.random.default_rng(7), 9, 12, 0, 1)
    weight = np.arange(1, 10).astype(np.float32)
    mean, weighted = g.mean(0), np.average(g, 0, weight)
    for rule in (nearest.multi_krum(0.0, m=9), nearest.bulyan(0.0), bounded.norm_clip(1e9), bounded.centered_clip(1e9, steps=1)):
        np.testing.assert_allclose(flat(rule.combine(stack, weight, None)), weighted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat(nearest.nnm(0.0).combine(stack, weight, None)), mean, rtol=1e-4, atol=1e-5)
    mixed, _ = nearest.nnm(0.0).mix(stack, weight, None)
    np.testing.assert_allclose(np.ptp(mixed["b"], 0), 0, atol=1e-6)


def test_mixing_brings_the_honest_nearer_to_each_other():
    stack, g = stack_of(np.random.default_rng(8), 17, 30, 3, 40)
    mixed, _ = nearest.nnm(f=3).mix(stack, np.ones(17, np.float32), None)
    honest = np.abs(g).max(1) < 20
    mixed = np.concatenate([np.reshape(mixed["a"], (17, -1)), mixed["b"]], 1)
    assert mixed[honest].var(0).sum() < g[honest].var(0).sum() / 2


def test_the_geometric_median_of_points_on_a_line_is_their_median_and_steps_only_improve():
    line = {"x": np.outer([0, 1, 2, 7, 50], [3.0, 4]).astype(np.float32)}
    end = bounded.rfa(200).combine(line, np.ones(5, np.float32), None)["x"]
    np.testing.assert_allclose(end, [6, 8], atol=1e-2)
    values = [np.linalg.norm(line["x"] - bounded.rfa(steps).combine(line, np.ones(5, np.float32), None)["x"], axis=1).sum()
              for steps in range(1, 12)]
    assert (np.diff(values) <= 1e-3).all()


def test_distances_are_exact_where_uploads_have_much_in_common_and_some_are_far():
    rng = np.random.default_rng(9)
    g = (1e3 + rng.normal(size=(9, 400)) * 0.1).astype(np.float32)
    g[7] *= -1e3
    present = np.arange(9) != 4
    got = np.asarray(distances({"x": jnp.asarray(g)}, jnp.asarray(present)))
    near = [i for i in range(9) if i not in (4, 7)]
    np.testing.assert_allclose(got[np.ix_(near, near)], pairwise(g[near].astype(np.float64)), rtol=1e-3)
    assert np.isinf(got[4, :4]).all() and got[4, 4] == 0 and np.isinf(got[:4, 4]).all()


@pytest.mark.parametrize(("rule", "n", "most"), [
    (nearest.krum(), 20, 4), (nearest.krum(0.45), 20, 8), (nearest.krum(f=7), 10, 3), (nearest.bulyan(0.3), 20, 4), (nearest.bulyan(), 20, 4),
    (bounded.rfa(), 20, 9), (coordinate.median(), 20, 9), (coordinate.trimmed_mean(0.1), 20, 2), (nearest.nnm(0.3), 20, 6),
    (rule_of("nnm:0.4+krum:0.2"), 20, 4), (rule_of("norm-clip+median"), 5, 2)])
def test_what_a_rule_tolerates(rule, n, most):
    assert rule.tolerates(n) == most
    assert bounded.norm_clip().tolerates is None and math.isfinite(most)


def test_flag_of_all_ranks_is_the_mean_of_the_normalized_and_of_clones_their_direction():
    stack, g = stack_of(np.random.default_rng(2), 9, 30, 0, 1)
    ones, units = np.ones(9, np.float32), g / np.linalg.norm(g, axis=1, keepdims=True)
    np.testing.assert_allclose(flat(flags.flag(9, scale="code").combine(stack, ones, None)), units.mean(0), rtol=1e-3, atol=1e-4)
    clones = jax.tree.map(lambda v: np.repeat(v[:1], 9, 0), stack)
    np.testing.assert_allclose(flat(flags.flag().combine(clones, ones, None)), g[0], rtol=1e-3, atol=1e-4)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0].astype(np.float32)
    turned = {"a": stack["a"], "b": stack["b"] @ turn}
    before, after = (flags.flag().combine(v, ones, None) for v in (stack, turned))
    np.testing.assert_allclose(after["b"], before["b"] @ turn, rtol=1e-3, atol=1e-3)


def test_refusals():
    per_entry = {"a": np.ones((11, 1, 10)), "b": np.ones((11, 20))}
    stack, _ = stack_of(np.random.default_rng(1), 11, 30, 0, 1)
    with pytest.raises(ValueError, match="^aggregator 'krum' compares whole uploads: it needs one weight for each"):
        nearest.krum().combine(stack, per_entry, None)
    with pytest.raises(ValueError, match="^--aggregator=krum[+]median: 'krum' aggregates, so nothing comes after it; nnm and norm-clip may"):
        rule_of("krum+median")
    with pytest.raises(ValueError, match="^--aggregator=media: unknown aggregator 'media'.*did you mean 'median'"):
        rule_of("nnm+media")
