from __future__ import annotations

import itertools

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from fedjax_lab.data import draw, label_skew, owners, partition, source, transport

LABELED = {name: f for name, f in partition.PARTITIONS.items() if name != "natural"}
fast = settings(max_examples=40, deadline=None)
labelings = st.tuples(st.integers(1, 200), st.integers(1, 8), st.integers(0, 9)).map(
    lambda t: np.random.default_rng(t).choice(np.arange(t[1]) * 3, t[0], p=np.random.default_rng(t).dirichlet(np.ones(t[1]))))
keys = st.integers(0, 5).map(jax.random.key)
BIG = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 4000))


def table(labels, part):
    """The clients' class counts, by a loop over clients."""
    rows = [labels[part.index[o: o + n]] for o, n in zip(part.offset, part.size)]
    return np.stack([np.bincount(row, minlength=labels.max() + 1) for row in rows])


def exact(part, examples, clients):
    assert all(a.dtype == np.int32 for a in part[:3]) and len(part.size) == len(part.offset) == clients
    np.testing.assert_array_equal(np.sort(part.index), np.arange(examples))
    np.testing.assert_array_equal(part.offset, np.r_[0, np.cumsum(part.size)[:-1]])
    assert part.size.min() >= 1 and part.size.sum() == examples


@pytest.mark.parametrize("name", LABELED)
@fast
@given(labels=labelings, key=keys, data=st.data())
def test_every_example_once_and_every_client_something(name, labels, key, data):
    clients = data.draw(st.integers(1, len(labels)))
    try:
        part = LABELED[name](labels, key, clients)
    except ValueError as error:
        assert name in ("shards", "pathological") and "\n" not in str(error)
        return
    exact(part, len(labels), clients)
    again = LABELED[name](labels, key, clients)
    assert all(np.array_equal(a, b) for a, b in zip(part[:3], again[:3]))


@pytest.mark.parametrize("name", LABELED)
def test_only_the_key_decides(name):
    np.random.seed(0)
    first = LABELED[name](BIG, jax.random.key(1), 50)
    np.random.seed(1)
    assert np.array_equal(first.index, LABELED[name](BIG, jax.random.key(1), 50).index)
    assert not np.array_equal(first.index, LABELED[name](BIG, jax.random.key(2), 50).index)


@fast
@given(labels=labelings, key=keys, data=st.data())
def test_equal_sizes_differ_by_one(labels, key, data):
    clients = data.draw(st.integers(1, len(labels)))
    for part in (partition.iid(labels, key, clients), partition.dirichlet(labels, key, clients, 0.1),
                 partition.dirichlet_classes(labels, key, clients, 0.1, balanced=True)):
        assert np.ptp(part.size) <= 1


@fast
@given(labels=labelings, key=keys, law=st.sampled_from(["lognormal", "powerlaw", "dirichlet"]), data=st.data())
def test_size_laws_do_not_depend_on_the_partition(labels, key, law, data):
    clients = data.draw(st.integers(1, len(labels)))
    part = partition.dirichlet(labels, key, clients, sizes=law, skew=2.0)
    exact(part, len(labels), clients)
    exact(partition.iid(labels, key, clients, sizes=law, skew=2.0), len(labels), clients)
    assert np.ptp(partition.dirichlet(labels, key, clients, sizes=law, skew=0).size) <= 1


@pytest.mark.parametrize("law", ["lognormal", "powerlaw", "dirichlet"])
def test_more_skew_is_more_unequal(law):
    spread = [np.square(partition.quantity(BIG, jax.random.key(0), 200, s, law=law).size / len(BIG)).sum() * 200
              for s in (0.0, 0.1, 0.5, 1.0, 2.0)]
    assert spread[0] == pytest.approx(1) and all(a < b for a, b in itertools.pairwise(spread))


def test_lognormal_sizes_have_their_sigma():
    size = partition.quantity(np.zeros(10**6, int), jax.random.key(0), 2000, 0.7).size
    assert np.log(size).std() == pytest.approx(0.7, rel=0.05)


def test_powerlaw_sizes_follow_the_rank():
    size = np.sort(partition.quantity(np.zeros(10**6, int), jax.random.key(0), 100, 1.5, law="powerlaw").size)[::-1]
    np.testing.assert_allclose(size / size[0], np.arange(1, 101) ** -1.5, atol=2 / size[0])


