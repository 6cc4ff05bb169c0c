"""Method -> Method: local differential privacy: every upload is noised by its client, and nobody has to be trusted.

    (1)  Delta_i <- Delta_i min(1, C / ||Delta_i||)                     l2 for Gaussian noise, l1 for Laplace's
    (2)  gaussian: Delta_i + N(0, (2 C s)^2 I),  s the least with Phi(1/(2s) - epsilon s) - e^epsilon Phi(-1/(2s) - epsilon s) <= delta
    (3)  laplace:  Delta_i + (2 C / epsilon) Laplace                    any two changes are 2 C apart at most

(1), (2): Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising", ICML 2018.
(3): Dwork, McSherry, Nissim, Smith, "Calibrating Noise to Sensitivity in Private Data Analysis", TCC 2006. Every client counts alike. What
comes after the noise, wires and aggregators among it, tells nothing more. Epsilon of a run is that of one client's reports in all rounds
that it may have been in, none of which is hidden by sampling or shuffling.
"""
from __future__ import annotations

import math
from typing import Any, Literal

import jax

from fedjax_lab import keys
from fedjax_lab.parts.privacy.vectors import FIELD, bounded, noised
from fedjax_lab.registry import part
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Release

PAPER = "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising"


@part(kind="privacy", family="trust", paper=PAPER, year=2018)
def local_dp(method: Method, cohort: int, *, epsilon: Positive = 8.0, clip: Positive = 1.0, mechanism: Literal["gaussian", "laplace"] = "gaussian",
             delta: Positive = 1e-5, accountant: Literal["auto", "rdp", "pld", "none"] = "auto") -> Method:
    """Clipped changes that every client puts noise on before they leave it.

    Args:
      epsilon: of one report, at delta; inf for no noise.
      clip: C, the most that the norm of a change may be, or inf.
      mechanism: gaussian, or laplace with delta = 0 of one report.
      delta: probability with which epsilon may fail to hold.
      accountant: of several reports: rdp at orders 2 to 256, pld (tighter), none; auto is rdp.
    """
    if len(method.exchanges) != 1:
        raise ValueError(f"'{method.info.name}' has several exchanges in a round, and epsilon is for one")
    if math.isinf(clip) and math.isfinite(epsilon):
        raise ValueError(f"option 'clip' of 'local-dp': inf needs epsilon=inf, since noise follows clip; epsilon is {epsilon:g}")
    (phase,) = method.exchanges
    scale = scale_of(mechanism, epsilon, delta)

    def local(key, message, client, data):
        result, _ = bounded(phase.local(key, message, client, data), clip, 1 if mechanism == "laplace" else 2)  # (1)
        if not scale:
            return result
        draw = jax.random.laplace if mechanism == "laplace" else jax.random.normal
        change = noised(keys.purpose(key, "privacy"), result.upload[FIELD], 2 * clip * scale, draw)  # (2), (3)
        return result._replace(upload={**result.upload, FIELD: change})

    def event(rounds: int, apart: int) -> Any:
        import dp_accounting as dp
        one = (dp.LaplaceDpEvent if mechanism == "laplace" else dp.GaussianDpEvent)(scale)
        return dp.SelfComposedDpEvent(one, -(-rounds // apart))

    return method.rephased([phase._replace(local=local)], release=Release(scale, delta, accountant, cohort, None, (FIELD,), event, True))


def scale_of(mechanism: str, epsilon: float, delta: float) -> float:
    """The noise's scale over the distance of two changes, 0 for an infinite epsilon."""
    if math.isinf(epsilon):
        return 0.0
    if mechanism == "laplace":
        return 1 / epsilon
    import dp_accounting as dp
    return float(dp.get_sigma_gaussian(epsilon, delta))


__all__ = ["local_dp", "scale_of"]
