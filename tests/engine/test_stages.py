"""A sequence of tasks: the clients' training examples change with the rounds."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny

from fedjax_lab import models, registry
from fedjax_lab.data import scenario, sequence, sources
from fedjax_lab.engine import mesh, sync
from fedjax_lab.parts.cohorts.uniform import uniform

KEY = jax.random.key(0)


def tasks(text):
    return scenario.stages(text, sources.load("digits"), key=KEY, clients=6)


@pytest.mark.parametrize("text", ["dirichlet:0.3+class_incremental:3", "iid+domain_incremental:permuted,groups=2", "iid+class_incremental:2,cumulative=false"])
def test_every_task_is_there_in_its_rounds_and_no_other(text):
    parts, people = tasks(text), scenario.build(text, sources.load("digits"), key=KEY, clients=6)
    assert people.clients == 6 and people.manifest["tasks"] == len(parts) and people.stages.rounds == 10
    np.testing.assert_array_equal(people.train.size, sum(part.train.size for part in parts))
    for t, part in enumerate(parts):
        for clock in (10 * t, 10 * t + 9, *[999] * (t == len(parts) - 1)):
            now = people.at(clock)
            np.testing.assert_array_equal(now.counts, part.counts)
            for client in range(6):
                here = [p.train.examples["x"][p.train.rows(client, np.arange(part.train.size[client]))] for p in (now, part)]
                np.testing.assert_array_equal(*here)
                assert (now.train.examples["task"][now.train.rows(client, np.arange(now.train.size[client]))] == t).all()
    of_all = parts[-1:] if "cumulative=false" not in text and "class" in text else parts
    np.testing.assert_array_equal(people.test.examples["x"], np.concatenate([p.test.examples["x"] for p in of_all]))
    assert parts[0].at(3) is parts[0]


def test_a_run_over_the_sequence_is_one_over_its_tasks_in_turn():
    parts = tasks("iid+domain_incremental:permuted,groups=2,rounds=2")
    task = models.build("logreg", {k: v[:1] for k, v in parts[0].train.examples.items()}, 10)
    method = registry.make("fedavg", task, batch_size="full")

    def run(people, state, clock, rounds):
        sim = sync.build(task, method, people, uniform(6, 3), mesh=mesh.make(1), length=4)
        state = sim.init(sim.world, KEY) if state is None else state
        return sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(rounds))[0]

    whole = run(sequence.joined(parts), None, 0, 4)
    apart = run(parts[1], run(parts[0], None, 0, 2), 2, 2)
    for a, b in zip(*map(jax.tree.leaves, (whole.server, apart.server)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_only_synchronous_rounds_with_everything_on_the_device_know_tasks():
    people = sequence.joined(tasks("iid+class_incremental:2"))
    task = models.build("logreg", {k: v[:1] for k, v in people.train.examples.items()}, 10)
    for more in ({"streamed": True}, {"client_state": "host"}):
        with pytest.raises(ValueError, match="a sequence of tasks needs --schedule=sync, and population and client_state on the device"):
            sync.build(task, registry.make("fedavg", task), people, uniform(6, 3), mesh=mesh.make(1), **more)


@pytest.mark.full
def test_taps_are_what_the_kernels_multiply():
    example = {"x": np.random.default_rng(0).normal(size=(3, 12, 12, 2)).astype(np.float32), "y": np.zeros(3, np.int32), "mask": np.ones(3, bool)}
    module = models.CNN(5, widths=(4, 6), hidden=8)
    task = models.classification("cnn", module, example)
    params = task.init(KEY)
    fed = task.taps(params, example)
    assert list(fed) == ["convs_0/kernel", "convs_1/kernel", "hidden_layer/kernel", "head/kernel"]
    assert [x.shape for x in fed.values()] == [(3, 144, 50), (3, 36, 100), (3, 1, 54), (3, 1, 8)]

    def out(path):
        layer = params[path.split("/")[0]]
        return fed[path] @ layer["kernel"].reshape(-1, layer["kernel"].shape[-1]) + layer["bias"]

    np.testing.assert_allclose(out("head/kernel")[:, 0], task.apply(params, example), rtol=1e-5)
    first = models.Conv(4, (5, 5)).apply({"params": params["convs_0"]}, example["x"])
    np.testing.assert_allclose(out("convs_0/kernel"), first.reshape(3, 144, 4), rtol=1e-4, atol=1e-5)
    second = models.Conv(6, (5, 5)).apply({"params": params["convs_1"]}, jax.nn.relu(models.max_pool(first)))
    np.testing.assert_allclose(out("convs_1/kernel"), second.reshape(3, 36, 6), rtol=1e-4, atol=1e-5)
    assert tiny.task().taps is not None