@fast
@given(labels=labelings, key=keys, data=st.data())
def test_dirichlet_large_alpha_is_the_global_distribution(labels, key, data):
    clients = data.draw(st.integers(1, len(labels)))
    part = partition.dirichlet(labels, key, clients, np.inf)
    expected = part.size[:, None] * np.bincount(labels) / len(labels)
    assert np.abs(table(labels, part) - expected).max() < 2


@pytest.mark.parametrize("alpha", [1e-6, 1e-4])
def test_dirichlet_small_alpha_is_one_class_per_client(alpha):
    counts = table(BIG, partition.dirichlet(BIG, jax.random.key(3), 200, alpha))
    assert (counts > 0).sum() <= 200 + 10  # a vertex of the transport polytope has N + C - 1 cells


@fast
@given(labels=labelings, key=keys, alpha=st.sampled_from([1e-9, 1e-6]), data=st.data())
def test_small_alpha_leaves_no_more_cells_than_the_margins_force(labels, key, alpha, data):
    clients, kinds = data.draw(st.integers(1, len(labels))), len(np.unique(labels))
    for part in (partition.dirichlet(labels, key, clients, alpha), partition.dirichlet_classes(labels, key, clients, alpha),
                 partition.dirichlet_classes(labels, key, clients, alpha, balanced=True)):
        exact(part, len(labels), clients)
        assert (table(labels, part) > 0).sum() <= clients + 2 * kinds


@fast
@given(labels=labelings, key=keys, alpha=st.sampled_from([1e10, 1e15, np.inf]), data=st.data())
def test_large_alpha_splits_every_class_alike(labels, key, alpha, data):
    clients = data.draw(st.integers(1, len(labels)))
    for part in (partition.dirichlet(labels, key, clients, alpha), partition.dirichlet_classes(labels, key, clients, alpha),
                 partition.dirichlet_classes(labels, key, clients, alpha, balanced=True)):
        exact(part, len(labels), clients)
        expected = part.size[:, None] * np.bincount(labels) / len(labels)
        assert np.abs(table(labels, part) - expected).max() < 2


def test_concentrations_of_thousands_are_no_trouble():
    for make in (partition.dirichlet, partition.dirichlet_classes):
        for alpha in (1e4, 1e5, 1e300):
            assert np.abs(table(BIG, make(BIG, jax.random.key(0), 20, alpha)) - 200).max() < 30


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_dirichlet_is_over_classes_per_client(alpha):
    shares = table(BIG, partition.dirichlet(BIG, jax.random.key(0), 400, alpha)) / 100
    assert shares.var(0).mean() == pytest.approx(0.1 * 0.9 / (10 * alpha + 1), rel=0.12)
    np.testing.assert_allclose(shares.mean(0), 0.1)


def test_dirichlet_prior_is_global_or_uniform():
    labels = np.repeat([0, 1], [9000, 1000])
    rare = table(labels, partition.dirichlet(labels, jax.random.key(0), 100, 5.0))[:, 1] / 100
    assert rare.var() == pytest.approx(0.1 * 0.9 / 11, rel=0.3)
    flat = table(labels, partition.dirichlet(labels, jax.random.key(0), 100, 5.0, prior="uniform"))[:, 1] / 100
    assert flat.mean() == pytest.approx(0.1) and not np.array_equal(flat, rare)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_dirichlet_classes_is_over_clients_per_class(alpha):
    shares = np.concatenate([table(BIG, partition.dirichlet_classes(BIG, jax.random.key(k), 20, alpha)) for k in range(20)],
                            1) / 4000
    assert np.square(shares).sum(0).mean() == pytest.approx((alpha + 1) / (20 * alpha + 1), rel=0.1)
    draws = np.exp(draw.log_gamma(alpha, (20, 10), draw.rng(jax.random.key(5))))
    counts = table(BIG, partition.dirichlet_classes(BIG, jax.random.key(5), 20, alpha))
    np.testing.assert_allclose(counts, 4000 * draws / draws.sum(0), atol=2.5)
    even = table(BIG, partition.dirichlet_classes(BIG, jax.random.key(0), 20, np.inf))
    assert np.abs(even - 200).max() <= 1


def test_shards_are_runs_of_sorted_labels():
    counts = table(BIG, partition.shards(BIG, jax.random.key(0), 100))
    assert set(np.unique(counts)) == {0, 200, 400} and ((counts > 0).sum(1) <= 2).all()
    counts = table(BIG, partition.shards(BIG, jax.random.key(0), 10, 1))
    assert (np.sort(counts, 1)[:, -1] == 4000).all()


