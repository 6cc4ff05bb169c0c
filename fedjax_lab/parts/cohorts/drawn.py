"""What the schemes of participation share: a plain draw, a cohort among the available, and numbers per client."""
from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.spec import Range
from fedjax_lab.types import Draw, Key, Tree

UNLIMITED = jnp.iinfo(jnp.int32).max
Probabilities = Annotated[tuple[float, ...], Range(0, 1, open="low")]
Shares = Annotated[tuple[float, ...], Range(0, 1)]


def drawn(state: Tree, ids: jax.Array, mask: jax.Array) -> Draw:
    """Those under the mask start, are heard and take all their steps."""
    return Draw(state, ids, mask, mask, jnp.full(ids.shape, UNLIMITED, jnp.int32))


def among(key: Key, available: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """(ids, mask) [slots] of a uniform cohort among the clients with available [N], all of them where they are fewer; O(N).

    With everyone available it is the cohort that `uniform` draws with this key.
    """
    upto = jnp.cumsum(available, dtype=jnp.int32)
    place = jnp.arange(slots, dtype=jnp.int32)
    rank = keys.shuffle(key, place, upto[-1])
    ids = jnp.searchsorted(upto, rank, side="right").astype(jnp.int32)
    return jnp.minimum(ids, available.shape[0] - 1), place < upto[-1]


def repeated(values: Sequence[float], client: jax.Array) -> jax.Array:
    """float32, the value of a client (any shape of ids) where they are repeated over the clients."""
    return jnp.asarray(values, jnp.float32)[client % len(values)]


def array(what: str, value: Any, *names: str) -> np.ndarray:
    """An array as it is, or the one under one of these names in the .npz that a path names.

    Raises:
      ValueError: there is no such file, it is no .npz, or holds none of the names.
    """
    if not isinstance(value, str):
        return np.asarray(value)
    from etils import epath

    file, wanted = epath.Path(value).expanduser(), " or ".join(f"`{name}`" for name in names)
    if not file.exists() or file.is_dir() or not zipfile.is_zipfile(io.BytesIO(file.read_bytes())):
        raise ValueError(f"{what}: '{value}' is no .npz file; expected one with {wanted}")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
        found = [name for name in names if name in held.files]
        if not found:
            raise ValueError(f"{what}: '{value}' has {', '.join(held.files)}; expected {wanted}")
        return held[found[0]]
