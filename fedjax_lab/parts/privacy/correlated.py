"""Method -> Method: client-level differential privacy without sampled cohorts, by noise that is correlated over the rounds (DP-FTRL).

    (1)  Delta_i <- Delta_i min(1, C / ||Delta_i||)                     one norm over the whole change
    (2)  Delta^t = (sum_i Delta_i + z C n^t) / m                        m is the expected number of clients, whoever came
    (3)  tree:   n^t = Z^t - sum_{i<j} Z^{s_i},  2^j the largest power of two that divides t,  s_i = t-1 with its i lowest bits cleared
    (4)  banded: n^t = Z^t - sum_{0<k<b} c_k n^{t-k},  c_k = binom(2k, k) / 4^k
    (5)  s_t = max_R || sum_{r in R} C e_r ||,  R the rounds until t of one client;  epsilon is that of one Gaussian of deviation z / s_t

Z^t are standard normal. Both are A = B C of McMahan's and others' matrix mechanism for the prefix sums A, where sums of n^t are B Z: in (3)
the rows of C are the nodes of binary trees over the rounds, in (4) C is the Toeplitz matrix of c, b diagonals of the square root of A.

(3): Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning without Sampling or Shuffling", ICML 2021.
(4): Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu, "(Amplified) Banded Matrix Factorization", NeurIPS 2023, with the
coefficients of Kalinin, Lampert, "Banded Square Root Matrix Factorization for Differentially Private Model Training", NeurIPS 2024, in
place of numerically optimized ones. The variance of a tree's nodes is not reduced by the nodes below, and no client's rounds are amplified
by sampling. With --server=momentum the released prefix sums are those of DP-FTRL with momentum.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, tree
from fedjax_lab.parts.privacy.vectors import FIELD, alone, average, bounded, noised
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Positive, Range
from fedjax_lab.types import Key, Method, Release, Tree


class Correlated(NamedTuple):
    """server: the method's own state;  memory: of the noise, () without any."""

    server: Tree
    memory: Tree


class Strategy(NamedTuple):
    """Noise of standard scale, correlated over rounds.

    init: (key, params) -> memory.   draw: (memory, key, like, clock) -> (n^t, memory), shaped like a tree.
    squared: (rounds, apart) -> s_t^2 of (5), for clients that take part every `apart` rounds.
    """

    init: Callable[[Key, Tree], Tree]
    draw: Callable[[Tree, Key, Tree, jax.Array], tuple[Tree, Tree]]
    squared: Callable[[int, int], float]


@part(kind="privacy", family="trust", paper="Practical and Private (Deep) Learning without Sampling or Shuffling", year=2021)
def dp_ftrl(method: Method, cohort: int, *, noise: NonNegative = 1.0, clip: Positive = 1.0, matrix: Literal["tree", "banded"] = "tree",
            restart: Annotated[int, Range(0)] = 0, bands: Count = 8, delta: Positive = 1e-5,
            accountant: Literal["auto", "rdp", "pld", "none"] = "auto") -> Method:
    """Clipped changes, and noise on their sum that the next rounds take back in part; clients take part in fixed turns or always.

    Args:
      noise: z, the deviation of what is drawn in a round over the sensitivity C of a round's sum.
      clip: C, the most that the norm of a change may be, or inf.
      matrix: how noise is correlated, as the nodes of a binary tree or by a banded matrix.
      restart: rounds after which a new tree begins; 0 for one tree.
      bands: of the banded matrix; 1 is independent noise.
      delta: probability with which epsilon may fail to hold.
      accountant: rdp at orders 2 to 256, pld (tighter), none; auto is rdp.
    """
    phase = alone("dp-ftrl", method, noise, clip)
    strategy = binary_tree(restart) if matrix == "tree" else banded(bands)

    def local(key, message, client, data):
        return bounded(phase.local(key, message, client, data), clip)[0]  # (1)

    def serve(key, state, aggregate, who):
        mean, memory = aggregate[FIELD], state.memory
        if noise:
            n, memory = strategy.draw(memory, keys.purpose(key, "noise"), mean, who.clock)
            mean = tree.axpy(noise * clip / cohort, n, mean)  # (2)
        return Correlated(phase.serve(key, state.server, {**aggregate, FIELD: mean}, who), memory)

    def start(key, params, census):
        memory = strategy.init(keys.purpose(key, "noise"), params) if noise else ()
        return Correlated(method.init_server(key, params, census), memory)

    def event(rounds: int, apart: int) -> Any:
        import dp_accounting as dp
        return dp.GaussianDpEvent(noise / strategy.squared(rounds, apart) ** 0.5)

    own = None if method.personal is None else lambda key, state, client, data: method.personal(key, state.server, client, data)
    changed = phase._replace(local=local, serve=serve, aggregate={**phase.aggregate, FIELD: average(cohort)},
                             broadcast=lambda state, client, clock: phase.broadcast(state.server, client, clock))
    return method.rephased([changed], init_server=start, deploy=lambda state: method.deploy(state.server), personal=own,
                           release=Release(noise, delta, accountant, cohort, None, (FIELD,), event))