@fast
@given(labels=labelings, key=keys, clients=st.integers(1, 40), classes=st.integers(1, 9))
def test_pathological_gives_exactly_k_classes(labels, key, clients, classes):
    totals = np.unique(labels, return_counts=True)[1]
    possible = classes <= len(totals) <= clients * classes <= np.minimum(totals, clients).sum()
    if not possible:
        with pytest.raises(ValueError, match="^[^\n]*classes[^\n]*$"):
            partition.pathological(labels, key, clients, classes)
        return
    part = partition.pathological(labels, key, clients, classes)
    exact(part, len(labels), clients)
    assert ((table(labels, part) > 0).sum(1) == classes).all()


def test_pathological_mixes_pairs_of_classes():
    has = table(BIG, partition.pathological(BIG, jax.random.key(0), 500, 2)) > 0
    together = (has.T.astype(int) @ has)[np.triu_indices(10, 1)]
    assert together.min() > 0 and together.max() < 4 * together.mean()


@fast
@given(rows=st.lists(st.integers(1, 30), min_size=1, max_size=12), kinds=st.integers(1, 6), seed=st.integers(0, 99))
def test_tables_have_exact_margins(rows, kinds, seed):
    generator, rows = np.random.default_rng(seed), np.array(rows)
    kinds = min(kinds, rows.sum())
    columns = draw.apportion(generator.random(kinds), rows.sum(), low=1)
    counts = transport.table(generator.normal(size=(len(rows), kinds)) * 10 ** generator.uniform(-2, 3), rows, columns, generator)
    assert counts.min() >= 0 and np.array_equal(counts.sum(1), rows) and np.array_equal(counts.sum(0), columns)


@fast
@given(seed=st.integers(0, 99))
def test_projection_is_the_iterative_proportional_fit(seed):
    generator = np.random.default_rng(seed)
    rows, columns = generator.integers(20, 90, 6), np.full(4, 1)
    columns = draw.apportion(generator.random(4), rows.sum(), low=10)
    logits = generator.normal(size=(6, 4))
    fitted = np.exp(logits)
    for _ in range(3000):
        fitted *= columns / fitted.sum(0)
        fitted *= (rows / fitted.sum(1))[:, None]
    np.testing.assert_allclose(transport.project(logits, rows, columns), fitted, atol=1.0)


def test_rounding_has_no_bias():
    real = np.array([[0.3, 1.5, 0.2], [0.5, 0.25, 0.25]])
    mean = np.mean([transport.round_rows(real, np.array([2, 1]), np.random.default_rng(s)) for s in range(4000)], 0)
    np.testing.assert_allclose(mean, real, atol=0.04)


