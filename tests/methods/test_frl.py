from __future__ import annotations

import functools
import math

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry
from fedjax_lab.methods.communication.frl import ballots, masked, places, votes

PROBLEM = problems.classifier()


@functools.cache
def histories(**options):
    method = registry.make("frl", PROBLEM.task, **{"lr": 0.2, "batch_size": "full", "local_steps": 3, **options})
    return bench.start(method, PROBLEM.population, PROBLEM.task), bench.history(method, PROBLEM.population, task=PROBLEM.task)


def counted(*given):
    """The sum of ballots, one after the other."""
    rule, acc = votes(), None
    for ballot, weight in given:
        acc = rule.zero(ballot, jnp.float32(1)) if acc is None else acc
        acc = rule.add(acc, ballot, jnp.float32(weight))
    return rule.finish(acc)


@pytest.mark.full
@pytest.mark.parametrize("rank", ["size", "raw"])
def test_scores_are_the_first_ones_dealt_anew(rank):
    start, runs = histories(rank=rank)
    for state, _ in runs:
        for name, scores in state.server["scores"].items():
            first = np.asarray(start.server["scores"][name])
            np.testing.assert_array_equal(np.sort(scores, None), np.sort(first, None))
            assert (first.min() < 0) == (rank == "raw") and np.abs(first).max() <= 1 / math.sqrt(first.shape[0])
        jax.tree.map(np.testing.assert_array_equal, state.server["frozen"], start.server["frozen"])
    assert (runs[-1][0].server["scores"]["w1"] != start.server["scores"]["w1"]).any()


@pytest.mark.full
def test_weights_have_one_size_and_the_share_that_is_kept():
    task = masked(PROBLEM.task, 0.25, False)
    params = task.init(jax.random.key(0))
    for name, scores in params["scores"].items():
        W = params["frozen"][name]
        np.testing.assert_allclose(np.abs(W), math.sqrt(2 / W.shape[0]), rtol=1e-6)
        slope = jax.grad(lambda s: task.loss({**params, "scores": s}, whole(), None)[0])(params["scores"])[name]
        inner = jax.grad(lambda w: PROBLEM.task.loss(w, whole(), None)[0])(used(params))[name]
        np.testing.assert_allclose(slope, np.sign(scores) * W * inner, rtol=1e-4, atol=1e-7)
        kept = np.asarray(used(params)[name] != 0)
        assert kept.sum() == round(0.25 * W.size) and np.abs(scores)[kept].min() > np.abs(scores)[~kept].max()
    np.testing.assert_allclose(task.apply(params, whole()), PROBLEM.task.apply(used(params), whole()), rtol=1e-5)


def used(params):
    found = dict(params["frozen"])
    for name, scores in params["scores"].items():
        found[name] = jnp.where(places(jnp.abs(scores)) >= scores.size - round(0.25 * scores.size), found[name], 0)
    return found


def whole():
    return bench.client(PROBLEM.population, 1).train.whole()


def test_a_vote():
    one, two = jnp.array([[2, 0], [1, 3]], jnp.int32), jnp.array([[0, 1], [2, 3]], jnp.int32)
    np.testing.assert_array_equal(counted((one, 1), (two, 7), (one, 0)), one + two)  # weights say only who is there
    np.testing.assert_array_equal(counted((two, 1), (one, 1)), one + two)
    np.testing.assert_array_equal(places(counted(*[(one, 1)] * 5)), one)  # the same ballots are that ballot
    loud = counted((one, 1), (1000 * two - 7, 1))
    np.testing.assert_array_equal(loud, one + two)  # only the order of what is said counts
    assert np.abs(counted((one, 1), (3 - one, 1)) - one).max() <= one.size - 1
    np.testing.assert_array_equal(counted((one, 1), (-one, 1)), 3)  # the reverse takes one vote away


@pytest.mark.full
def test_the_server_takes_the_one_ballot():
    start, _ = histories()
    method = registry.make("frl", PROBLEM.task, lr=0.2, batch_size="full", local_steps=3)
    row = bench.client(PROBLEM.population, 1)
    ballot = method.local(jax.random.key(0), {"model": start.server}, (), row).upload["model"]
    alone, _ = bench.run(method, PROBLEM.population, rounds=1, cohort=bench.always(1), task=PROBLEM.task)
    jax.tree.map(lambda s, b: np.testing.assert_array_equal(places(s), b), dict(alone.server["scores"]), ballot)


def test_bytes_are_those_of_permutations():
    _, runs = histories()
    size = -(-(20 * 5 + 12 * 4) // 8)
    assert ballots().bits({"w1": jnp.zeros(20), "w2": jnp.zeros(12)}) == 148
    for way in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(runs[0][1].rounds[way][0], size)


def test_there_must_be_something_to_rank():
    with pytest.raises(ValueError, match="'frl' needs a model with matrices or kernels .* task 'quadratic'"):
        bench.make("frl")
