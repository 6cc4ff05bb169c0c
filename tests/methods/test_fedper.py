from __future__ import annotations

import bench
import jax
import numpy as np
import pytest

TASK = bench.split()


@pytest.mark.full
def test_everything_personal_is_training_alone():
    everything, _ = bench.run(bench.make("fedper", TASK, personal=""), task=TASK)
    alone, _ = bench.run(bench.make("local", TASK, who="sampled"), task=TASK)
    for name, leaf in alone.clients.items():
        np.testing.assert_allclose(everything.clients.private[name], leaf, rtol=1e-5)


@pytest.mark.full
def test_the_body_is_fedavgs_while_heads_are_alike():
    """With one step from equal heads the gradient of the body is that of FedAvg; after it the heads differ."""
    (fedper, _), (fedavg, _) = (bench.run(bench.make(name, TASK, local_steps=1), rounds=1, task=TASK) for name in ("fedper", "fedavg"))
    np.testing.assert_array_equal(fedper.server["body"], fedavg.server["body"])
    heads = np.asarray(fedper.clients.private["head"])
    assert np.unique(heads, axis=0).shape[0] == 4  # three took part, the others' is the first


@pytest.mark.full
def test_the_personal_model_has_the_clients_head():
    method = bench.make("fedper", TASK)
    state, record = bench.run(method, task=TASK)
    row = jax.tree.map(lambda x: x[2], state.clients)
    model = method.personal(None, state.server, row, None)
    np.testing.assert_array_equal(model["body"], state.server["body"])
    np.testing.assert_array_equal(model["head"], row.private["head"])
    assert record.evaluation["personal_client_test_loss_mean"] < record.evaluation["client_test_loss_mean"]


def test_a_model_without_such_leaves_is_named():
    with pytest.raises(ValueError, match="no leaf named 'last'; it has body, head"):
        bench.make("fedper", TASK, personal="last")
