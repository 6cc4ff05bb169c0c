from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab import local, registry
from fedjax_lab.methods.optimization import fedlex
from fedjax_lab.parts.oracles.patient import descend_patiently

FEW = {"cap": 3, "patience": 3}


def last(name, **options):
    return bench.path(name, **options)


@pytest.mark.full
def test_without_a_mask_it_is_fedavgm():
    np.testing.assert_allclose(last("fedlex", mask_on="nothing", warm=False, beta=0.5, **FEW), last("fedavgm", beta=0.5), rtol=1e-5)


@pytest.mark.parametrize("scale", ["range", "iqr"])
def test_guidance_lies_between_zero_and_one_tensor_by_tensor(scale):
    rng = np.random.default_rng(0)
    V = {"a": jnp.asarray(rng.exponential(size=(4, 5)), jnp.float32), "still": jnp.zeros(3)}
    G = fedlex.guidance_of(V, scale)
    assert (G["still"] == 1).all()
    assert (float(G["a"].min()), float(G["a"].max())) == (0.0, 1.0)
    if scale == "range":
        v = np.asarray(V["a"], np.float64)
        np.testing.assert_allclose(G["a"], (v - v.min()) / (v.max() - v.min()), rtol=1e-5, atol=1e-7)


@pytest.mark.full
def test_guidance_is_the_mean_squared_change_of_the_scouts():
    """With one step of the whole data the scouts' changes are known by hand."""
    people = bench.population()
    a, o = (people.train.examples[k] for k in "ao")
    owner = np.repeat(np.arange(6), people.train.size)
    steps = np.stack([0.05 * (a * (1 - o))[owner == i].mean(0) for i in range(6)])  # every client starts at one
    V = (steps**2).mean(0)
    state, _ = bench.run(bench.make("fedlex", warm=False, cap=1, patience=1), people, rounds=1)
    np.testing.assert_allclose(state.server.server.G["x"], (V - V.min()) / (V.max() - V.min()), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("mask_on", ["gradient", "update"])
def test_where_guidance_is_zero_nothing_moves(mask_on):
    method = bench.make("fedlex", warm=False, mask_on=mask_on, **FEW)
    first = bench.start(method).server.server.params["x"]
    end = bench.run(method, rounds=3)[0].server.server
    still = np.asarray(end.G["x"]) == 0
    assert still.any() and (np.asarray(end.params["x"] == first) == still).all()


@pytest.mark.full
@pytest.mark.parametrize("share, count", [(0.0, 1), (0.5, 3), (1.0, 6)])
def test_so_many_are_scouts(share, count):
    assert bench.start(bench.make("fedlex", scouts=share)).server.server.scouts.sum() == count


@pytest.mark.full
def test_a_scout_stops_when_its_patience_ends():
    """A rate at which the loss grows: a patient scout goes on, a hasty one stops after its second epoch."""
    data, x = bench.client(bench.population(), 3), {"x": jnp.ones(bench.DIM)}

    def explored(epochs, patience):
        work = registry.training(lr=5.0, batch_size="full", epochs=epochs)
        plan = local.batches(jax.random.key(0), data, work)
        return descend_patiently(plan, x, local.gradient(bench.TASK), work.optimizer, epochs, patience)["x"]

    found = [explored(8, patience) for patience in (1, 2, 8)]
    np.testing.assert_allclose(found, [explored(n, n) for n in (2, 3, 8)], rtol=1e-6)
    assert not np.allclose(found[0], found[2])


@pytest.mark.full
def test_the_cohorts_guidance_is_of_its_own_scouts():
    state, _ = bench.run(bench.make("fedlex", guidance="cohort", warm=False, cap=1), rounds=1, cohort=bench.always(1, 4))
    V = np.asarray(state.clients["x"])[[1, 4]].mean(0)
    np.testing.assert_allclose(state.server.server.G["x"], (V - V.min()) / (V.max() - V.min()), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="guidance=cohort needs the scouts of every client: scouts=0.5"):
        bench.make("fedlex", guidance="cohort", scouts=0.5)


@pytest.mark.full
def test_what_is_sent():
    _, record = bench.run(bench.make("fedlex", **FEW), rounds=2)
    assert record.rounds["bytes_up"].tolist() == record.rounds["bytes_down"].tolist() == [[12] * 3] * 2
    assert record.rounds["all_bytes_up"].tolist() == [[24] * 6, [0] * 6]  # an averaged epoch, and the scouts
    assert record.rounds["all_bytes_down"].tolist() == [[36] * 6, [0] * 6]  # two models, and the guidance
    _, record = bench.run(bench.make("fedlex", guidance="cohort", warm=False, **FEW), rounds=1)
    assert record.rounds["bytes_up"].tolist() == [[12] * 3] and record.rounds["bytes_down"].tolist() == [[24] * 3]
