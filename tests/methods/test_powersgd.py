from __future__ import annotations

import functools

import bench
import jax
import numpy as np
import pytest

from fedjax_lab import run
from fedjax_lab.config import Config

TASK = bench.split()  # {"body": [3, 4], "head": [4]}
ALWAYS = bench.always(0, 2, 3)
SIZE = np.array([4, 3, 6.0])


@functools.cache
def after(name, rounds=1, **options):
    state, record = bench.run(bench.make(name, TASK, **options), rounds=rounds, cohort=ALWAYS, task=TASK)
    return jax.tree.map(np.asarray, (state._replace(key=()), record))


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


@pytest.mark.full
@pytest.mark.parametrize("options", [{"rank": 8, "ratio": 0.0}, {"ratio": 1000.0}, {"rank": 3, "ratio": 0.0, "memory": "mean"}], ids=["rank", "whole", "mean"])
def test_a_rank_that_suffices_and_no_rank_are_fedavg(options):
    state, _ = after("powersgd", 2, **options)
    np.testing.assert_allclose(flat(state.server.params), flat(after("fedavg", 2)[0].server), rtol=1e-4, atol=1e-6)
    for rows in jax.tree.leaves(state.clients):  # a client may differ from the mean's column space, but the mean does not
        np.testing.assert_allclose(np.average(rows[[0, 2, 3]], 0, SIZE), 0, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("memory", ["own", "mean"])
def test_what_was_sent_and_what_is_remembered_is_the_change(memory):
    """The mean over those who took part, by examples."""
    start = bench.start(bench.make("powersgd", TASK), task=TASK).server.params["body"]
    state, _ = after("powersgd", rank=1, ratio=0.0, memory=memory)
    sent, whole = state.server.params["body"] - start, after("fedavg")[0].server["body"] - start
    left = np.average(state.clients["body"][[0, 2, 3]], 0, SIZE).T
    assert np.linalg.matrix_rank(sent, tol=1e-5) == 1 < np.linalg.matrix_rank(whole, tol=1e-5)
    np.testing.assert_allclose(sent + left, whole, atol=2e-6)
    assert not state.clients["body"][[1, 4, 5]].any() and np.abs(left).max() > 1e-3
    P = state.server.P["body"]
    np.testing.assert_allclose(P.T @ P, np.eye(1), atol=1e-6)


@pytest.mark.parametrize("memory, again", [("own", 0), ("mean", 3)])
def test_factors_are_counted_in_every_exchange(memory, again):
    rounds = after("powersgd", rank=1, ratio=0.0, memory=memory)[1].rounds
    assert rounds["bytes_up"][0].tolist() == [4 * (4 + 4 + 3)] * 3
    assert rounds["bytes_down"][0].tolist() == [4 * (16 + 3 + 4 + again)] * 3


def test_it_takes_no_other_wire():
    with pytest.raises(ValueError, match="'powersgd' refuses it: it is a wire itself"):
        run.method_of(Config(method="powersgd", wire_up="topk"), bench.split())
