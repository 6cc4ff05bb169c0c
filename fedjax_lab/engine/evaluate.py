"""Evaluation: the global model on the central test set and, through it, on every client's; personal models on their own clients.

A client's test set is an index into the central test examples, so the global model is applied once to each example and a client's
accuracy is a mean of values already there. Every mean is taken over an array that is whole on each device, in a fixed order.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.engine import clients as sweeps
from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine.exchange import Slot
from fedjax_lab.types import Batch, Population, Task, Tree


class Panel(NamedTuple):
    """What is evaluated, as arrays of the world.

    ids: int32 [E], the clients looked at;  rows: int32 [E, capacity], their test examples, -1 beyond their size.
    """

    ids: jax.Array
    rows: jax.Array


def panel(population: Population, limit: int | None) -> Panel:
    """The clients that evaluation looks at: all with test examples, or `limit` of them spread evenly over the ids. Host arrays."""
    offset, size = np.asarray(population.test.offset), np.asarray(population.test.size)
    ids = np.flatnonzero(size > 0).astype(np.int32)
    if limit is not None and limit < len(ids):
        ids = ids[np.linspace(0, len(ids) - 1, limit).round().astype(int)]
    width = int(size[ids].max()) if len(ids) else 0
    lane = np.arange(width)
    rows = offset[ids][:, None] + np.minimum(lane, np.maximum(size[ids][:, None] - 1, 0))
    index = population.test.index
    rows = rows if index is None else np.asarray(index)[rows]
    return Panel(ids, np.where(lane < size[ids][:, None], rows, -1).astype(np.int32))


def per_example(task: Task, params: Tree, examples: Tree, mesh, batch: int,
                change: Callable[[Batch], tuple[Batch, jax.Array]] | None = None) -> dict[str, jax.Array]:
    """{metric: [M]} of one model over M examples, `batch` at a time on each device.

    change: (batch) -> (batch, counted [B]), where examples are changed before; "counted" then comes with the metrics.
    """
    count = jax.tree.leaves(examples)[0].shape[0]
    lay = sweeps.layout(mesh, -(-count // batch), 1, mesh.shape[meshes.CLIENTS])
    first = jnp.arange(lay.slots, dtype=jnp.int32) * batch
    lane = jnp.arange(batch, dtype=jnp.int32)

    def body(shared, start, row):
        params, examples = shared
        rows = start + lane
        taken = _take(examples, jnp.where(rows < count, rows, -1))
        if change is None:
            return sweeps.Outcome({}, (), dict(task.metrics(task.apply(params, taken), taken)))
        taken, counted = change(taken)
        return sweeps.Outcome({}, (), {**task.metrics(task.apply(params, taken), taken), "counted": counted})

    out = sweeps.sweep(lay, body, {}, (params, examples), lay.deal(first), (), lay.filled()).stacked
    out = meshes.constrain(out, meshes.replicated(mesh))
    return {k: lay.collect(v).reshape(-1)[:count] for k, v in out.items()}


def probed(task: Task, params: Tree, examples: Tree, mesh, batch: int, change: Callable[[Batch], tuple[Batch, jax.Array]]) -> jax.Array:
    """The accuracy on the test examples as `change` makes them, over those that count."""
    values = per_example(task, params, examples, mesh, batch, change)
    counted = values["counted"]
    return jnp.sum(jnp.where(counted, values["accuracy"], 0)) / jnp.maximum(jnp.sum(counted), 1)


def central(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """{"test_<metric>": mean over the central test set}."""
    return {f"test_{k}": jnp.mean(v) for k, v in values.items()}


def per_client(values: dict[str, jax.Array], panel: Panel) -> dict[str, jax.Array]:
    """{metric: [E]}: the mean over each client's own test examples."""
    mask = panel.rows >= 0
    rows = jnp.where(mask, panel.rows, 0)
    return {k: jnp.sum(jnp.where(mask, v[rows], 0), 1) / jnp.maximum(jnp.sum(mask, 1), 1) for k, v in values.items()}


def spread(values: dict[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    """Mean, worst decile (mean of the lowest tenth of the clients) and standard deviation over clients of the accuracy, or of the
    loss (the highest tenth) where the task has no accuracy, and the quantiles q0, q10 .. q100: the value of the client at that place in
    ascending order, the nearest one, without interpolation. Clients count alike."""
    name = "accuracy" if "accuracy" in values else "loss"
    v = values[name]
    ascending = jnp.sort(v)
    worst = ascending if name == "accuracy" else ascending[::-1]
    tenth = max(1, -(-v.shape[0] // 10))
    stats = {"mean": jnp.mean(v), "worst_decile": jnp.mean(worst[:tenth]), "std": jnp.std(v)}
    stats |= {f"q{q}": ascending[round(q / 100 * (v.shape[0] - 1))] for q in range(0, 101, 10)}
    return {f"{prefix}client_test_{name}_{k}": x for k, x in stats.items()}


def personal(setting, key, server: Tree, rows: Tree, world: Tree, lay: sweeps.Layout) -> dict[str, jax.Array]:
    """{metric: [E]}: each client's own model (`method.personal`) on its own test examples.

    Args:
      setting: of the simulation;  key: the purpose's key;  server: the server's state;  rows: [E, ...] of the panel's clients.
      world: with population and panel;  lay: where the panel's clients run.
    """
    width, batch = world.panel.rows.shape[1], setting.eval_batch
    pieces = -(-width // batch)
    unlimited = jnp.int32(np.iinfo(np.int32).max)

    def body(shared, slot, row):
        world, server, key = shared
        client, at, test_rows = slot
        data = setting.view(world, Slot(client, at, unlimited, *[jnp.ones((), bool)] * 3), jnp.int32(0))
        model = setting.method.personal(keys.for_client(key, client), server, row, data)
        test_rows = jnp.pad(test_rows, (0, pieces * batch - width), constant_values=-1).reshape(pieces, batch)

        def piece(rows):
            taken = _take(world.population.test.examples, rows)
            values = setting.model.metrics(setting.model.apply(model, taken), taken)
            return {k: jnp.sum(jnp.where(taken["mask"], v, 0)) for k, v in values.items()}

        sums = jax.lax.map(piece, test_rows)
        return sweeps.Outcome({}, row, {k: jnp.sum(v) / jnp.maximum(jnp.sum(test_rows >= 0), 1) for k, v in sums.items()})

    slots = jax.tree.map(lay.deal, (world.panel.ids, setting.place(world, world.panel.ids), world.panel.rows))
    out = sweeps.sweep(lay, body, {}, (world, server, key), slots, jax.tree.map(lay.deal, rows), lay.filled())
    return {k: lay.collect(v) for k, v in meshes.constrain(out.stacked, meshes.replicated(lay.mesh)).items()}


def _take(examples: Tree, rows: jax.Array) -> dict[str, jax.Array]:
    """A batch of these rows; -1 marks padding."""
    return {**{k: jnp.take(v, jnp.maximum(rows, 0), axis=0) for k, v in examples.items()}, "mask": rows >= 0}
