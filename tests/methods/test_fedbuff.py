from __future__ import annotations

import bench
import numpy as np
import pytest
from clock import rolled

PLAIN = {"server_lr": 1.0, "beta": 0.0}


@pytest.mark.full
def test_equal_times_and_a_buffer_of_all_are_fedavg():
    together = rolled("buffered:6,law=fixed")
    everybody = bench.always(*range(6))
    np.testing.assert_allclose(bench.path("fedbuff", cohort=together, **PLAIN), bench.path("fedavg", weighting="uniform", cohort=everybody), rtol=1e-6)


@pytest.mark.full
def test_with_a_buffer_of_one_it_is_fedasync():
    late = {"cohort": rolled("buffered:1,law=fixed:1/2/4", rounds=9), "rounds": 9}
    asynchronous = bench.path("fedasync", variant="delta", alpha=1.0, rho=0.0, **late)
    np.testing.assert_allclose(bench.path("fedbuff", **PLAIN, **late), asynchronous, rtol=1e-6)
    assert np.abs(bench.path("fedbuff", staleness="constant", **PLAIN, **late) - asynchronous).max() > 0.01


@pytest.mark.full
def test_a_buffer_of_stale_uploads_makes_a_short_update():
    """It is divided by its size, not by the sum of the weights."""
    late = {"cohort": rolled("buffered:2,law=fixed:1/1/1/1/5/5", rounds=16), "rounds": 16}
    models = [np.asarray(s.server.server["x"]) for a in (0.0, 1.0)
              for s, _ in bench.history(bench.make("fedbuff", a=a, **PLAIN), segments=(1,) * 16, cohort=late["cohort"])]
    first = np.split(np.array(models), 2)
    assert (first[0][0] == first[1][0]).all()  # fresh uploads
    table = late["cohort"].init(None, None)
    stale = np.arange(16)[:, None] - table.base
    assert stale.max() >= 8 and np.abs(first[0] - first[1]).max() > 0.01


def test_its_server_step_is_its_own():
    from fedjax_lab.parts.transforms.composed import composed

    with pytest.raises(ValueError, match="--server=adam: 'fedbuff' refuses it"):
        composed(bench.make("fedbuff"), server="adam")
