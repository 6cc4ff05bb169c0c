"""When in its training a client asks for the newest model: where to begin is a policy of the server, and from there a client moves by values of its own.

    (1)  l_1 ~ softmax(theta)                        at a client's first training;  theta <- theta + rate r (onehot(l_1) - softmax(theta))
    (2)  a = argmax_a Q[l, a], with probability epsilon any;   l' = l + a, kept within the slots            at those that follow
    (3)  Q[l, a] <- Q[l, a] + rate (r + discount max_a' Q[l', a'] - Q[l, a])

for the reward r of asking at l' or l_1 (Liu et al., "FedASMU", AAAI 2024).
"""
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.types import Key

MOVES = (0, 1, -1)  # of equal values the first is chosen


class Habit(NamedTuple):
    """Of one client. values: Q, float32 [L, 3];  slot: int32, the last one;  seen: bool, whether there was one."""

    values: jax.Array
    slot: jax.Array
    seen: jax.Array


class Choice(NamedTuple):
    """slot: int32;  move: int32, the index in MOVES that led there, of no meaning at first."""

    slot: jax.Array
    move: jax.Array


def habit(slots: int) -> Habit:
    """Of a client that never asked."""
    return Habit(jnp.zeros((slots, len(MOVES))), jnp.int32(0), jnp.bool_(False))


def choose(key: Key, before: Habit, theta: jax.Array, epsilon: Any) -> Choice:
    """The slot of the next request."""
    any_move = jax.random.randint(keys.purpose(key, "move"), (), 0, len(MOVES), jnp.int32)
    explore = jax.random.bernoulli(keys.purpose(key, "explore"), epsilon)
    move = jnp.where(explore, any_move, jnp.argmax(before.values[before.slot]).astype(jnp.int32))  # (2)
    first = jax.random.categorical(keys.purpose(key, "slot"), theta).astype(jnp.int32)  # (1)
    following = jnp.clip(before.slot + jnp.asarray(MOVES, jnp.int32)[move], 0, theta.size - 1)
    return Choice(jnp.where(before.seen, following, first), move)


def rewarded(before: Habit, choice: Choice, reward: jax.Array, rate: Any, discount: Any) -> Habit:
    """The habit after a request and its reward."""
    at = before.slot, choice.move
    target = reward + discount * jnp.max(before.values[choice.slot])
    values = before.values.at[at].add(rate * (target - before.values[at]))  # (3)
    return Habit(jnp.where(before.seen, values, before.values), choice.slot, jnp.ones_like(before.seen))


def hint(before: Habit, choice: Choice, reward: jax.Array, theta: jax.Array) -> jax.Array:
    """float32 [L]: which way a first request moves the policy, zero for those that follow."""
    slope = jax.nn.one_hot(choice.slot, theta.size) - jax.nn.softmax(theta)
    return jnp.where(before.seen, 0, reward * slope)  # (1)
