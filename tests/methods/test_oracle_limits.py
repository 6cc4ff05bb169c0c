"""The exact checks of the cards that take more than two runs side by side, and the coins of the methods that toss them."""
from __future__ import annotations

import numpy as np
import problem as problems
import pytest
import test_oracles as oracles


def test_the_dual_is_eliminated_exactly_and_the_limit_is_the_least_squares_solution():
    problem, n, rho, weight, count = problems.regression(), len(problems.SIZES), 5.0, 2.0, 500
    turns = oracles.turns("regression", n)[:1] * count
    rerce, clu = (np.array(oracles.ORACLES[slug].run(problem, turns, lr=0.0, rho=rho, weight=weight))
                  for slug in ("rerce-fed", "rerce-fed-clu"))

    zero, eye = np.zeros(problems.DIM), np.eye(problems.DIM)
    scale = weight * problems.SIZES
    curvature = np.array([[s * problem.curvature(zero, problem.rows(i), e) for e in eye] for i, s in enumerate(scale)])
    slope = np.array([s * problem.gradient(zero, problem.rows(i)) for i, s in enumerate(scale)])
    w, z, admm = zero, np.zeros((n, problems.DIM)), []
    for _ in range(count):
        y = np.array([np.linalg.solve(curvature[i] + rho * eye, rho * w - z[i] - slope[i]) for i in range(n)])
        w = (y + z / rho).mean(0)
        z = z + rho * (y - w)
        np.testing.assert_allclose(z.sum(0), 0, atol=1e-10)
        admm.append(w)
    before = np.concatenate([zero[None], admm[:-1]])
    np.testing.assert_allclose(rerce, admm, atol=1e-11)
    np.testing.assert_allclose(clu, 2 * np.array(admm) - before, atol=1e-11)
    np.testing.assert_allclose(rerce[-1], np.linalg.solve(curvature.sum(0), -slope.sum(0)), atol=1e-8)


def test_consensus_admm_ends_at_the_optimum_of_its_weighting():
    problem = problems.bowl()
    rows, zero, ones = [problem.rows(i) for i in range(problem.clients)], np.zeros(problems.DIM), np.ones(problems.DIM)
    curvature = np.array([problem.curvature(zero, r, ones) for r in rows])
    slope = np.array([problem.gradient(zero, r) for r in rows])
    for weighting, share in (("uniform", np.ones(problem.clients)), ("examples", problem.size)):
        turns = oracles.turns("bowl") * 70
        last = oracles.ORACLES["consensus-admm"].run(problem, turns, lr=0.0, solve="exact", weighting=weighting)[-1]
        np.testing.assert_allclose(last, -(share @ slope) / (share @ curvature), atol=1e-6)


def test_fedlin_ends_at_the_optimum_whatever_the_numbers_of_steps():
    problem = problems.bowl()
    last = oracles.ORACLES["fedlin"].run(problem, oracles.turns("bowl", problem.clients) * 50, lr=0.3)[-1]
    slope = np.mean([problem.gradient(last, problem.rows(i)) for i in range(problem.clients)], 0)
    np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_rounds_of_anchors_and_miners_in_turn_are_gradient_descent_every_second_round():
    amd = oracles.oracle("fedamd", "classifier", {"p": "sequential", **oracles.SAME}, 7)
    gd = oracles.oracle("fedsgd", "classifier", {**oracles.ALIKE, **oracles.SAME}, 7)
    oracles.close(amd[1::2], gd[:3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("slug", ["fedamd", "fedpage"])
def test_coins_fall_as_often_as_asked(slug):
    p, rounds, coins, module = 0.3, 30, [], oracles.ORACLES[slug]
    options = {"p": p, "lr": 0.02}  # small steps, so that the moves, which the coins are read off, stay large
    actual = oracles.engine(slug, "bowl", options, rounds=rounds)
    more = {"everyone": oracles.everyone("bowl", 0) * 5} if slug == "fedpage" else {}
    expected = module.run(problems.bowl(), oracles.turns("bowl", rounds=rounds), **options, observed=actual, coins=coins, **more)
    oracles.close(actual, expected, rtol=1e-4, atol=1e-5)
    coins = np.array(coins, float).reshape(rounds, -1)[1:]  # the first round of FedPAGE tosses none
    assert abs(coins.mean() - p) < 3.5 * np.sqrt(p * (1 - p) / coins.size)
    assert np.unique(coins, axis=0).shape[0] > coins.shape[1]  # neither alike in every round nor, with several, alike in a round
