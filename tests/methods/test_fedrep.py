from __future__ import annotations

import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.types import Aux, Population, Stream, Task

TASK = bench.split()


def one(**options):
    """(model received, model after the client's work, its head at home) of client 3."""
    method = bench.make("fedrep", TASK, **options)
    x = TASK.init(jax.random.key(1))
    row = method.init_client(None, x, None)
    result = method.exchanges[0].local(jax.random.key(0), {"model": {"body": x["body"]}}, row, bench.client(bench.population(), 3))
    return x, result.upload["model"], result.client.private["head"]


def test_each_part_moves_in_its_own_phase():
    x, change, head = one(head_epochs=3, local_steps=0, epochs=1)
    assert np.abs(change["body"]).max() > 1e-4 and np.abs(head - x["head"]).max() > 1e-4
    x, change, head = one(head_epochs=0)
    np.testing.assert_array_equal(head, x["head"])
    x, single, head = one(head_epochs=3, local_steps=1)
    slope = jax.grad(lambda p: TASK.loss(p, bench.client(bench.population(), 3).train.whole(), None)[0])({"body": x["body"], "head": head})
    np.testing.assert_allclose(single["body"], -0.05 * slope["body"], atol=1e-6)  # the gradient under the fitted head


@pytest.mark.full
def test_without_head_work_it_is_fedavg_of_the_body():
    method = bench.make("fedrep", TASK, head_epochs=0, tune_epochs=0, local_steps=1)
    (rep, _), (avg, _) = bench.run(method, rounds=1, task=TASK), bench.run(bench.make("fedavg", TASK, local_steps=1), rounds=1, task=TASK)
    np.testing.assert_array_equal(rep.server["body"], avg.server["body"])


@pytest.mark.full
def test_tuning_at_evaluation_is_on_a_copy():
    (one, first), (two, second) = (bench.run(bench.make("fedrep", TASK, tune_epochs=n, head_epochs=1), task=TASK) for n in (0, 20))
    np.testing.assert_array_equal(one.server["body"], two.server["body"])
    np.testing.assert_array_equal(one.clients.private["head"], two.clients.private["head"])
    assert second.evaluation["personal_client_test_loss_mean"] < first.evaluation["personal_client_test_loss_mean"]


def linear(start: np.ndarray) -> Task:
    """y = w^T B^T x, with the body B [dim, rank], which starts as given, and the head w [rank]."""

    def loss(params, batch, key):
        error = batch["x"] @ params["body"] @ params["head"] - batch["y"]
        return jnp.sum(jnp.where(batch["mask"], error**2, 0)) / jnp.maximum(batch["mask"].sum(), 1), Aux()

    def init(key):
        return {"body": jnp.asarray(start, jnp.float32), "head": jnp.zeros(start.shape[1])}

    return Task("linear", init, lambda p, b, key=None: b["x"] @ p["body"] @ p["head"], loss, lambda out, b: {"loss": (out - b["y"]) ** 2})


@pytest.fixture(scope="module")
def angles():
    """The sine of the angle between the learned and the true subspace, round by round."""
    rng, dim, rank, clients, n = np.random.default_rng(0), 10, 2, 20, 60
    truth = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    x = rng.normal(size=(clients * n, dim)).astype(np.float32)
    heads = rng.normal(size=(clients, rank))
    y = np.einsum("md,dr,mr->m", x, truth, np.repeat(heads, n, 0)).astype(np.float32)
    stream = Stream({"x": x, "y": y}, (np.arange(clients) * n).astype(np.int32), np.full(clients, n, np.int32))
    people = Population(stream, stream, np.zeros((clients, 0), np.float32))
    task = linear(np.linalg.qr(truth + 0.3 * rng.normal(size=(dim, rank)))[0])
    method = bench.make("fedrep", task, head_epochs=60, tune_epochs=0, local_steps=1, lr=0.1)
    seen = bench.history(method, people, segments=(1,) * 8, cohort=bench.always(*range(clients)), task=task)
    bodies = [np.linalg.qr(state.server["body"])[0] for state, _ in seen]
    return [np.linalg.norm((np.eye(dim) - truth @ truth.T) @ body, 2) for body in bodies]


@pytest.mark.full
def test_the_subspace_contracts_on_the_linear_problem(angles):
    assert all(later < earlier for earlier, later in itertools.pairwise(angles))
    assert angles[-1] < 0.6 * angles[0]
