"""A model cut over `model`: the results agree to rounding, and each device holds its part of everything as large as the model."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from engine import tiny
from jax.sharding import PartitionSpec as P

from fedjax_lab import registry
from fedjax_lab.engine import mesh
from fedjax_lab.parts.aggregators.coordinate import median
from fedjax_lab.parts.wires.topk import topk
from fedjax_lab.types import Aux

TASK = tiny.task()
AVERAGING = registry.make("fedavg", TASK, lr=0.1, batch_size=4)
METHODS = {
    "scaffold": registry.make("scaffold", TASK, lr=0.1, batch_size=4),
    "fedadam": registry.make("fedadam", TASK, lr=0.1, batch_size=4),
    "fedavgft": registry.make("fedavgft", TASK, lr=0.1, batch_size=4),
    "median": AVERAGING._replace(aggregate={"model": median()}),
    "topk": AVERAGING._replace(up={"model": topk(0.5)}),
}


def trained(method, devices: int, model: int):
    sim = tiny.build(method, the_task=TASK, mesh=mesh.make(devices, model), chunk=2)
    return tiny.host(sim.segment(sim.world, sim.init(sim.world, jax.random.key(0)), jnp.int32(0), jnp.int32(3)))


@pytest.mark.parametrize("name, devices, model", [
    ("median", 4, 2), pytest.param("scaffold", 4, 2, marks=pytest.mark.full), *(pytest.param(name, *split, marks=pytest.mark.full) for name in METHODS for split in ((4, 4), (2, 2))),
])
def test_results_agree_to_rounding(name, devices, model):
    tiny.close(trained(METHODS[name], 1, 1), trained(METHODS[name], devices, model), rel=1e-5)


@pytest.mark.parametrize("model, shape, first, expected", [
    (4, (12, 8), (), P("model", None)), (4, (6, 8), (), P(None, "model")), (4, (8, 8), (), P("model", None)), (4, (6, 7), (), P(None, None)),
    (4, (), (), P()), (1, (12, 8), (), P(None, None)), (4, (20, 12, 8), ("clients",), P("clients", "model", None)),
    (4, (8, 6), (None,), P(None, None)),
])
def test_the_largest_axis_that_divides_is_cut(model, shape, first, expected):
    found = mesh.cut(mesh.make(4, model), {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}, *first)["x"]
    assert found.spec == expected and found.mesh.shape == {"clients": 4 // model, "model": model}


def wide() -> tuple:
    """A task whose model is larger than all else, and its size in bytes."""
    width = 4096

    def init(key):
        return {"body": jax.random.normal(key, (tiny.DIM, width)), "head": jnp.zeros((width, tiny.CLASSES))}

    def apply(params, batch, key=None):
        return jnp.tanh(batch["x"] @ params["body"]) @ params["head"]

    def loss(params, batch, key):
        return jnp.mean(jnp.where(batch["mask"], TASK.metrics(apply(params, batch), batch)["loss"], 0)), Aux()

    return TASK._replace(init=init, apply=apply, loss=loss), 4 * width * (tiny.DIM + tiny.CLASSES)


@pytest.mark.full
def test_memory_of_a_device_is_its_part_of_the_model():
    def bytes_of(model: int) -> int:
        sim = tiny.build(registry.make("scaffold", task, lr=0.1, batch_size=4), the_task=task, mesh=mesh.make(model, model), lanes=1)
        state = jax.eval_shape(sim.init, sim.world, jax.random.key(0))
        memory = sim.segment.lower(sim.world, state, jnp.int32(0), jnp.int32(1)).compile().memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    task, size = wide()
    alone, cut = bytes_of(1), bytes_of(4)
    assert alone > tiny.N * size  # the client table among it
    assert cut < 0.3 * alone
