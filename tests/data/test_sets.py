"""Text, tables, series and graphs: the readers on made-up files, and on the real sets where FEDJAX_LAB_DATA is set."""
from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from fedjax_lab.data import files, folders, known, scenario, sources, text

KEY = jax.random.key(0)
REAL = os.environ.get("FEDJAX_LAB_DATA")


def test_windows_are_one_ahead_and_lose_nothing():
    for n in (1, 2, 5, 6, 7, 11):
        cut = text.windows(np.arange(1, n + 1), 5)
        x, y = cut[:, :-1].ravel(), cut[:, 1:].ravel()
        np.testing.assert_array_equal(y[y > 0], np.arange(2, n + 1))
        assert (y[(y > 0)] == x[y > 0] + 1).all() and cut.shape == (max(1, -(-(n - 1) // 5)), 6)


def test_tokens_undo_escapes():
    assert text.tokens(b"AT&amp;T's #36;5.50 don\\t &lt;b&gt;") == ["at", "&", "t", "'", "s", "$", "5", ".", "50", "don", "t",
                                                                    "<", "b", ">"]


def test_sentences_number_frequent_words_first():
    arrays = {"train__label": np.array([0, 1]), "test__label": np.array([1])}
    made = text.sentences("toy", {"train": [b"b a b", b"c a b"], "test": [b"c z b"]}, arrays, words=2, length=4)
    assert made.train["x"].tolist() == [[2, 3, 2, 0], [1, 3, 2, 0]] and made.test["x"].tolist() == [[1, 1, 2, 0]]
    assert made.manifest["tokens"] == 4 and made.classes == 2


def test_area_averages_keep_the_mean():
    x = np.random.default_rng(0).random((2, 105, 105, 1)).astype(np.float32)
    small = folders._shrunk(x, 28)
    np.testing.assert_allclose(small.mean((1, 2)), x.mean((1, 2)), atol=1e-3)
    np.testing.assert_allclose(folders._shrunk(x, 35), x.reshape(2, 35, 3, 35, 3, 1).mean((2, 4)), atol=1e-5)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes made-up files in the place of the known sets."""
    monkeypatch.setattr(known, "FACTS", {})

    def put(name, **arrays):
        (tmp_path / os.path.dirname(name)).mkdir(exist_ok=True)
        np.savez(tmp_path / name, **arrays)

    return put


def test_adult_is_standardized_by_its_training_half(tmp_path, write):
    generator = np.random.default_rng(0)
    numbers = {name: generator.integers(0, 50, 40) for name in files.NUMBERS}
    codes = {name: generator.integers(0, 3, 40).astype(np.int8) for name in files.CATEGORIES}
    names = {f"{name}_names": np.array(["a", "b", "c"]) for name in files.CATEGORIES}
    split, label = (np.arange(40) >= 30).astype(np.int8), generator.integers(0, 2, 40)
    write("tabular/adult.npz", **numbers, **codes, **names, split=split, label=label)
    made = files.adult(data_dir=tmp_path)
    np.testing.assert_allclose(made.train["x"][:, :6].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(made.train["x"][:, :6].std(0), 1, atol=1e-6)
    hot = made.test["x"][:, 6:].reshape(10, 8, 3)
    np.testing.assert_array_equal(hot.argmax(2), np.stack([codes[name][30:] for name in files.CATEGORIES], 1))
    assert (hot.sum(2) == 1).all() and np.array_equal(made.train["sex"], codes["sex"][:30])
    blind = files.adult(sensitive=False, data_dir=tmp_path)
    assert blind.train["x"].shape[1] == 6 + 6 * 3 and np.array_equal(blind.train["race"], made.train["race"])


def test_ratings_test_the_last_fifth_of_each_user(tmp_path, write):
    user, when = np.repeat([0, 1], [10, 4]), np.r_[np.arange(10)[::-1], np.arange(4)]
    write("ratings/ml_latest_small.npz", user=user, item=np.arange(14), rating=np.ones(14, np.float32), timestamp=when)
    made = files.ml_latest_small(data_dir=tmp_path)
    assert made.test["x"].tolist() == [[0, 1], [0, 0]] and made.keys["user"].tolist() == [0] * 8 + [1] * 4
    assert made.manifest["items"] == 14


def test_stocks_look_back_only_and_split_by_time(tmp_path, write):
    price = np.exp(np.arange(101.0) ** 1.5 / 50)[:, None] * np.ones((1, 2))
    price[:50, 1] = np.nan
    write("series/stocks.npz", adj_close=price, ticker=np.array(["A", "B"]))
    made = files.stocks(window=8, stride=1, data_dir=tmp_path)
    returns = np.diff(np.log(price[:, 0]))
    returns /= np.concatenate([returns[:80], returns[50:80]]).std()
    mine = made.keys["ticker"] == 0
    np.testing.assert_allclose(made.train["x"][mine][3, :, 0], returns[3:11], rtol=1e-4)
    np.testing.assert_allclose(made.train["y"][mine], returns[8:80], rtol=1e-4)
    np.testing.assert_allclose(made.test["y"][made.test_keys["ticker"] == 0], returns[80:], rtol=1e-4)
    assert (~mine).sum() == 80 - 50 - 8 and np.isfinite(made.train["x"]).all()
    assert set(files.stocks(window=8, target="direction", data_dir=tmp_path).train["y"]) == {1}


def test_graphs_have_normal_rows_and_pairs_of_edges(tmp_path, write):
    masks = {f"{side}_mask": np.arange(4) == i for i, side in enumerate(("train", "val", "test"))}
    write("graphs/cora.npz", x=np.array([[1, 1], [0, 1], [0, 0], [1, 0]], np.uint8), y=np.array([0, 1, 2, -1]),
          edge_index=np.array([[0, 1], [1, 0]]), **masks)
    made = sources.load("cora", tmp_path)
    assert made.train["x"].tolist() == [[0.5, 0.5], [0, 1], [0, 0], [1, 0]] and made.edges.tolist() == [[0, 1], [1, 0]]
    assert made.classes == 3 and made.train["y"].tolist() == [0, 1, 2, -1]


@pytest.mark.parametrize("name", ["adult", "cora", "stocks", "ml_latest_small", "shakespeare_roles", "omniglot_small"])
def test_missing_files_say_where_they_were_looked_for(name, tmp_path):
    with pytest.raises(ValueError, match=f"'{name}' not found: looked for {tmp_path}.*give --data_dir"):
        sources.load(name, tmp_path)


def test_regression_and_logistic_have_their_ground_truth():
    linear = sources.load("regression:200,noise=0.5,spread=2,size=40")
    expected = np.einsum("md,md->m", linear.train["x"], linear.truth["weights"][linear.keys["client"]])
    assert (linear.train["y"] - expected).std() == pytest.approx(0.5, rel=0.03)
    assert (linear.truth["weights"] - linear.truth["weights"].mean(0)).std() == pytest.approx(2, rel=0.05)
    residual = linear.train["y"] - linear.train["x"] @ linear.truth["optimum"]
    np.testing.assert_allclose(linear.train["x"].T @ residual / len(residual), 0, atol=1e-5)
    binary = sources.load("logistic:200,size=100")
    margin = np.einsum("md,md->m", binary.train["x"], binary.truth["weights"][binary.keys["client"]])
    for low, high in ((-2, -1), (0, 0.5), (1, 2)):
        near = (margin > low) & (margin < high)
        assert binary.train["y"][near].mean() == pytest.approx((1 / (1 + np.exp(-margin[near]))).mean(), abs=0.03)


if REAL:
    def test_shakespeare_reads_as_text():
        made = sources.load("shakespeare_roles")
        alphabet = made.manifest["vocabulary"]
        said = "".join(alphabet[c - 2] for c in made.train["x"][made.keys["role"] == 0].ravel() if c > 1)
        assert "\n" in said and " the " in said and made.train["x"].shape[1] == 80
        x, y = made.train["x"], made.train["y"]
        np.testing.assert_array_equal(x[:, 1:], np.maximum(y[:, :-1], 0))
        assert ((y == -1).sum(1) > 0).sum() == 164 and ((y == -1) | (y > 1)).all()  # only the last window of a role is padded
        size = scenario.build("natural", made, key=KEY).train.size
        assert len(size) == 164 and size.sum() == made.examples and set(made.test_keys["role"]) == set(made.keys["role"])

    @pytest.mark.parametrize("name, train, test, classes", [("sst2_sentences", 6920, 1821, 2), ("ag_news_small", 6000, 1600, 4)])
    def test_sentences_are_whole(name, train, test, classes):
        made = sources.load(name)
        assert (made.examples, len(made.test["y"]), made.classes) == (train, test, classes)
        assert made.train["x"].max() < made.manifest["tokens"] and (made.train["x"][:, 0] > 0).all()
        assert (made.test["x"] == 1).sum() < 0.15 * (made.test["x"] > 0).sum()

    def test_omniglot_has_every_character_of_every_drawer_once():
        made = sources.load("omniglot_small")
        both = [np.concatenate([a, b]) for a,
                b in ((made.train["y"], made.test["y"]), (made.keys["drawer"], made.test_keys["drawer"]))]
        assert len(np.unique(np.stack(both), axis=1)[0]) == len(both[0]) == 242 * 20
        assert (np.bincount(made.train["y"]) == 16).all() and made.train["x"].max() <= 1 and made.train["x"].mean() < 0.2

    @pytest.mark.parametrize("name, nodes, edges, train", [("cora", 2708, 10556, 140), ("citeseer", 3327, 9104, 120)])
    def test_citation_graphs_make_subgraphs(name, nodes, edges, train):
        made = sources.load(name)
        assert made.examples == nodes and len(made.edges) == edges and made.train["train_mask"].sum() == train
        parts = scenario.build("community", made, key=KEY, clients=10)
        assert parts.manifest["kept_edges"] > 0.75 * edges and parts.counts.sum() == train
        assert (parts.test.examples["y"] >= 0).sum() == 1000

    def test_adult_ratings_and_stocks_have_natural_clients():
        assert scenario.build("natural", sources.load("adult"), key=KEY).clients == 15
        users = scenario.build("natural", sources.load("ml_latest_small"), key=KEY)
        assert users.clients == 610 and users.test.size.min() >= 4
        assert scenario.build("natural", sources.load("stocks"), key=KEY).clients == 19
