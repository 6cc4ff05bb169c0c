"""Floating-point operations of local training, counted from the program itself.

What one client's phase computes is read from its jaxpr, so both gradients of a sharpness-aware step and the first pass of a
full-gradient method count, on any device alike. An addition, a multiplication and a function of one number are one operation each; a
product of matrices [a, b] [b, c] is 2abc. Moving data, integers, random bits, wires, the server and evaluation are left out.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_lab.engine import exchange

ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "square", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow",
              "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erf_inv", "erfc", "sin", "cos", "tan", "atan2", "rem", "clamp"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum", "cumprod", "cummax", "cumlogsumexp", "argmax", "argmin"}


class Flops(NamedTuple):
    """Operations outside of loops, and those of one turn of every loop whose number of turns is not known beforehand."""

    once: int
    turn: int

    def times(self, n: int) -> Flops:
        return Flops(n * self.once, n * self.turn)


class Cost(NamedTuple):
    """Operations of one client in one phase: `client` + `example` n + `step` s + `seen` m, for n examples, s local steps and the m
    examples in their batches. width: of a batch;  everyone: whether the phase is with all clients."""

    client: int
    example: int
    step: int
    seen: int
    width: int
    everyone: bool = False


def flops(f: Callable, *args: Any) -> Flops:
    """Operations of f(*args), where arrays may be given as shapes.

    >>> flops(lambda w, x: jnp.tanh(x @ w), jnp.ones((3, 4)), jnp.ones((2, 3)))
    Flops(once=56, turn=0)
    """
    return count(jax.make_jaxpr(f)(*args).jaxpr)


def count(jaxpr: Any) -> Flops:
    """Operations of a jaxpr."""
    each = [_equation(eqn) for eqn in jaxpr.eqns]
    return Flops(sum(c.once for c in each), sum(c.turn for c in each))


def _equation(eqn: Any) -> Flops:
    name, inner = eqn.primitive.name, [count(j) for j in _inner(eqn.params)]
    if name == "while":
        return Flops(0, sum(count(eqn.params["body_jaxpr"].jaxpr)))
    if name == "cond":
        return max(inner, key=sum)
    if inner:
        total = Flops(sum(c.once for c in inner), sum(c.turn for c in inner))
        return total.times(eqn.params["length"]) if name == "scan" else total
    out = eqn.outvars[0].aval
    if not jnp.issubdtype(getattr(eqn.invars[0].aval if eqn.invars else out, "dtype", None), jnp.inexact):
        return Flops(0, 0)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return Flops(2 * out.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted), 0)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return Flops(2 * out.size * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]], 0)
    return Flops(eqn.invars[0].aval.size if name in REDUCTIONS else out.size if name in ARITHMETIC else 0, 0)


def _inner(params: Mapping[str, Any]) -> list[Any]:
    values = [v for value in params.values() for v in (value if isinstance(value, (tuple, list)) else (value,))]
    return [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values if isinstance(v, (core.ClosedJaxpr, core.Jaxpr))]


def cost(work: Callable[[int], Flops], capacity: int, everyone: bool = False) -> Cost:
    """The cost of a client's phase from its operations when clients have at most 1, 2 or `capacity` examples: batches grow with these
    up to their width."""
    one, two, most = work(1), work(2), work(capacity)
    example, seen = two.once - one.once, two.turn - one.turn
    width = max(1, round((most.turn - one.turn) / seen) + 1) if seen else 1
    return Cost(one.once - example, example, one.turn - seen if seen else 0, seen or one.turn, width, everyone)


def costs(setting: Any, world: Any, shapes: Any) -> list[Cost]:
    """What a client's work in each phase costs; only shapes matter.

    Args:
      setting, world: of engine.sync;  shapes: of the State.
    """

    def work(capacity: int) -> list[Flops]:
        small, found, keep = setting._replace(capacity=(capacity, setting.capacity[1])), [], {False: (), True: ()}
        row = jax.eval_shape(lambda rows: jax.tree.map(lambda x: x[0], rows), shapes.clients)
        slot = exchange.Slot(*[jnp.int32(0)] * 2, jnp.int32(1), *[jnp.ones((), bool)] * 3)
        for phase in setting.method.exchanges:

            def local(world, key, server, row, keep, phase=phase):
                data = small.view(world, slot._replace(keep=keep), jnp.int32(0))
                return phase.local(key, phase.broadcast(server, data.id, data.clock), row, exchange.plain(phase, server, data))

            jaxpr, result = jax.make_jaxpr(local, return_shape=True)(world, jax.random.key(0), shapes.server, row, keep[phase.everyone])
            found.append(count(jaxpr.jaxpr))
            row, keep[phase.everyone] = result.client, result.keep
        return found

    whole = work(setting.capacity[0])
    try:
        of = {1: work(1), 2: work(2), setting.capacity[0]: whole}
    except (TypeError, ValueError):  # the method holds arrays of a batch's width: short batches count as whole ones
        return [Cost(flops.once, 0, flops.turn, 0, 1, phase.everyone) for flops, phase in zip(whole, setting.method.exchanges, strict=True)]
    return [cost(lambda c, p=p: of[c][p], setting.capacity[0], phase.everyone) for p, phase in enumerate(setting.method.exchanges)]


def spent(costs: Sequence[Cost], size: np.ndarray, rounds: Mapping[str, np.ndarray]) -> int:
    """Operations of local training in these rounds.

    A client that started counts, heard or not, and with its own steps only, whatever the padding. Loops are taken to have as many turns
    as the client has steps.

    Args:
      costs: of the phases.
      size: [N] training examples of the clients.
      rounds: reports of Record.rounds: "ids" [R, S], and the steps that clients took in phase p, "steps<p>" [R, S] or "all_steps<p>" [R, N].
    """
    total = 0
    for p, c in enumerate(map(Cost._make, costs)):
        steps = rounds[f"{'all_' * c.everyone}steps{p}"].astype(np.int64)
        n = np.broadcast_to(size if c.everyone else size[rounds["ids"]], steps.shape).astype(np.int64)
        turns, rest = np.divmod(steps, np.maximum(-(-n // c.width), 1))
        seen = turns * n + np.minimum(rest * c.width, n)
        there = steps > 0
        total += c.client * int(there.sum()) + c.example * int((n * there).sum()) + c.step * int(steps.sum()) + c.seen * int(seen.sum())
    return total


__all__ = ["Cost", "Flops", "cost", "costs", "count", "flops", "spent"]