def binary_tree(restart: int = 0) -> Strategy:
    """Nodes of binary trees over `restart` rounds each, or of one tree; nothing is kept but a key, since a node's noise is drawn again."""

    def draw(key, _, like, clock):
        t = (clock % restart if restart else clock) + 1
        zero = tree.zeros_like(like)

        def node(i):
            return noised(keys.for_round(key, clock - t + i), zero, 1.0)

        def minus(i, n):
            return tree.sub(n, node(((t - 1) >> i) << i))

        trailing = jax.lax.population_count((t & -t) - 1)
        return jax.lax.fori_loop(0, trailing, minus, node(t)), key  # (3)

    def squared(rounds: int, apart: int) -> float:
        found, starts = np.zeros(min(apart, rounds)), np.arange(min(apart, rounds))[:, None]
        for first in range(0, rounds, restart or rounds):
            length, width = min(restart or rounds, rounds - first), 1
            while width <= length:
                low = first + np.arange(0, length - width + 1, 2 * width)[None]
                inside = _turns(low + width, starts, apart) - _turns(low, starts, apart)
                found += (inside**2).sum(1)
                width *= 2
        return float(found.max())  # (5)

    return Strategy(lambda key, params: key, draw, squared)


def _turns(until: np.ndarray, start: np.ndarray, apart: int) -> np.ndarray:
    """How many of start, start + apart, .. are below `until`."""
    return np.maximum(-(-(until - start) // apart), 0)


def banded(bands: int) -> Strategy:
    """The Toeplitz matrix of the first coefficients of 1 / sqrt(1 - x); the last bands - 1 noises are kept."""
    c = np.cumprod([1.0, *((2 * k - 1) / (2 * k) for k in range(1, bands))])

    def init(key, params):
        return jax.tree.map(lambda x: jnp.zeros((bands - 1, *x.shape), jnp.float32), params)

    def draw(past, key, like, clock):
        fresh = noised(key, tree.zeros_like(like), 1.0)
        n = jax.tree.map(lambda z, old: z - jnp.tensordot(jnp.asarray(c[1:], old.dtype), old, 1), fresh, past)  # (4)
        return n, jax.tree.map(lambda old, x: jnp.concatenate([x[None].astype(old.dtype), old])[: bands - 1], past, n)

    def squared(rounds: int, apart: int) -> float:
        first = np.arange(rounds) % apart == 0  # whose turns begin in the first round: nobody has more, or longer columns
        return float((np.convolve(first, c)[:rounds] ** 2).sum())  # (5)

    return Strategy(init, draw, squared)


__all__ = ["Correlated", "Strategy", "banded", "binary_tree", "dp_ftrl"]
