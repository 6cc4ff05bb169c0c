"""D-PSGD, DFedAvgM and DFedSAM on six quadratic clients of unequal size: what their cards say exactly."""
from __future__ import annotations

import functools
import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.engine import gossip, mesh, sync
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.mixing import graphs

N, LR = 6, 0.05
RING = np.eye(N) / 3 + np.roll(np.eye(N), 1, 0) / 3 + np.roll(np.eye(N), -1, 0) / 3
PEOPLE = bench.population()


@functools.cache
def path(name, graph="ring", rounds=4, steps=1, order="after", **options):
    """The nodes' models [rounds + 1, N, 3]."""
    method = bench.make(name, **{"lr": LR, "local_steps": 3, **options})
    sim = sync.build(bench.TASK, method, PEOPLE, gossip.seating(uniform(N, N), N), mesh=mesh.make(1), chunk=3, length=1,
                     schedule=gossip.schedule(getattr(graphs, graph)(N, 0), steps=steps, order=order))
    state = sim.init(sim.world, jax.random.key(0))
    segment = sim.segment.lower(sim.world, state, jnp.int32(0), jnp.int32(1)).compile()
    seen = [np.array(state.server.server["x"], np.float64)]
    for clock in range(rounds):
        state, _ = segment(sim.world, state, jnp.int32(clock), jnp.int32(1))
        seen.append(np.array(state.server.server["x"], np.float64))
    return np.array(seen)


def slopes(x):
    """The nodes' full gradients [N, 3] at x [N, 3], by hand."""
    train, found = PEOPLE.train, []
    for i in range(N):
        rows = slice(train.offset[i], train.offset[i] + train.size[i])
        found.append((train.examples["a"][rows] * (x[i] - train.examples["o"][rows])).mean(0))
    return np.array(found)


GOSSIP_SGD = {"order": "beside", "local_steps": 1}


def test_on_a_full_graph_gossip_sgd_is_parallel_sgd():
    seen = path("dpsgd", "full", order="after", local_steps=1)
    x = seen[0]
    for after in seen[1:]:
        x = x - LR * slopes(x).mean(0)
        np.testing.assert_allclose(after, x, rtol=1e-5)


@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_the_mean_follows_the_mean_gradient(graph):
    seen = path("dpsgd", graph, **GOSSIP_SGD)
    for x, after in itertools.pairwise(seen):
        np.testing.assert_allclose(after.mean(0), x.mean(0) - LR * slopes(x).mean(0), rtol=1e-5)
    assert seen[-1].std(0).max() > 0.01


@pytest.mark.full
def test_gossip_sgd_takes_the_gradient_before_mixing():
    seen = path("dpsgd", **GOSSIP_SGD)
    for x, after in itertools.pairwise(seen):
        np.testing.assert_allclose(after, RING @ x - LR * slopes(x), rtol=1e-5, atol=1e-6)
    late = path("dpsgd", order="after", local_steps=1)
    for x, after in itertools.pairwise(late):
        np.testing.assert_allclose(after, RING @ (x - LR * slopes(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_nodes_disagree_in_proportion_to_the_rate():
    apart = [np.linalg.norm(end - end.mean(0)) for end in (path("dpsgd", rounds=400, lr=lr, **GOSSIP_SGD)[-1] for lr in (0.02, 0.01))]
    assert 1.8 < apart[0] / apart[1] < 2.2


@pytest.mark.full
def test_one_heavy_ball_step_is_gossip_sgd():
    np.testing.assert_allclose(path("dfedavgm", local_steps=1, theta=0.7), path("dpsgd", local_steps=1), rtol=1e-6)


@pytest.mark.full
def test_momentum_is_the_difference_of_iterates():
    """Equation (1), by hand."""
    seen = path("dfedavgm", theta=0.7)
    for x, after in itertools.pairwise(seen):
        before, y = x, x
        for _ in range(3):
            before, y = y, y - LR * slopes(y) + 0.7 * (y - before)
        np.testing.assert_allclose(after, RING @ y, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_without_ascent_sharpness_aware_gossip_is_dfedavgm():
    np.testing.assert_allclose(path("dfedsam", rho=0.0, momentum=0.7), path("dfedavgm", theta=0.7), rtol=1e-6)
    assert np.abs(path("dfedsam", rho=0.5, momentum=0.7) - path("dfedavgm", theta=0.7)).max() > 0.01


@pytest.mark.full
def test_on_a_full_graph_it_is_fedsam_with_everybody():
    method = bench.make("fedsam", rho=0.3, lr=LR, local_steps=3, weighting="uniform")
    state, _ = bench.run(method, PEOPLE, rounds=4, cohort=uniform(N, N))
    np.testing.assert_allclose(path("dfedsam", "full", rho=0.3, momentum=0.0)[-1], np.tile(method.deploy(state.server)["x"], (N, 1)), rtol=1e-5)


@pytest.mark.full
def test_several_gossip_steps_are_a_power_of_the_matrix():
    one, four = path("dfedsam", rounds=1), path("dfedsam-mgs", rounds=1, steps=4)
    np.testing.assert_allclose(four[1], np.linalg.matrix_power(RING, 3) @ one[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(four[1].mean(0), one[1].mean(0), rtol=1e-5)
