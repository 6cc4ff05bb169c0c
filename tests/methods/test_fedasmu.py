from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clock import rolled
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lab.events import Arrival, Update
from fedjax_lab.methods.schedules.fedasmu import alpha_of, beta_of
from fedjax_lab.parts import requests
from fedjax_lab.parts.schedules.replay import replay

FIXED = {"lam": 0.0, "gamma": 0.0, "control_lr": 0.0}
LATE = rolled("triggered:0.2,law=fixed:1/2/4", rounds=9, watched=True)


@pytest.mark.full
def test_with_fixed_controls_it_is_fedasync():
    mine = bench.path("fedasmu", cohort=LATE, rounds=9, iota=0.5, mu_a=3.0, **FIXED)
    theirs = bench.path("fedasync", cohort=LATE, rounds=9, alpha=1.5 / 2.5, rho=0.0, staleness="constant")
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert np.abs(bench.path("fedasmu", cohort=LATE, rounds=9, iota=0.5, mu_a=3.0, **FIXED | {"gamma": 1.0}) - mine).max() > 1e-3


@pytest.mark.full
def test_where_nobody_moves_nothing_moves():
    np.testing.assert_array_equal(bench.path("fedasmu", cohort=LATE, rounds=9, lr=0.0), np.ones(bench.DIM))


def objective(i, x):
    """F_i by hand."""
    train = bench.population().train
    rows = slice(train.offset[i], train.offset[i] + train.size[i])
    return 0.5 * (train.examples["a"][rows] * (x - train.examples["o"][rows]) ** 2).sum(1).mean()


@pytest.mark.full
def test_the_controls_follow_the_derivative_of_the_objective_after_the_update():
    """F_i(w_2(c)) of client 1, which was sent w_0; by jax.grad through w_2 = (1 - alpha(c)) w_1 + alpha(c) y."""
    updates = [Update(1.0, (Arrival(0, 0),)), Update(2.0, (Arrival(1, 0),))]
    c, lr = {"lam": 0.8, "sigma": 0.7, "iota": 0.3}, 1e-2
    method = bench.make("fedasmu", control_lr=lr, mu_a=1.5, **c)
    (first, _), (second, _) = bench.history(method, segments=(1, 1), cohort=replay(updates))
    y = bench.path("fedavg", cohort=bench.always(1), rounds=1)

    def after(c):
        alpha = alpha_of(c, 2.0, 2.0, 1.5)
        return objective(1, (1 - alpha) * first.server.params["x"] + alpha * y)

    slope = jax.grad(after)(jnp.array([*c.values()]))
    np.testing.assert_allclose(second.clients.upload[1], jnp.array([*c.values()]) - lr * slope, rtol=1e-5)
    assert (np.abs(slope) > 1e-3).all()
    np.testing.assert_array_equal(second.clients.upload[2:], np.tile(np.float32([*c.values()]), (4, 1)))


@pytest.mark.full
def test_the_share_taken_over_follows_the_derivative_of_the_next_loss():
    """F_1 right after the merge, by jax.grad through (1 - beta) y + beta w_g: the client asks after two of its five steps, when w_1 is there."""
    updates = [Update(1.0, (Arrival(0, 0),)), Update(2.0, (Arrival(1, 0, ends=np.array([0.5, 1.5, 1.7, 1.8, 1.9])),))]
    c, lr = {"gamma": 1.3, "upsilon": 0.4}, 1e-2
    method = bench.make("fedasmu", control_lr=lr, mu_b=1.5, slots=1, **c)
    (first, _), (second, record) = bench.history(method, segments=(1, 1), cohort=replay(updates))
    y = bench.path("fedavg", cohort=bench.always(1), rounds=1, local_steps=2)

    def after(c):
        beta = beta_of(c, 2.0, 2.0, 1.5)
        return objective(1, (1 - beta) * y + beta * first.server.params["x"])

    slope = jax.grad(after)(jnp.array([*c.values()]))
    np.testing.assert_allclose(second.clients.merge[1], jnp.array([*c.values()]) - lr * slope, rtol=1e-5)
    gain = objective(1, y) - after(jnp.array([*c.values()]))
    np.testing.assert_allclose(second.server.policy, 0, atol=1e-7)  # one slot: nothing to choose
    assert abs(gain) > 1e-3 and bool(second.clients.habit.seen[1])
    assert record.rounds["bytes_down"][0].tolist() == [2 * (12 + 4) + 12]  # w_0 and w_1 with the policy, w_2
    assert record.rounds["bytes_up"][0].tolist() == [12 + 4 + 4]  # the model, the hint, h


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(0, 50)] * 4), st.floats(0, 1), st.integers(1, 10**6), st.integers(1, 10**4), st.floats(0.01, 20))
def test_shares_are_shares(controls, upsilon, t, age, mu):
    lam, sigma, iota, gamma = np.float32(controls)
    alpha = alpha_of((lam, min(sigma, 3), iota), np.float32(t), np.float32(age), np.float32(mu))
    beta = beta_of((gamma, np.float32(upsilon)), np.float32(t), np.float32(age + 1), np.float32(mu))
    assert 0 <= alpha < 1 and 0 <= beta < 1


def test_values_of_slots_are_learned():
    before = requests.habit(4)._replace(values=jnp.arange(12.0).reshape(4, 3), slot=jnp.int32(1), seen=jnp.bool_(True))
    choices = [requests.choose(jax.random.key(s), before, jnp.zeros(4), 0.0) for s in range(3)]
    assert {(int(c.slot), int(c.move)) for c in choices} == {(0, 2)}  # the best of Q[1] is its last move, one slot back
    after = requests.rewarded(before, choices[0], jnp.float32(3.0), 0.1, 0.5)
    expected = np.array(before.values)
    expected[1, 2] += 0.1 * (3 + 0.5 * 2 - 5)
    np.testing.assert_allclose(after.values, expected, rtol=1e-6)
    assert int(after.slot) == 0 and not requests.hint(before, choices[0], jnp.float32(1.0), jnp.zeros(4)).any()
    tried = [requests.choose(jax.random.key(s), before, jnp.zeros(4), 1.0) for s in range(60)]
    assert {int(c.slot) for c in tried} == {0, 1, 2}
    edge = before._replace(slot=jnp.int32(3), values=before.values.at[3].set(jnp.array([0.0, 9.0, 0.0])))
    assert int(requests.choose(jax.random.key(0), edge, jnp.zeros(4), 0.0).slot) == 3


def test_the_first_slot_is_a_policys_and_follows_its_reward():
    never, theta = requests.habit(3), jnp.log(jnp.array([0.2, 0.7, 0.1]))
    chosen = jax.vmap(lambda s: requests.choose(jax.random.key(s), never, theta, 0.5).slot)(jnp.arange(3000))
    np.testing.assert_allclose(np.bincount(chosen, minlength=3) / 3000, [0.2, 0.7, 0.1], atol=0.03)
    choice = requests.Choice(jnp.int32(1), jnp.int32(0))
    slope = jax.grad(lambda theta: 2.0 * jax.nn.log_softmax(theta)[1])(theta)
    np.testing.assert_allclose(requests.hint(never, choice, jnp.float32(2.0), theta), slope, rtol=1e-5)
    assert not requests.rewarded(never, choice, jnp.float32(2.0), 0.1, 0.9).values.any()
