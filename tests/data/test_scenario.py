from __future__ import annotations

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from fedjax_lab.data import manifest, partition, population, scenario, select, semi, shift, source, sources

KEY = jax.random.key(0)
fast = settings(max_examples=30, deadline=None)
DIGITS = sources.load("digits")


def people(text="iid", clients=12, **more):
    return scenario.build(text, DIGITS, key=KEY, clients=clients, **more)


def owner(stream):
    return np.repeat(np.arange(len(stream.size)), stream.size)


def rows(stream):
    return np.arange(stream.size.sum()) if stream.index is None else stream.index


def test_a_bare_partition_is_the_plain_call():
    whole = people("dirichlet:0.3")
    plain = population.build(DIGITS, partition.make("dirichlet:0.3", DIGITS, key=KEY, clients=12), key=KEY)
    assert whole.manifest == plain.manifest and np.array_equal(whole.train.examples["x"], plain.train.examples["x"])


def test_a_partition_file_is_followed(tmp_path):
    index = np.array([[0, 5, 7], [9, 2, -1]])
    np.savez(tmp_path / "p.npz", idx=index)
    two = scenario.build("", DIGITS, key=KEY, partition_file=tmp_path / "p.npz")
    np.testing.assert_array_equal(two.train.examples["x"], DIGITS.train["x"][[0, 5, 7, 9, 2]])
    turned = scenario.build("rotation:2", DIGITS, key=KEY, partition_file=tmp_path / "p.npz")
    assert sorted(turned.manifest["group_sizes"]) == [1, 1]
    np.savez(tmp_path / "q.npz", other=index)
    for file, text, says in [("q.npz", "", "lacks idx; it has other"), ("no.npz", "", "not found"),
                             ("p.npz", "iid", "no partition")]:
        with pytest.raises(ValueError, match=says):
            scenario.build(text, DIGITS, key=KEY, partition_file=tmp_path / file)


@pytest.mark.parametrize("text, says", [
    ("iid+iid", "one partition"), ("rotation+iid", "is not valid; expected longtail, subset, public, holdout, domains first"), ("longtail",
                                                                                                               "one part"),
    ("", "one partition"), ("iid+rotaton", "unknown partition 'rotaton'.*did you mean 'rotation'"), ("iid+semi:2",
                                                                                                     "option 'share' of 'semi'"),
    ("longtail:0.5+iid", "option 'factor' of 'longtail'"), ("subset:9999+iid",
                                                            "subset:9999 is not valid: there are 1442 examples"),
    ("domains+iid", "needs a source with domains"), ("community", "'community' needs a graph"), ("iid+semi:0.1,hidden=10",
                                                                                                 "fewer than the 10 classes"),
    ("iid+class_incremental:11", "tasks=11 is not valid"), ("class_incremental+iid", "is not valid; expected"), ("iid+domain_incremental:concept", "option 'change'"),
    ("public:0+iid", "int >= 1"), ("iid+class_incremental+class_incremental", "then one of class_incremental")])
def test_scenarios_that_make_no_sense_are_one_line(text, says):
    with pytest.raises(ValueError, match=says) as error:
        people(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
def test_longtail_is_exponential_and_leaves_the_test_set(factor):
    tail = select.longtail(DIGITS, KEY, factor)
    before, after = (np.bincount(s.train["y"], minlength=10) for s in (DIGITS, tail))
    np.testing.assert_array_equal(after, np.maximum(np.round(before * factor ** (-np.arange(10) / 9)), 1))
    assert tail.test is DIGITS.test and tail.manifest["train_examples"] == after.sum()
    assert tail.manifest["sha256"] != DIGITS.manifest["sha256"] or factor == 1


def test_public_examples_belong_to_nobody():
    rest = select.public(DIGITS, KEY, 200)
    shared, together = rest.public, np.concatenate([rest.train["x"], rest.public["x"]]).reshape(1442, -1)
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(DIGITS.train["x"].reshape(1442, -1), axis=0))
    assert len(shared["y"]) == 200 and np.abs(np.bincount(shared["y"]) - np.bincount(DIGITS.train["y"]) * 200 / 1442).max() < 1
    with pytest.raises(ValueError, match="public:1442 is not valid"):
        select.public(DIGITS, KEY, 1442)
    facts = people("public:200+longtail:10+dirichlet:0.3").manifest
    assert facts["public_examples"] == 200 and facts["sha256_public"] == source.digest(shared) and facts["examples"] < 1242
    both = select.subset(rest, KEY, 100)
    assert both.public is shared and both.examples == 100


