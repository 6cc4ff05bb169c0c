"""Local training with a heavy ball that starts anew in every round."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from fedjax_lab import tree
from fedjax_lab.local import Direction, Work, batches, descend
from fedjax_lab.parts.clients import weigh
from fedjax_lab.types import Result


def heavy_ball(direction: Direction, work: Work, momentum: Any) -> Callable[..., Result]:
    """The `local` of v <- momentum v + direction(y), y <- y - lr v from the model received, v = 0; clients count alike."""
    optimizer = optax.chain(optax.trace(momentum), work.optimizer)

    def local(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, direction, optimizer)
        return Result({"model": tree.sub(y.params, x)}, weigh("uniform", data), client, metrics={"loss": y.loss})

    return local
