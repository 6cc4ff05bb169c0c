"""The exact checks of the cards that take more than two runs side by side, and the coins of the methods that toss them."""
from __future__ import annotations

import numpy as np
import problem as problems
import pytest
import test_oracles as oracles
from cases import ALIKE, SAME


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
    amd = oracles.oracle("fedamd", "classifier", {"p": "sequential", **SAME}, 7)
    gd = oracles.oracle("fedsgd", "classifier", {**ALIKE, **SAME}, 7)
    oracles.close(amd[1::2], gd[:3], rtol=1e-5, atol=1e-7)


@pytest.mark.full
@pytest.mark.parametrize("slug", ["fedamd", "fedpage"])
def test_coins_fall_as_often_as_asked(slug):
    p, rounds, coins, module = 0.3, 30, [], oracles.ORACLES[slug]
    options = {"p": p, "lr": 0.02}  # small steps, so that the moves, which the coins are read off, stay large
    actual = oracles.engine(slug, "bowl", options, rounds=rounds)
    more = {"everyone": lambda phase: oracles.everyone("bowl", phase) * 5} if slug == "fedpage" else {}
    expected = module.run(problems.bowl(), oracles.turns("bowl", rounds=rounds), **options, observed=actual, coins=coins, **more)
    oracles.close(actual, expected, rtol=1e-4, atol=1e-5)
    coins = np.array(coins, float).reshape(rounds, -1)[1:]  # the first round of FedPAGE tosses none
    assert abs(coins.mean() - p) < 3.5 * np.sqrt(p * (1 - p) / coins.size)
    assert np.unique(coins, axis=0).shape[0] > coins.shape[1]  # neither alike in every round nor, with several, alike in a round


def test_a_full_step_of_pfedme_moves_the_server_to_the_mean_of_the_clients_models():
    own = []
    options = {"lr": 0.25, "lam": 4.0, "personal_lr": 0.1, "local_steps": 1}  # lr lam = 1
    xs = oracles.oracle("pfedme", "classifier", options, problems.SIZES.size, own=own)
    np.testing.assert_allclose(xs, np.average(own, 1, problems.SIZES), atol=1e-12)


def test_pfedme_solves_for_the_moreau_envelope():
    problem, own, lam = problems.bowl(), [], 3.0
    options = {"lr": 0.1, "lam": lam, "personal_lr": 0.1, "inner": 200, "mu": 0.0, "local_steps": 1}
    xs = [problem.start, *oracles.oracle("pfedme", "bowl", options, own=own)]
    for x, models, cohort in zip(xs, own, oracles.turns("bowl", local_steps=1)):
        for i in (turn.client for turn in cohort):  # the proximal point of the model received
            np.testing.assert_allclose(problem.gradient(models[i], problem.rows(i)), lam * (x - models[i]), atol=1e-9)


def test_a_strong_pull_keeps_ditto_at_the_global_model():
    own = []
    xs = [problems.bowl().start, *oracles.oracle("ditto", "bowl", {"lam": 1e4, "lr": 1e-4}, own=own)]
    for x, models, cohort in zip(xs, own, oracles.turns("bowl")):
        for i in (turn.client for turn in cohort):
            np.testing.assert_allclose(models[i], x, atol=1e-3)


def test_the_weights_of_feddisco_are_the_cards():
    counts = np.array([np.where((np.arange(10) // 2 == k) | (k == 5), 10.0, 0.0) for k in range(6)])  # 5 with 2 classes, 1 with all
    w = oracles.ORACLES["feddisco"].weights(np.full(6, 1 / 6), counts, 0.5, 0.1, "kl", ())
    np.testing.assert_allclose(w, [1 / 6.6] * 5 + [1.6 / 6.6], rtol=1e-12)
    same = oracles.ORACLES["feddisco"].weights(np.full(6, 1 / 6), counts[:1].repeat(6, 0), 0.5, 0.3, "kl", ())
    np.testing.assert_allclose(same, np.full(6, 1 / 6), rtol=1e-12)


def test_the_cosines_of_l_dawa_are_the_cards():
    cosine, (x, z) = oracles.ORACLES["l-dawa"].cosine, np.random.default_rng(0).normal(size=(2, 3, 4))
    assert cosine(x, x) == pytest.approx(1) and cosine(3 * x, x) == pytest.approx(1) and cosine(-x, x) == pytest.approx(-1)
    assert cosine(z - np.vdot(z, x) / np.vdot(x, x) * x, x) == pytest.approx(0, abs=1e-12)
    assert cosine(0 * x, x) == cosine(x, 0 * x) == 1
