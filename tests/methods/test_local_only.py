"""Local-only training."""
from __future__ import annotations

import bench
import numpy as np
import pytest

from fedjax_lab.parts.transforms.composed import composed


def ended(cohort=3, **options):
    return bench.run(bench.make("local", **options), cohort=cohort)


def test_nothing_is_sent():
    state, record = ended()
    assert not record.rounds["bytes_up"].any() and not record.rounds["all_bytes_up"].any() and not record.rounds["all_bytes_down"].any()
    np.testing.assert_array_equal(state.server["x"], np.ones(3))


@pytest.mark.full
def test_who_is_sampled_does_not_matter():
    few, others = ended(cohort=bench.always(0)), ended(cohort=bench.always(4, 5))
    np.testing.assert_array_equal(few[0].clients["x"], others[0].clients["x"])


def test_only_the_sampled_where_asked():
    state, _ = ended(cohort=bench.always(1, 3), who="sampled")
    assert (np.asarray(state.clients["x"]) != 1).any(1).tolist() == [False, True, False, True, False, False]


def test_others_data_do_not_matter():
    first, second = bench.population(), bench.population()
    examples = {k: v.copy() for k, v in second.train.examples.items()}
    examples["o"][4:] += 3.0  # all but client 0
    second = second._replace(train=second.train._replace(examples=examples))
    states = [bench.run(bench.make("local"), people)[0] for people in (first, second)]
    np.testing.assert_array_equal(states[0].clients["x"][0], states[1].clients["x"][0])
    assert (states[0].clients["x"][1:] != states[1].clients["x"][1:]).any()


@pytest.mark.full
def test_with_one_client_it_is_fedavg():
    alone = bench.population((4,))
    state, _ = bench.run(bench.make("local"), alone, cohort=bench.always(0))
    fedavg, _ = bench.run(bench.make("fedavg"), alone, cohort=bench.always(0))
    np.testing.assert_allclose(state.clients["x"][0], fedavg.server["x"], rtol=1e-6)


@pytest.mark.parametrize("part, value", [("wire_up", "half"), ("aggregator", "median"), ("server", "adam:lr=0.1")])
def test_what_has_nothing_to_act_on_is_refused(part, value):
    with pytest.raises(ValueError, match=f"--{part}={value}: 'local' refuses it: nothing is sent"):
        composed(bench.make("local"), **{part: value})
