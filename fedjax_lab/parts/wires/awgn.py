"""A noisy analog link."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import keys
from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.spec import NonNegative
from fedjax_lab.types import Wire


@part(kind="wire", family="communication", paper="Noise-Robust and Resource-Efficient ADMM-based Federated Learning", year=2025)
def awgn(variance: NonNegative = 1e-2) -> Wire:
    """Every entry arrives with white Gaussian noise on it, anew for each message.

    Args:
      variance: of the noise on an entry; 1e-2 and 6.25e-4 in the paper.
    """

    def encode(key, value, row):
        return [x + jnp.sqrt(variance) * jax.random.normal(keys.purpose(key, str(i)), x.shape, x.dtype) for i, x in enumerate(value)], row

    return codes.on_moving(Wire(lambda field: (), encode, lambda code: code, codes.bits_of))
