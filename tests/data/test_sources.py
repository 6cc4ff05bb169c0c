from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedjax_lab.data import known, source, sources

REAL = os.environ.get("FEDJAX_LAB_DATA")


def test_digits_are_the_uci_digits():
    digits, raw = sources.load("digits"), load_digits()
    assert digits.train["x"].shape == (1442, 8, 8, 1) and digits.test["x"].shape == (355, 8, 8, 1)
    assert digits.train["x"].dtype == np.float32 and digits.train["y"].dtype == np.int32 and digits.classes == 10
    together = np.concatenate([digits.train["x"], digits.test["x"]]).reshape(-1, 64) * 16
    assert sorted(map(bytes, together.astype(np.uint8))) == sorted(map(bytes, raw.data.astype(np.uint8)))
    assert digits.train["x"].max() == 1 and digits.train["x"].min() == 0


def test_digits_split_is_stratified_and_fixed():
    digits = sources.load("digits")
    train, test = (np.bincount(side["y"], minlength=10) for side in (digits.train, digits.test))
    np.testing.assert_array_equal(test, (train + test) // 5)
    np.random.seed(3)
    assert np.array_equal(sources.load("digits").train["x"], digits.train["x"])


@pytest.mark.parametrize("changed, says", [
    ({"sha256": "0"}, "'digits' is not the set of that name: its arrays have sha256 443e1f.*, not 0; give other data another name"),
    ({"train": 1441, "classes": 9}, r"it has train 1442 \(not 1441\), classes 10 \(not 9\); give"),
    ({"shape": (64,)}, r"it has shape \(8, 8, 1\) \(not \(64,\)\)")])
def test_a_set_that_is_not_what_its_name_says_is_refused(monkeypatch, changed, says):
    monkeypatch.setitem(known.FACTS, "digits", known.FACTS["digits"]._replace(**changed))
    with pytest.raises(ValueError, match=says) as error:
        sources.load("digits")
    assert "\n" not in str(error.value)


def test_heavy_packages_load_when_needed():
    code = ("import sys, fedjax_lab.data.sources, fedjax_lab.data.scenario, fedjax_lab.data.picture; "
            "print([m for m in ('tensorflow_datasets', 'sklearn', 'matplotlib', 'networkx', 'orbax') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_digest_sees_names_types_shapes_and_contents():
    a = np.arange(6, dtype=np.int32)
    base = source.digest({"a": a})
    expected = hashlib.sha256(b"a <i4 (6,)" + a.tobytes()).hexdigest()
    assert base == expected
    others = [{"b": a}, {"a": a.astype(np.float32)}, {"a": a.reshape(2, 3)}, {"a": a + 1}, {"a": a.view(np.uint32)}]
    assert len({base, *map(source.digest, others)}) == 6
    assert source.digest({"a": a.reshape(2, 3).T}) == source.digest({"a": np.ascontiguousarray(a.reshape(2, 3).T)})


def write_npz(path, **more):
    generator = np.random.default_rng(0)
    arrays = {"x_train": generator.integers(0, 256, (20, 4, 4)).astype(np.uint8), "y_train": np.arange(20) % 3,
              "x_test": np.zeros((5, 4, 4), np.uint8), "y_test": np.arange(5)[:, None] % 3}
    np.savez(path, **{**arrays, **more})
    return arrays


def test_npz_scales_images_and_numbers_labels(tmp_path):
    arrays = write_npz(tmp_path / "my.npz", client_train=np.arange(20) // 5, client_test=np.arange(5) // 2)
    loaded = sources.load(f"npz:{tmp_path}/my.npz")
    np.testing.assert_allclose(loaded.train["x"][..., 0], arrays["x_train"] / 255, atol=1e-7)
    assert loaded.train["x"].shape == (20, 4, 4, 1) and loaded.test["y"].shape == (5,) and loaded.classes == 3
    assert loaded.name == "my" and loaded.keys["client"].dtype == np.int32
    assert loaded.test_keys["client"].tolist() == [0, 0, 1, 1, 2]


def test_npz_refuses_what_it_lacks(tmp_path):
    np.savez(tmp_path / "bad.npz", x_train=np.zeros(3), y_train=np.zeros(3), x_test=np.zeros(3))
    for text, says in [(f"npz:{tmp_path}/bad.npz", "lacks y_test; it has x_train"), (f"npz:{tmp_path}/no.npz", "no such file"),
                       ("npz", "needs option 'path'")]:
        with pytest.raises(ValueError, match=says):
            sources.load(text)
    write_npz(tmp_path / "short.npz", y_train=np.arange(19))
    with pytest.raises(ValueError, match="differ in length"):
        sources.load(f"npz:{tmp_path}/short.npz")


def test_a_missing_set_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDJAX_LAB_DATA", raising=False)
    with pytest.raises(ValueError,
                       match=f"'mnist' not found: looked for {tmp_path}/mnist and {tmp_path}/tfds/mnist; give --data_dir"):
        sources.load("mnist", data_dir=tmp_path)
    with pytest.raises(ValueError, match="neither --data_dir nor FEDJAX_LAB_DATA names a folder"):
        sources.load("mnist")
    monkeypatch.setenv("FEDJAX_LAB_DATA", str(tmp_path / "env"))
    with pytest.raises(ValueError, match=f"looked for {tmp_path}/env/mnist"):
        sources.load("mnist")
    (tmp_path / "env" / "tfds" / "mnist").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no version"):
        sources.load("mnist")
    with pytest.raises(ValueError, match="'mnist' has no options"):
        sources.load("mnist:3")
    with pytest.raises(ValueError, match="not found.*digits.*did you mean 'digits'"):
        sources.load("digit")


def test_the_cache_keeps_heals_and_follows_its_files(tmp_path):
    file, cache = tmp_path / "raw", tmp_path / "cache"
    file.write_bytes(b"x")
    calls = []

    def decode():
        calls.append(1)
        return {"a": np.arange(3), "b": np.array([b"xy", b"z"])}

    def load():
        arrays = source.cached("toy", file, cache, decode)
        assert arrays["a"].tolist() == [0, 1, 2] and arrays["b"].tolist() == [b"xy", b"z"]

    load(), load()
    assert len(calls) == 1
    (entry,) = cache.iterdir()
    np.save(entry / "a.npy", np.arange(3) + 1)
    load(), load()
    assert len(calls) == 2 and len(list(cache.iterdir())) == 1
    file.write_bytes(b"xy")
    load()
    assert len(calls) == 3 and len(list(cache.iterdir())) == 2


def test_a_cached_set_that_is_not_the_known_one_is_decoded_again(tmp_path, monkeypatch):
    (tmp_path / "raw").write_bytes(b"x")
    right, wrong = {"a": np.arange(3)}, {"a": np.arange(4)}
    load = lambda decoded: source.cached("toy", tmp_path / "raw", tmp_path / "cache", lambda: decoded)["a"].tolist()
    assert load(wrong) == load(right) == [0, 1, 2, 3]  # nobody knows better, and it is whole
    monkeypatch.setitem(known.FACTS, "toy", known.Facts(3, 0, 0, (), source.digest(right)))
    assert load(right) == load(wrong) == [0, 1, 2]
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "a.npy").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="'toy' is not the set of that name"):
        load(wrong)
    assert load(right) == [0, 1, 2]


def test_the_cache_may_be_unwritable_and_follows_xdg(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert source.cached("toy", blocked, blocked / "cache", lambda: {"a": np.ones(1)})["a"] == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    source.cached("toy", blocked, None, lambda: {"a": np.ones(1)})
    assert [p.name[:4] for p in (tmp_path / "xdg" / "fedjax_lab").iterdir()] == ["toy-"]


def test_synthetic_has_its_ground_truth():
    made = sources.load("synthetic:0.5,beta=2,clients=40")
    client, truth = made.keys["client"], made.truth
    scores = np.einsum("md,mdc->mc", made.train["x"], truth["weights"][client]) + truth["bias"][client]
    assert (scores.argmax(1) == made.train["y"]).mean() > 0.999
    size = np.bincount(client) + np.bincount(made.test_keys["client"])
    assert size.min() >= 50 and set(client) == set(range(40))
    np.testing.assert_allclose(np.bincount(made.test_keys["client"]), 0.2 * size, atol=0.51)
    within = np.concatenate([made.train["x"][client == k] - made.train["x"][client == k].mean(0) for k in range(40)])
    np.testing.assert_allclose(within.var(0), np.arange(1, 61) ** -1.2, rtol=0.2)
    assert np.array_equal(sources.load("synthetic:0.5,beta=2,clients=40").train["x"], made.train["x"])
    assert set(np.bincount(sources.load("synthetic:size=20,clients=5").keys["client"])) == {16}


def test_synthetic_alpha_and_beta_spread_models_and_features():
    spread = lambda s: (s.truth["weights"].mean((1, 2)).std(),
                        np.std([s.train["x"][s.keys["client"] == k].mean() for k in range(60)]))
    models, features = zip(*(spread(sources.load(f"synthetic:{a},beta={b},clients=60")) for a, b in [(0, 0), (3, 0), (0, 3)]))
    assert models[1] > 20 * models[0] and models[2] == pytest.approx(models[0], abs=0.05)
    assert features[2] > 10 * features[0] and features[1] < 2 * features[0]


if REAL:
    @pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full if name in ("cifar10", "mnist") else ()) for name in known.FACTS])
    def test_known_sets_are_what_they_say(name):
        facts, loaded = known.FACTS[name], sources.load(name)
        assert loaded.train["x"].shape == (facts.train, *facts.shape) and loaded.test["x"].shape == (facts.test, *facts.shape)
        assert loaded.classes == facts.classes
        if loaded.train["x"].ndim == 4:
            assert loaded.train["x"].max() == 1 and loaded.train["x"].min() == 0 and np.ptp(np.bincount(loaded.train["y"])) < 0.3 * facts.train

    @pytest.mark.full
    @pytest.mark.parametrize("name", [name for name, facts in known.FACTS.items() if facts.sha256])
    def test_known_sets_decode_to_their_hash(name, monkeypatch):
        sha256 = known.FACTS[name].sha256
        monkeypatch.setitem(known.FACTS, name, known.FACTS[name]._replace(sha256="0"))
        with pytest.raises(ValueError, match=f"its arrays have sha256 {sha256}, not 0;"):
            sources.load(name, cache_dir=os.devnull)

    def test_mnist_agrees_with_tfds():
        import tensorflow_datasets as tfds

        folder = next(p for p in (REAL, f"{REAL}/tfds") if os.path.isdir(f"{p}/mnist"))
        records = tfds.data_source("mnist", split="test", data_dir=folder).__getitems__([0, 77, 9999])
        loaded = sources.load("mnist")
        for at, record in zip((0, 77, 9999), records):
            np.testing.assert_array_equal(np.round(loaded.test["x"][at] * 255), record["image"])
            assert loaded.test["y"][at] == record["label"]
