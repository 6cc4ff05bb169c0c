"""Method -> Method: client-level differential privacy by a server that adds noise to the sum of clipped changes.

    (1)  Delta_i <- Delta_i min(1, C / ||Delta_i||)                     one norm over the whole change
    (2)  Delta = (sum_i Delta_i + N(0, (z_Delta C)^2 I)) / m            m is the expected number of clients, whoever came
    (3)  b = (sum_i 1[||Delta_i|| <= C] + N(0, sigma_b^2)) / m          where C is adapted
    (4)  C <- C exp(-rate (b - quantile))                               1 / z^2 = 1 / z_Delta^2 + 1 / (2 sigma_b)^2

(1), (2): McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018. (3), (4): Andrew,
Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021. Every client counts alike.
"""
from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.privacy.vectors import FIELD, alone, average, bounded, noised
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, NonNegative, Positive, Share
from fedjax_lab.types import Method, Release, Tree

BELOW, CLIP = "below", "clip"


class Guarded(NamedTuple):
    """server: the method's own state;  clip: float32 scalar, C of the next round."""

    server: Tree
    clip: jax.Array


@part(kind="privacy", family="trust", paper="Learning Differentially Private Recurrent Language Models", year=2018)
def dp_fedavg(method: Method, cohort: int, *, noise: NonNegative = 1.0, clip: Positive = 1.0, adaptive: bool = False,
              quantile: Share = 0.5, rate: NonNegative = 0.2, bits_noise: NonNegative = 0.05, delta: Positive = 1e-5,
              accountant: Literal["auto", "rdp", "pld", "none"] = "auto", noise_cohort: Count | None = None, population: Count | None = None) -> Method:
    """Clipped changes, and Gaussian noise on their sum; epsilon is in every row.

    Args:
      noise: z, the noise's deviation over the sensitivity C of the sum.
      clip: C, the most that the norm of a change may be, or inf; at first, where it is adapted.
      adaptive: adapt C towards a quantile of the norms.
      quantile: share of the changes that shall be shorter than C.
      rate: of the adaptation.
      bits_noise: deviation of the noise on the count of short changes, as a share of m.
      delta: probability with which epsilon may fail to hold.
      accountant: rdp at orders 2 to 256, pld (tighter, Poisson cohorts only), none; auto is rdp.
      noise_cohort: simulate the noise of a cohort of so many clients; epsilon is then theirs.
      population: how many clients epsilon reckons with; those of the run by default.
    """
    if math.isinf(clip) and adaptive:
        raise ValueError("option 'clip' of 'dp-fedavg': inf is not adapted; choose a finite one, or adaptive=false")
    phase = alone("dp-fedavg", method, noise, clip)
    simulated = noise_cohort or cohort
    spread = left_for_sum(noise, bits_noise * simulated) if adaptive else noise

    def broadcast(state, client, clock):
        return {**phase.broadcast(state.server, client, clock), **({CLIP: state.clip} if adaptive else {})}

    def local(key, message, client, data):
        c = message.get(CLIP, clip)
        result = phase.local(key, {f: v for f, v in message.items() if f != CLIP}, client, data)
        result, longer = bounded(result, c)  # (1)
        if not adaptive:
            return result
        return result._replace(upload={**result.upload, BELOW: (~longer).astype(jnp.float32)}, weight={**result.weight, BELOW: 1.0})

    def serve(key, state, aggregate, who):
        mean = aggregate[FIELD]
        if spread:
            mean = noised(keys.purpose(key, "noise"), mean, spread * state.clip / simulated)  # (2)
        server = phase.serve(key, state.server, {f: v for f, v in aggregate.items() if f != BELOW} | {FIELD: mean}, who)
        if not adaptive:
            return Guarded(server, state.clip)
        b = noised(keys.purpose(key, "bits"), aggregate[BELOW], bits_noise if noise else 0.0)  # (3)
        return Guarded(server, state.clip * jnp.exp(-rate * (b - quantile)))  # (4)

    mean_of = average(cohort)
    own = None if method.personal is None else lambda key, state, client, data: method.personal(key, state.server, client, data)
    return method.rephased(
        [phase._replace(local=local, broadcast=broadcast, serve=serve,
                        aggregate={**phase.aggregate, FIELD: mean_of, **({BELOW: mean_of} if adaptive else {})})],
        init_server=lambda key, params, census: Guarded(method.init_server(key, params, census), jnp.float32(clip)),
        deploy=lambda state: method.deploy(state.server), personal=own,
        release=Release(noise, delta, accountant, simulated, population, (FIELD, BELOW)))


def left_for_sum(noise: float, bits: float) -> float:
    """z_Delta: what is left of the noise z for the sum, where the count of short changes has noise of deviation sigma_b.

    Raises:
      ValueError: nothing is left.
    """
    if not noise:
        return 0.0
    left = noise**-2 - (2 * bits) ** -2 if bits else -math.inf
    if left <= 0:
        raise ValueError(f"option 'bits_noise' of 'dp-fedavg': a deviation of {bits:g} clients leaves nothing of noise={noise:g} for the sum; "
                         f"choose more than {noise / 2:g} clients, as a share of the cohort")
    return left**-0.5


__all__ = ["Guarded", "dp_fedavg", "left_for_sum"]