def test_holdout_makes_the_others_public():
    """Roles stay whole: a few are clients, tested on their own lines, and what all others say is public."""
    rng = np.random.default_rng(0)
    sides = [{"x": rng.normal(size=(n, 3)).astype(np.float32), "y": rng.integers(0, 2, n).astype(np.int32)} for n in (60, 30)]
    owner, theirs = np.arange(60) % 10, np.arange(30) % 10
    toy = source.make("toy", *sides, 2, {"role": owner}, {"role": theirs})
    few = select.holdout(toy, KEY, 3)
    stay = np.unique(few.keys["role"])
    assert len(stay) == 3 and set(few.test_keys["role"]) == set(stay)
    np.testing.assert_array_equal(few.train["x"], sides[0]["x"][np.isin(owner, stay)])
    np.testing.assert_array_equal(few.public["x"], sides[0]["x"][~np.isin(owner, stay)])
    np.testing.assert_array_equal(few.test["x"], sides[1]["x"][np.isin(theirs, stay)])
    assert few.manifest["public_examples"] == 42 and few.manifest["test_examples"] == 9
    crowd = scenario.build("holdout:3+natural", toy, key=KEY)
    assert crowd.clients == 3 and len(crowd.public["x"]) == 42 and crowd.test.size.tolist() == [3, 3, 3]
    untested = select.holdout(toy._replace(test_keys={}), KEY, 3)
    assert len(untested.test["y"]) == 30 and untested.examples == 18
    for origin, count, message in ((toy, 10, "holdout:10 is not valid: there are 10 natural clients, and some must become public"),
                                   (DIGITS, 3, "'holdout' needs natural clients, which source 'digits' lacks")):
        with pytest.raises(ValueError, match=message):
            select.holdout(origin, KEY, count)


@fast
@given(labels=st.lists(st.integers(0, 5), min_size=2, max_size=120), key=st.integers(0, 5).map(jax.random.key), data=st.data())
def test_selections_leave_each_example_once_or_out(labels, key, data):
    arrays = {"x": np.arange(len(labels), dtype=np.float32)[:, None], "y": np.array(labels, np.int32)}
    toy, count = source.make("toy", arrays, arrays, 6, {"id": np.arange(len(labels))}), data.draw(st.integers(1, len(labels) - 1))
    totals = np.bincount(labels, minlength=6)
    for kept, size in ((select.subset(toy, key, count), count), (select.public(toy, key, count), len(labels) - count),
                       (select.longtail(toy, key, data.draw(st.floats(1, 100))), None)):
        names = kept.train["x"][:, 0].astype(int)
        assert len(set(names)) == len(names) == kept.examples and np.array_equal(kept.keys["id"], names)
        np.testing.assert_array_equal(kept.train["y"], arrays["y"][names])
        assert size in (None, kept.examples)
        if size is None:
            left = np.bincount(kept.train["y"], minlength=6)
            assert left[0] == totals[0] and ((left > 0) == (totals > 0)).all() and (left <= totals).all()
        else:
            assert np.abs(np.bincount(kept.train["y"], minlength=6) - totals * size / len(labels)).max() <= 1


@fast
@given(domain=st.lists(st.integers(0, 3), min_size=4, max_size=80), key=st.integers(0, 5).map(jax.random.key), data=st.data())
def test_every_example_stays_in_its_domain_and_is_used_once(domain, key, data):
    domain = np.unique(domain, return_inverse=True)[1].astype(np.int32)
    arrays = {"x": np.arange(len(domain), dtype=np.float32)[:, None], "y": np.zeros(len(domain), np.int32)}
    clients = data.draw(st.integers(domain.max() + 1, len(domain)))
    part = scenario.within_domains("iid", source.make("toy", arrays, arrays, 1, {"domain": domain}), key, clients)
    np.testing.assert_array_equal(np.sort(part.index), np.arange(len(domain)))
    assert len(part.size) == clients and all(len(set(domain[part.index[o: o + n]])) == 1 for o, n in zip(part.offset, part.size))


def test_a_sequence_of_tasks_has_stages():
    tasks = scenario.stages("dirichlet:0.3+rotation:2+class_incremental:5", DIGITS, key=KEY, clients=12)
    assert len(tasks) == 5 and sum(task.manifest["examples"] for task in tasks) == 1442
    assert len(scenario.stages("iid", DIGITS, key=KEY, clients=3)) == 1
    assert people("iid+class_incremental:5").stages.size.shape[0] == 5 and people("iid").stages is None


