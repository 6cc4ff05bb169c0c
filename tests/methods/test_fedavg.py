from __future__ import annotations

import bench
import numpy as np
import pytest

from fedjax_lab.types import Population, Stream


def rows(clients):
    """A population that lists these clients of the bench's, in this order."""
    train = bench.population().train
    spans = [np.arange(train.offset[i], train.offset[i] + train.size[i]) for i in clients]
    size = np.array([len(s) for s in spans], np.int32)
    stream = Stream({k: v[np.concatenate(spans)] for k, v in train.examples.items()}, (np.cumsum(size) - size).astype(np.int32), size)
    return Population(stream, stream, np.zeros((len(size), 0), np.float32))


def everybody(count):
    return bench.always(*range(count))


def test_one_client_is_gradient_descent():
    people = rows([3])
    a, o = (people.train.examples[k].astype(np.float64) for k in ("a", "o"))
    x = np.ones(bench.DIM)
    for _ in range(12):
        x = x - 0.05 * (a * (x - o)).mean(0)
    np.testing.assert_allclose(bench.path("fedavg", people, rounds=3, cohort=everybody(1), local_steps=4), x, rtol=1e-5)


def test_everybody_with_one_full_step_is_centralized_gradient_descent():
    people = bench.population()
    a, o = (people.train.examples[k].astype(np.float64) for k in ("a", "o"))
    x = np.ones(bench.DIM)
    for _ in range(5):
        x = x - 0.05 * (a * (x - o)).mean(0)
    for name in ("fedavg", "fedsgd"):
        np.testing.assert_allclose(bench.path(name, rounds=5, cohort=everybody(6), local_steps=1), x, rtol=1e-5)


@pytest.mark.full
def test_the_order_of_clients_is_of_no_account():
    one, other = (bench.path("fedavg", rows(order), cohort=everybody(4)) for order in ([0, 1, 2, 3], [2, 0, 3, 1]))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.full
def test_a_duplicated_client_counts_as_one_of_twice_the_size():
    train = bench.population().train
    span = np.arange(train.offset[2], train.offset[2] + train.size[2])
    double = Stream({k: np.concatenate([v[:4], v[span], v[span]]) for k, v in train.examples.items()}, np.array([0, 4], np.int32),
                    np.array([4, 2 * len(span)], np.int32))
    merged = Population(double, double, np.zeros((2, 0), np.float32))
    listed = bench.path("fedavg", rows([0, 2, 2]), cohort=everybody(3))
    np.testing.assert_allclose(bench.path("fedavg", merged, cohort=everybody(2)), listed, rtol=1e-6)


@pytest.mark.full
def test_the_server_step_scales_the_mean_change():
    half, whole = (bench.path("fedavg", rounds=1, server_lr=s) - 1 for s in (0.5, 1.0))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)
