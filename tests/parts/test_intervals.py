from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lab.parts import intervals


def algorithm_two(here, cutoff):
    """FedAU's bookkeeping, round by round as the paper has it: the weight used in each round."""
    weight, length, count, used = 1.0, 0, 0, []
    for present in here:
        used.append(weight)
        length += 1
        if present or length == cutoff:
            weight = length if count == 0 else (count * weight + length) / (count + 1)
            length, count = 0, count + 1
    return used


@pytest.mark.parametrize("cutoff", [0, 1, 3, 7])
def test_the_lazy_record_is_the_papers(cutoff):
    here = np.random.default_rng(cutoff).random(60) < 0.2
    record, expected = intervals.never(), algorithm_two(here, cutoff)
    for clock in np.flatnonzero(here):
        record = intervals.before(record, jnp.int32(clock), cutoff)
        np.testing.assert_allclose(record.mean, expected[clock], rtol=1e-5)
        record = intervals.after(record, jnp.int32(clock))


def test_a_period_is_learned_exactly():
    record = intervals.never()
    for clock in range(3, 40, 4):
        record = intervals.after(intervals.before(record, jnp.int32(clock), 50), jnp.int32(clock))
        assert record.mean == 4.0
    assert intervals.before(intervals.never(), jnp.int32(3), 50).mean == 1.0  # nothing is known before the first time
