from __future__ import annotations

import bench
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts.oracles.directions import ascended

EVEN = {"cohort": bench.rota(6, 3, (4,))}


@pytest.mark.full
def test_without_ascent_it_is_fedavg():
    np.testing.assert_array_equal(bench.path("fedsam", rho=0.0), bench.path("fedavg"))
    assert np.abs(bench.path("fedsam", rho=0.5) - bench.path("fedavg")).max() > 1e-3


@pytest.mark.full
def test_without_ascent_mofedsam_is_fedcm():
    np.testing.assert_array_equal(bench.path("fedsam", rho=0.0, alpha=0.3, weighting="uniform"), bench.path("fedcm", alpha=0.3))


def test_the_direction_on_a_bowl():
    def bowl(key, y, batch):
        return 0.5 * 3.0 * jnp.sum(y**2), 3.0 * y, ()

    y = jnp.array([0.6, -0.8, 0.3])
    np.testing.assert_allclose(ascended(bowl, 0.2)(None, y, None)[1], 3 * (1 + 0.2 / jnp.linalg.norm(y)) * y, rtol=1e-5)
    assert jnp.isfinite(ascended(bowl, 0.2)(None, jnp.zeros(3), None)[1]).all()


@pytest.mark.full
def test_only_the_momentum_needs_plain_sgd_and_a_second_message():
    assert bench.make("fedsam", client_optimizer="momentum:0.9").info.name == "fedsam"
    with pytest.raises(ValueError, match="alpha below 1 refuses client_optimizer"):
        bench.make("fedsam", client_optimizer="momentum:0.9", alpha=0.1)
    assert [bench.run(bench.make("fedsam", alpha=a), rounds=1)[1].rounds["bytes_down"][0, 0] for a in (1.0, 0.5)] == [12, 24]
