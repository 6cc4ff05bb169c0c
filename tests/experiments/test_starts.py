"""Where a model starts: trained on public examples, or read from a file."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import models, run, starts, tasks
from fedjax_lab.data import scenario
from fedjax_lab.models import weights

BASE = {"task": "digits_mlp:widths=16", "partition": "public:600+dirichlet:0.3", "clients": 6, "cohort": 3, "rounds": 2, "eval_every": 2, "devices": 1}


def clients():
    source, model = tasks.load(BASE["task"])
    people = scenario.build(BASE["partition"], source, key=jax.random.key(0), clients=6)
    return model(people.train.examples), people


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.full
def test_it_is_a_setting(tmp_path):
    """A model that starts where --init=public says knows the digits before the first round; read from the file that was kept, it is the same again."""
    one = fedjax_lab.train(**BASE, cache_dir=str(tmp_path), init="public:steps=300,lr=0.01")
    assert one.history[0]["test_accuracy"] > 0.75
    (kept,) = (tmp_path / "bases").iterdir()
    again = fedjax_lab.train(**BASE, init=f"file:{kept}")
    assert [row["test_loss"] for row in again.history] == [row["test_loss"] for row in one.history]


@pytest.mark.full
def test_pretraining_follows_from_its_arguments(tmp_path):
    task, people = clients()
    ends = [flat(starts.started(text, task, people, str(tmp_path / place)).init(jax.random.key(seed))) for text, place, seed in (
        ("public:steps=20", "a", 0), ("public:steps=20", "b", 1), ("public:steps=20,seed=1", "a", 0), ("public:steps=21", "a", 0), ("public:steps=20", "a", 2))]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[4])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3 and np.abs(ends[0] - ends[3]).max() > 1e-7
    assert len(list((tmp_path / "a" / "bases").iterdir())) == 3
    (damaged,) = (tmp_path / "b" / "bases").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    np.testing.assert_array_equal(flat(starts.started("public:steps=20", task, people, str(tmp_path / "b")).init(jax.random.key(0))), ends[0])
    (tmp_path / "no").write_text("a file where the cache should be")
    np.testing.assert_array_equal(flat(starts.started("public:steps=20", task, people, str(tmp_path / "no")).init(jax.random.key(0))), ends[0])


@pytest.mark.full
def test_statistics_are_pretrained_too():
    """A batch of the same examples in every step: the running statistics approach that batch's own."""
    example = {"x": jnp.arange(48.0).reshape(3, 4, 4, 1), "y": jnp.zeros(3, jnp.int32)}
    task = models.build("resnet8", {**example, "mask": jnp.ones(3, bool)}, 2, norm="batch", blocks=(1,), width=4, lowering="xla")
    params = starts.pretrained(task, example, steps=3, batch_size=2, lr=1e-3, seed=0)
    before = task.init(jax.random.key(0))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(jax.tree.leaves(params["stats"]), jax.tree.leaves(before["stats"]), strict=True))


def test_refusals(tmp_path):
    task, people = clients()
    weights.write(tmp_path / "own.safetensors", {**task.init(jax.random.key(0)), "more": jnp.ones(2)})
    for text, message in (
        ("public", r"^--init=public: 'public' needs public examples; split some off by --partition=public:500\+dirichlet:0.3, for example$"),
        (f"file:{tmp_path}/none", r"^--init=file:.*none: weights '.*none' not found: expected a .safetensors file, or a folder with some$"),
        (f"file:{tmp_path}/own.safetensors", r"no leaf of the model for more; it has body_0/bias, "),
        ("fil:x", r"^--init=fil:x: unknown start 'fil'; valid: file, public; did you mean 'file'\?$"),
        ("public:steps=0", r"^--init=public:steps=0: .*steps.*'0' is not valid"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            starts.started(text, task, people._replace(public={}))
        assert "\n" not in str(error.value)
    config = configs.make({**BASE, "init": "public:steps=2"})
    method = run.prepare(configs.make(BASE)).method
    with pytest.raises(ValueError, match="--init=public:steps=2: the method given has a task already"):
        run.prepare(config, method=method)
