"""What the cards' shared notation means: p_i over the sampled clients, and the momentum of a client optimizer."""
from __future__ import annotations

import numpy as np


def shares(problem, cohort, weighting: str) -> np.ndarray:
    """The weights of the cohort's clients, summing to one: by their examples, or all alike."""
    raw = np.array([problem.size[turn.client] if weighting == "examples" else 1.0 for turn in cohort])
    return raw / raw.sum()


def momentum_of(client_optimizer: str) -> float:
    """0 for "sgd", rho for "momentum:rho"."""
    name, _, value = client_optimizer.partition(":")
    assert name in ("sgd", "momentum"), client_optimizer
    return float(value or 0.9) if name == "momentum" else 0.0


def sgd(problem, x, batches, lr: float, moving=1.0, rho: float = 0.0) -> np.ndarray:
    """y <- y - lr * gradient, over the batches, where `moving` is 1; with momentum rho."""
    y, m = x, np.zeros_like(x)
    for rows in batches:
        m = rho * m + problem.gradient(y, rows)
        y = y - lr * moving * m
    return y


def ascended(problem, y, rows, rho: float) -> np.ndarray:
    """y + rho g / (|g| + 1e-7): where sharpness-aware methods take their gradient, with one norm over all parameters."""
    g = problem.gradient(y, rows)
    return y + rho * g / (np.linalg.norm(g) + 1e-7)


def clipped(v: np.ndarray, norm: float) -> np.ndarray:
    """v scaled down to this norm where it is longer."""
    return v * min(1.0, norm / np.linalg.norm(v))


def mean_steps(cohort, weights=None) -> float:
    """The average K_i of a cohort."""
    return np.average([len(turn.batches) for turn in cohort], weights=weights)


def first_gradients(problem) -> list[np.ndarray]:
    """Every client's gradient at x^0 on all of its examples."""
    return [problem.gradient(problem.start, problem.rows(i)) for i in range(problem.clients)]


def table(problem) -> list[np.ndarray]:
    """A row of zeros per client."""
    return [np.zeros_like(problem.start) for _ in range(problem.clients)]


class Adam:
    """With bias correction, on a flat vector."""

    def __init__(self, size, b1=0.9, b2=0.999, eps=1e-8):
        self.m, self.v, self.t, self.b1, self.b2, self.eps = np.zeros(size), np.zeros(size), 0, b1, b2, eps

    def step(self, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        return self.m / (1 - self.b1**self.t) / (np.sqrt(self.v / (1 - self.b2**self.t)) + self.eps)


def activated(w: np.ndarray, cohort) -> np.ndarray:
    """A symmetric W among the nodes of the cohort; the others hear themselves, and what is missing in a row is on the diagonal."""
    active = np.zeros(len(w))
    active[[turn.client for turn in cohort]] = 1
    off = np.outer(active, active) * (w - np.diag(np.diag(w)))
    return off + np.diag(1 - off.sum(1))