def test_parties_split_the_features_of_the_selected_examples():
    origin, parts = scenario.parties("subset:100+vertical:4,overlap=0.5", DIGITS, key=KEY)
    dealt = people("subset:100+vertical:4,overlap=0.5", clients=None)
    assert dealt.manifest["parties"] == dealt.clients == 4 and dealt.train.size.tolist() == [63, 63, 62, 62]
    for more, says in (({"clients": 3}, "--clients=3: the partition makes 4 parties"), ({"clients": 4, "client_test": 0.5}, "--client_test=0.5: no party can")):
        with pytest.raises(ValueError, match=says):
            people("vertical:4", **more)
    assert origin.examples == 100 and len(parts.aligned) == 50 and sorted(parts.columns[parts.columns >= 0]) == list(range(64))
    for text in ("iid", "vertical:2+rotation", "domains+vertical:2"):
        with pytest.raises(ValueError, match="makes no parties"):
            scenario.parties(text, DIGITS, key=KEY)
    with pytest.raises(ValueError, match="65 parties .* there are 64 columns"):
        scenario.parties("vertical:65", DIGITS, key=KEY)


def test_subset_keeps_frequencies_and_keys():
    keyed = source.make("toy", DIGITS.train, DIGITS.test, 10, {"id": np.arange(1442)})
    small = select.subset(keyed, KEY, 100)
    np.testing.assert_array_equal(small.train["x"], DIGITS.train["x"][small.keys["id"]])
    assert small.examples == 100 and np.abs(np.bincount(small.train["y"]) - np.bincount(DIGITS.train["y"]) * 100 / 1442).max() < 1


def test_groups_are_even_and_pure():
    assert np.ptp(np.bincount(shift.groups(KEY, 13, 4))) <= 1
    assert np.array_equal(shift.groups(KEY, 13, 4), shift.groups(KEY, 13, 4))


@pytest.mark.parametrize("held", [None, 0.25])
def test_every_client_trains_and_tests_in_its_own_group(held):
    plain, turned = people(client_test=held), people("iid+rotation:4", client_test=held)
    group = shift.groups(KEY, 12, 4)
    assert turned.manifest["group_sizes"] == [3, 3, 3, 3]
    for before, after in ((plain.train, turned.train), (plain.test, turned.test)):
        np.testing.assert_array_equal(before.size, after.size)
        for i in range(12):
            old, new = (s.examples["x"][rows(s)[owner(s) == i]] for s in (before, after))
            np.testing.assert_array_equal(new, np.rot90(old, group[i], (1, 2)))
    if held is None:
        assert len(turned.test.examples["y"]) == 4 * 355 and turned.test.index.dtype == np.int32


def test_odd_angles_turn_about_the_center():
    change = shift.rotation(6).change
    smooth = np.exp(-np.linspace(-2, 2, 33) ** 2)
    x = {"x": (smooth[:, None] * smooth)[None, :, :, None].astype(np.float32)}
    np.testing.assert_allclose(change(x, 1, None, 0)["x"], x["x"], atol=0.02)
    line = np.zeros((1, 21, 21, 1), np.float32)
    line[0, 10] = 1
    diagonal = shift.rotation(8).change({"x": line}, 1, None, 0)["x"][0, :, :, 0]
    assert all(diagonal[20 - i, i] > 0.5 for i in range(5, 16)) and diagonal[5, 5] < 0.1  # the same sense as np.rot90


def test_inversion_and_blur_and_background():
    generator, x = np.random.default_rng(0), {"x": np.random.default_rng(1).random((50, 12, 12, 1), dtype=np.float32)}
    np.testing.assert_allclose(shift.inversion().change(x, 1, generator, 0)["x"], 1 - x["x"])
    soft = [x["x"].std(), *(shift.blur(sigma=1.0).change(x, g, generator, 0)["x"].std() for g in (1, 2))]
    assert soft[0] > 2 * soft[1] > 2 * soft[2]
    np.testing.assert_allclose(shift.blur().change(x, 1, generator, 0)["x"].mean(), x["x"].mean(), rtol=0.02)
    black = {"x": np.zeros((50, 28, 28, 1), np.float32)}
    seen = shift.background().change(black, 1, generator, 0)["x"]
    assert seen.min() >= 0 and seen.max() <= 1 and 0.2 < seen.std() < 0.3 and seen.dtype == np.float32
    half = shift.background(3).change(black, 1, np.random.default_rng(2), 0)["x"]
    whole = shift.background(3).change(black, 2, np.random.default_rng(2), 0)["x"]
    np.testing.assert_allclose(half, whole / 2, atol=1e-6)


