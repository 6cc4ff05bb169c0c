"""Tables of counts with exact margins: how many examples of each class each client gets.

A random table of proportions seldom agrees with both the clients' sizes and the classes' totals. Instead of drawing again until
it does, it is projected onto the tables that do (the nearest in relative entropy), and then rounded to whole numbers exactly.
"""
from __future__ import annotations

import numpy as np


def table(logits: np.ndarray, rows: np.ndarray, columns: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Whole numbers [N, C] with row sums `rows` and column sums `columns`, near rows * softmax(logits).

    Args:
      logits: [N, C], finite.
      rows, columns: whole numbers [N] and [C] of equal sum; columns positive.

    Returns:
      int64 [N, C].
    """
    real = project(logits, rows, columns)
    return fit_columns(round_rows(real, rows, generator), real, columns)


def project(logits: np.ndarray, rows: np.ndarray, columns: np.ndarray, steps: int = 60) -> np.ndarray:
    """The table nearest to rows * softmax(logits) in relative entropy among those with these margins.

    It has the form rows * softmax(logits + s) with one number s per column, the minimum of a convex function of C variables, here
    found by damped Newton steps. Row sums are exact; column sums are within half an example unless `steps` did not suffice.

    Returns:
      float64 [N, C].
    """
    shift, damping = np.zeros(len(columns)), 1e-6
    value, shares = _dual(logits, shift, rows, columns)
    for _ in range(steps):
        sums = rows @ shares
        if np.abs(columns - sums).max() <= 0.5:
            break
        hessian = np.diag(sums) - shares.T @ (rows[:, None] * shares)
        for _ in range(12):
            step = np.linalg.solve(hessian + np.diag(damping * columns), columns - sums)
            trial = shift + step - step.mean()
            new, new_shares = _dual(logits, trial, rows, columns)
            if new <= value + 1e-12 * abs(value):
                shift, value, shares, damping = trial, new, new_shares, max(damping / 10, 1e-9)
                break
            damping *= 10
        else:
            break
    return rows[:, None] * shares


def _dual(logits: np.ndarray, shift: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[float, np.ndarray]:
    moved = logits + shift
    top = moved.max(1, keepdims=True)
    shares = np.exp(moved - top)
    total = shares.sum(1, keepdims=True)
    return float(rows @ (top + np.log(total))[:, 0] - columns @ shift), shares / total


def round_rows(real: np.ndarray, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Systematic rounding: every entry becomes its floor or ceiling, its expectation is itself, row sums are exact."""
    reach = np.minimum(np.cumsum(real, axis=1), rows[:, None])
    reach[:, -1] = rows
    return np.diff(np.floor(reach + generator.random((len(rows), 1))).astype(np.int64), axis=1, prepend=0)


def fit_columns(whole: np.ndarray, real: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Moves units inside rows until the column sums hold, at most C - 1 pairs of columns.

    Units that were rounded up move first, to where was rounded down; what is left moves where it changes the likelihood least, in
    whole blocks, so that a sparse table stays sparse.
    """
    whole = whole.copy()
    while (excess := whole.sum(0) - columns).any():
        much, little = int(np.argmax(excess)), int(np.argmin(excess))
        wanted = int(min(excess[much], -excess[little]))
        up, down = whole[:, much] - real[:, much], real[:, little] - whole[:, little]
        slack = np.flatnonzero((up > 0) & (down > 0) & (whole[:, much] > 0))
        slack = slack[np.argsort(-(up + down)[slack], kind="stable")[:wanted]]
        whole[slack, much] -= 1
        whole[slack, little] += 1
        cheap = np.argsort(-(real[:, little] + 1e-300) / (real[:, much] + 1e-300), kind="stable")
        held = whole[cheap, much]
        block = np.clip(wanted - len(slack) - (np.cumsum(held) - held), 0, held)
        whole[cheap, much] -= block
        whole[cheap, little] += block
    return whole
