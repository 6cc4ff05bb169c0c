from __future__ import annotations

import bench
import numpy as np
import pytest
from clock import rolled

SGD = {"client_optimizer": "sgd", "batch_size": "full"}


@pytest.mark.full
def test_at_equal_speeds_it_is_fedavg_after_the_singles():
    """Six updates of one client each, then one group of all six, again and again."""
    groups = rolled("compass:fixed", rounds=9)
    models = [np.asarray(s.server.params["x"]) for s, _ in bench.history(bench.make("fedcompass", **SGD), segments=(6, 1, 1, 1), cohort=groups)]
    table = groups.init(None, None)
    assert (np.asarray(table.ids) >= 0).sum(1).tolist() == [1] * 6 + [6] * 3
    stale = (np.arange(9)[:, None] - table.base)[np.asarray(table.ids) >= 0]
    assert stale[:6].tolist() == list(range(6)) and sorted(stale[6:12].tolist()) == list(range(6)) and not stale[12:].any()
    everybody = bench.always(*range(6))
    for before, after in ((1, 2), (2, 3)):
        start = bench.TASK._replace(init=lambda key, x=models[before]: {"x": x})
        state, _ = bench.run(bench.make("fedavg", weighting="uniform", server_lr=0.9, task=start), rounds=1, cohort=everybody, task=start)
        np.testing.assert_allclose(models[after], state.server["x"], rtol=1e-6)


@pytest.mark.full
def test_a_client_counts_alike_in_any_group():
    """One client in an update moves the model by alpha / N of its change."""
    single = bench.path("fedcompass", cohort=rolled("compass:fixed", rounds=1), rounds=1, **SGD)
    first = int(np.asarray(rolled("compass:fixed", rounds=1).init(None, None).ids)[0, 0])
    alone = bench.path("fedavg", cohort=bench.always(first), rounds=1)
    np.testing.assert_allclose(single - 1, 0.9 / 6 * (alone - 1), rtol=1e-5)