@pytest.mark.parametrize("law", ["random", "cycle"])
def test_concept_shift_renames_classes_by_group(law):
    plain, moved = people(), people(f"iid+concept:3,law={law}")
    group = shift.groups(KEY, 12, 3)
    names = np.stack([shift.permutation(g, 10, law) for g in range(3)])
    assert (np.sort(names, 1) == np.arange(10)).all() and (names[0] == np.arange(10)).all() and not (names[1] == names[2]).all()
    if law == "cycle":
        assert (names[0] != names[1]).all() and (names[1] == (np.arange(10) + 1) % 10).all()
    for before, after in ((plain.train, moved.train), (plain.test, moved.test)):
        g = group[owner(before)]
        np.testing.assert_array_equal(after.examples["y"][rows(after)], names[g, before.examples["y"][rows(before)]])
    np.testing.assert_array_equal(moved.train.examples["x"], plain.train.examples["x"])
    for i in range(12):
        np.testing.assert_array_equal(moved.counts[i][names[group[i]]], plain.counts[i])
    assert moved.manifest["total_variation"] == pytest.approx(manifest.distance(moved.counts).mean())


def test_shifts_need_images_or_classes():
    toy = source.make("toy", *[{"x": np.zeros((9, 2), np.float32), "y": np.zeros(9, np.float32)}] * 2, 0)
    for text in ("rotation", "inversion", "concept"):
        with pytest.raises(ValueError, match=f"shift '{text}' needs"):
            scenario.build(f"iid+{text}", toy, key=KEY, clients=3)
    with pytest.raises(ValueError, match="'semi' needs a class"):
        scenario.build("iid+semi", toy, key=KEY, clients=3)
    with pytest.raises(ValueError, match="'longtail' needs classes"):
        scenario.build("longtail+iid", toy, key=KEY, clients=3)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_labels_at_the_client(share):
    some = people(f"dirichlet:0.5+semi:{share}")
    labeled, mine, y = some.train.examples["labeled"], owner(some.train), some.train.examples["y"]
    counts = population.class_counts(np.where(labeled, y, -1), some.train.size, 10)
    assert labeled.dtype == bool and some.manifest["labeled"] == labeled.sum()
    assert np.abs(counts - share * some.counts).max() <= 1
    assert counts.sum() == pytest.approx(share * 1442, abs=25)
    assert share == 0 or np.bincount(mine, labeled).min() >= 1


def test_small_clients_have_a_label_each():
    some = people("iid+semi:0.01", clients=400)
    each = np.bincount(owner(some.train), some.train.examples["labeled"])
    assert each.min() == 1 and each.sum() < 430


def test_labels_at_some_clients_or_none():
    some = people("iid+semi:0.25,where=some")
    full = np.bincount(owner(some.train), some.train.examples["labeled"]) / some.train.size
    assert sorted(full) == [0] * 9 + [1] * 3
    assert not people("iid+semi:0.25,where=server").train.examples["labeled"].any()


@pytest.mark.parametrize("where", ["client", "some"])
def test_open_world_hides_whole_classes(where):
    some = semi.semi(people(), KEY, 1.0, where=where, hidden=3)
    seen = np.bincount(some.train.examples["y"], some.train.examples["labeled"])
    assert (seen == 0).sum() == 3 and (seen[seen > 0] == np.bincount(some.train.examples["y"])[seen > 0]).all()


def test_domains_are_dealt_apart():
    generator = np.random.default_rng(0)
    y, domain = generator.integers(0, 4, 600).astype(np.int32), (np.arange(600) >= 450).astype(np.int32)
    arrays = {"x": np.arange(600, dtype=np.float32)[:, None], "y": y}
    both = source.make("a/b", arrays, arrays, 4, {"domain": domain}, {"domain": domain})
    apart = scenario.build("domains+dirichlet:0.5", both, key=KEY, clients=8)
    np.testing.assert_array_equal(np.sort(apart.train.examples["x"][:, 0]), np.arange(600))
    whose = [set(domain[apart.train.examples["x"][owner(apart.train) == i, 0].astype(int)]) for i in range(8)]
    assert whose == [{0}] * 6 + [{1}] * 2
    tested = [set(domain[rows(apart.test)[owner(apart.test) == i]]) for i in range(8)]
    assert tested == whose
    with pytest.raises(ValueError, match="clients=1 is not valid: there are 2 domains"):
        scenario.build("domains+iid", both, key=KEY, clients=1)


def test_a_domain_source_joins_images():
    large = source.resized(np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 1, 8, 1).repeat(2, 1), 4, 16, 3)
    assert large.shape == (1, 4, 16, 3) and (np.diff(large[0, 0, :, 0]) >= 0).all()
    assert large.mean() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="expected at least two image sources"):
        sources.load("domains:digits")
    twice = sources.load("domains:digits/digits")
    assert twice.examples == 2 * 1442 and twice.keys["domain"].sum() == 1442
    assert np.array_equal(twice.train["x"][1442:], DIGITS.train["x"])