@fast
@given(weights=st.lists(st.floats(0, 10), min_size=1, max_size=20), low=st.integers(0, 3), extra=st.integers(0, 200))
def test_apportion_keeps_sum_bounds_and_quota(weights, low, extra):
    total = low * len(weights) + extra
    whole = draw.apportion(np.array(weights), total, low)
    assert whole.sum() == total and whole.min() >= low
    if low == 0 and min(weights) > 1e-3:
        assert np.abs(whole - np.array(weights) / sum(weights) * total).max() < 1 + 1e-6
    with pytest.raises(ValueError):
        draw.apportion(np.array(weights), total, low, high=(total - 1) // len(weights))


@fast
@given(labels=labelings, key=keys, data=st.data())
def test_given_is_the_inverse_of_padding(labels, key, data):
    part = partition.iid(labels, key, data.draw(st.integers(1, len(labels))), sizes="lognormal")
    padded = np.full((len(part.size), part.size.max() + 2), -1)
    for i, (o, n) in enumerate(zip(part.offset, part.size)):
        padded[i, :n] = part.index[o: o + n]
    again = partition.given(padded, len(labels))
    assert all(np.array_equal(a, b) for a, b in zip(part[:3], again[:3]))


@pytest.mark.parametrize("index, says", [
    ([[0, 1], [1, 2]], "uses 1 examples more than once"), ([[0, 9]], "names example 9; the source has 5"),
    ([[0, 1], [-1, -1]], "client 1 of the partition has no example"), ([0, 1], r"array \[clients, n\]"),
    ([[0.5]], "integer array")])
def test_given_refuses(index, says):
    with pytest.raises(ValueError, match=says):
        partition.given(np.array(index), 5)


def test_natural_clients_are_the_values_of_a_key():
    drawer, alphabet = np.array([3, 3, 7, 7, 7, 9]), np.array([0, 1, 0, 0, 1, 0])
    names = {"drawer": drawer, "alphabet": alphabet}
    part = partition.natural(names, jax.random.key(0), None)
    assert part.by == ("drawer",) and part.size.tolist() == [2, 3, 1] and all(len(set(drawer[rows])) == 1 for rows in split(part))
    both = partition.natural(names, jax.random.key(0), None, by=("drawer", "alphabet"))
    assert both.size.tolist() == [1, 1, 2, 1, 1]
    two = partition.natural(names, jax.random.key(0), 2)
    assert len(two.size) == 2 and len(set(drawer[two.index])) == 2 and two.size.sum() == np.isin(drawer, drawer[two.index]).sum()


@fast
@given(owner=st.lists(st.integers(-5, 5), min_size=1, max_size=80), other=st.integers(1, 4), key=keys, data=st.data())
def test_natural_clients_hold_all_and_only_their_own(owner, other, key, data):
    owner = np.array(owner)
    names = {"who": owner, "where": np.arange(len(owner)) % other}
    by = data.draw(st.sampled_from([("who",), ("where",), ("who", "where")]))
    values = np.stack([names[name] for name in by], 1)
    count = len(np.unique(values, axis=0))
    clients = data.draw(st.none() | st.integers(1, count))
    part = partition.natural(names, key, clients, by)
    held = [values[rows] for rows in split(part)]
    assert len(held) == (clients or count) and all((mine == mine[0]).all() for mine in held)
    assert all(len(mine) == (values == mine[0]).all(1).sum() for mine in held)
    assert len({tuple(mine[0]) for mine in held}) == len(held) and len(set(part.index)) == len(part.index)


@fast
@given(labels=labelings, key=keys, data=st.data())
def test_more_clients_than_examples_are_one_line(labels, key, data):
    clients = len(labels) + data.draw(st.integers(1, 9))
    for make in LABELED.values():
        with pytest.raises(ValueError, match="^[^\n]*$") as error:
            make(labels, key, clients)
        assert str(len(labels)) in str(error.value) or "classes" in str(error.value)


def split(part):
    return [part.index[o: o + n] for o, n in zip(part.offset, part.size)]


def origin(classes=3, keys=None):
    labels = np.arange(30, dtype=np.int32) % 3
    arrays = {"x": np.zeros((30, 1), np.float32), "y": labels}
    return source.make("toy", arrays, arrays, classes, keys)


@pytest.mark.parametrize("text, clients, says", [
    ("dirichle", 3, "unknown partition 'dirichle'; valid: .*did you mean 'dirichlet'"),
    ("dirichlet:0", 3, "option 'alpha' of 'dirichlet': '0' is not valid; expected float > 0"),
    ("dirichlet:alfa=1", 3, "no option 'alfa'.*did you mean 'alpha'"),
    ("iid", 31, "clients=31 is not valid: there are 30 examples"), ("iid", 0, "clients=0 is not valid"),
    ("shards:2", 16, "16 clients x 2 shards is not valid: there are 30 examples"),
    ("pathological:4", 10, "classes=4 per client is more than the 3 classes"),
    ("natural", None, "no natural clients"), ("iid", None, "partition 'iid' needs a number of clients")])
def test_impossible_requests_are_one_line(text, clients, says):
    with pytest.raises(ValueError, match=says) as error:
        partition.make(text, origin(), key=jax.random.key(0), clients=clients)
    assert "\n" not in str(error.value)


def test_make_binds_the_flag():
    key, toy = jax.random.key(4), origin(keys={"role": np.arange(30) // 10})
    part = partition.make("dirichlet:0.5,sizes=lognormal", toy, key=key, clients=4)
    assert np.array_equal(part.index, label_skew.dirichlet(toy.train["y"], key, 4, 0.5, sizes="lognormal").index)
    assert part.name == "dirichlet:0.5,sizes=lognormal"
    assert partition.make("natural:role", toy, key=key).size.tolist() == [10, 10, 10]
    with pytest.raises(ValueError, match="needs classes"):
        partition.make("shards", origin(0), key=key, clients=4)
    exact(partition.make("iid", origin(0), key=key, clients=4), 30, 4)


@pytest.mark.parametrize("name", ["iid", "shards", "dirichlet"])
def test_many_clients(name):
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    exact(LABELED[name](labels, jax.random.key(0), 100_000), 200_000, 100_000)


def test_owners_refuse_labels_that_are_no_classes():
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        owners.number(np.zeros(3))
