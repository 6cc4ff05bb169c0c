from __future__ import annotations

import bench
import numpy as np
import pytest
from test_fedamd import gradients

from fedjax_lab.types import Participation

SHARES = np.array([4, 1, 3, 6, 2, 5]) / 21


def centralized(base, rounds, lr, beta=0.9, beta2=0.99, eps=0.5):
    """Iterates of the base optimizer on the pooled objective: its step from the old second moment, as U has it."""
    x, m, r, path = np.ones(bench.DIM), 0.0, 0.0, []
    for _ in range(rounds):
        c = SHARES @ gradients(x)
        m = (1 - beta) * c + beta * m
        u = {"sgd": c, "momentum": m, "adagrad": c / (np.sqrt(r) + eps), "adam": m / (np.sqrt(r) + eps)}[base]
        r = r + c**2 if base == "adagrad" else (1 - beta2) * c**2 + beta2 * r
        x = x - lr * u
        path.append(x)
    return path


@pytest.mark.parametrize("name, base", [("mime", "adam"), ("mime", "momentum"), ("mimelite", "adagrad")])
def test_one_step_of_everybody_is_the_base_optimizer(name, base):
    options = {"eps": 0.5} if base.startswith("ada") else {}
    seen = bench.history(bench.make(name, base=base, lr=0.1, local_steps=1, **options), segments=(1,) * 4, cohort=6)
    for (state, _), x in zip(seen, centralized(base, 4, 0.1), strict=True):
        np.testing.assert_allclose(state.server.params["x"], x, rtol=1e-5)


@pytest.mark.full
def test_mimelite_on_sgd_is_fedavg_and_sends_no_gradient():
    np.testing.assert_array_equal(bench.path("mimelite", base="sgd", server_lr=0.7), bench.path("fedavg", server_lr=0.7))
    assert bench.run(bench.make("mimelite", base="sgd"))[1].rounds["bytes_up"][0].tolist() == [12] * 3


def test_mime_on_sgd_starts_every_client_along_the_mean_gradient():
    x = bench.path("mime", base="sgd", lr=0.05, rounds=1, local_steps=1, weighting="uniform")
    np.testing.assert_allclose(x, 1 - 0.05 * gradients(1.0)[[0, 2, 4]].mean(0), rtol=1e-5)


def test_a_round_without_anybody_leaves_the_state_alone():
    inner = bench.rota(6, 3)

    def draw(key, state, clock):
        drawn = inner.draw(key, state, clock)
        here = drawn.mask & (clock != 1)
        return drawn._replace(mask=here, heard=here)

    gaps = Participation(3, inner.init, draw)
    (first, _), (second, _), (third, _) = bench.history(bench.make("mime", base="adam", eps=0.5), cohort=gaps)
    assert first.server.s.m["x"].any() and first.server.s.r["x"].all()
    for a, b, c in zip(first.server.s, second.server.s, third.server.s, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert (c["x"] != b["x"]).all()
    np.testing.assert_array_equal(first.server.params["x"], second.server.params["x"])
