from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.types import Aux, Task


def test_no_tuning_gives_the_global_numbers():
    _, record = bench.run(bench.make("fedavgft", finetune_epochs=0))
    report = record.evaluation
    for name in ("mean", "worst_decile", "std"):
        np.testing.assert_allclose(report[f"personal_client_test_loss_{name}"], report[f"client_test_loss_{name}"], rtol=1e-6)


@pytest.mark.full
def test_tuning_leaves_the_server_alone_and_helps_the_clients():
    state, record = bench.run(bench.make("fedavgft", finetune_epochs=20))
    np.testing.assert_array_equal(state.server["x"], bench.path("fedavg"))
    assert record.evaluation["personal_client_test_loss_mean"] < 0.5 * record.evaluation["client_test_loss_mean"]


def split_task() -> Task:
    """A task with leaves of three kinds."""

    def loss(params, batch, key):
        each = sum(jnp.sum((x - batch["o"]) ** 2, -1) for x in jax.tree.leaves(params))
        return jnp.where(batch["mask"], each, 0).sum(), Aux()

    def init(key):
        return {"body": {"kernel": jnp.zeros(3)}, "norm_0": {"scale": jnp.zeros(3)}, "head": {"kernel": jnp.zeros(3)}}

    return Task("split", init, lambda params, batch, key=None: batch["o"], loss, lambda outputs, batch: {"loss": batch["o"].sum(-1)})


@pytest.mark.parametrize("tune,moved", [("all", {"body", "norm_0", "head"}), ("head", {"head"}), ("norm", {"norm_0"})])
def test_only_the_chosen_leaves_move(tune, moved):
    task = split_task()
    method = bench.make("fedavgft", task, tune=tune, lr=0.01)
    x = task.init(None)
    tuned = method.personal(jax.random.key(0), x, (), bench.client(bench.population(), 0))
    assert {name for name in x if jax.tree.leaves(tuned[name])[0].any()} == moved


def test_a_model_without_a_head_is_named():
    method = bench.make("fedavgft", tune="head")
    with pytest.raises(ValueError, match="no leaf named 'head'; it has x"):
        method.personal(jax.random.key(0), {"x": jnp.zeros(3)}, (), bench.client(bench.population(), 0))


def test_the_rate_of_the_tuning():
    x, data = {"x": jnp.ones(3)}, bench.client(bench.population(), 3)
    slow, same = (bench.make("fedavgft", finetune_rate=r, lr=lr).personal(jax.random.key(0), x, (), data) for r, lr in ((0.1, 0.05), (1.0, 0.005)))
    np.testing.assert_allclose(slow["x"], same["x"], rtol=1e-6)
