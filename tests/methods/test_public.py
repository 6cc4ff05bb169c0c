"""FedLAW, FedDF and FedMD, and what they share: public examples."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

import fedjax_lab
from fedjax_lab import registry
from fedjax_lab.methods.personalization.knfu import weights
from fedjax_lab.parts import proxy
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.types import Cohort

PROBLEM = classifier()


def make(name, **options):
    return registry.make(name, PROBLEM.task, **{"lr": 0.1, "epochs": 2, "batch_size": 4, **options})


def server(name, people=PROBLEM.population, cohort=3, rounds=2, **options):
    return bench.run(make(name, **options), people, task=PROBLEM.task, cohort=cohort, rounds=rounds)[0].server


def gap(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)))


def test_epochs_see_every_public_example_once():
    public = {"x": jnp.arange(10.0)[:, None]}
    plan = proxy.epochs(jax.random.key(1), proxy.view(public), 3, 4)
    batches = [plan.at(jnp.int32(t)) for t in range(int(plan.steps))]
    seen = [np.sort(np.concatenate([np.asarray(b["x"])[np.asarray(b["mask"]), 0] for b in batches[i : i + 3]])) for i in (0, 3, 6)]
    np.testing.assert_array_equal(seen, np.tile(np.arange(10.0), (3, 1)))
    assert len(batches) == 9 and any((batches[0]["x"] != batches[i]["x"]).any() for i in (3, 6))
    part = proxy.view(public, first=7)
    np.testing.assert_array_equal(part.whole()["x"][:, 0], [7, 8, 9])


def test_a_stack_hides_what_was_not_heard():
    weights = jnp.array([2.0, 0.0, 6.0])
    stack = together().combine({"w": jnp.array([[1.0], [jnp.nan], [5.0]])}, weights, None)
    np.testing.assert_allclose(stack.shares, [0.25, 0, 0.75])
    np.testing.assert_allclose(stack.mixed(stack.shares)["w"], [4.0])
    assert not stack.empty and together().combine(stack.uploads, 0 * weights, None).empty


@pytest.mark.parametrize("name, demand", [("fedlaw", 1), ("feddf", 2), ("fedmd", 1), ("knfu", 1), ("fltrust", 1)])
def test_without_public_examples_there_is_one_clear_line(name, demand):
    message = rf"'{name}' needs at least {demand} public examples, there are 0; split some off by --partition=public:500\+dirichlet:0.3"
    with pytest.raises(ValueError, match=message):
        bench.start(make(name), PROBLEM.population._replace(public={}), PROBLEM.task)


@pytest.mark.full
@pytest.mark.parametrize("form", ["softmax", "quad"])
def test_fedlaws_weights_sum_to_what_it_shrinks_by(form):
    """One client: the model is its own, times the sum."""
    one = server("fedlaw", cohort=bench.always(3), rounds=1, form=form, server_epochs=15)
    plain = server("fedavg", cohort=bench.always(3), rounds=1)
    assert abs(float(one.shrinking) - 1) > 0.01
    assert gap(one.params, jax.tree.map(lambda x: one.shrinking * x, plain)) < 1e-6


@pytest.mark.full
def test_fedlaw_mistrusts_a_client_with_shuffled_labels():
    people = PROBLEM.population
    rows = PROBLEM.rows(1)
    y = people.train.examples["y"].copy()
    y[rows] = (y[rows] + 1) % 3
    wrong = people._replace(train=people.train._replace(examples={**people.train.examples, "y": y}))
    cohort = bench.always(1, 3, 6)
    options = {"local_steps": 20, "batch_size": "full", "lr": 0.5}
    law, mean = (server(name, wrong, cohort, 1, **options) for name in ("fedlaw", "fedavg"))
    alone = [server("fedavg", wrong, bench.always(i), 1, **options) for i in (1, 3, 6)]
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (law.params, mean, *alone)]
    learned, p = (np.linalg.lstsq(np.stack(flat[2:], 1), v, rcond=None)[0] for v in flat[:2])
    np.testing.assert_allclose(p, np.array([17, 8, 10]) / 35, atol=1e-4)
    assert learned[0] / learned.sum() < 0.9 * p[0]


@pytest.mark.full
def test_feddf_gives_up_after_patience():
    short, long = (server("feddf", rounds=1, server_steps=n, patience=20, held_out=0.9, server_lr=1e-9) for n in (20, 400))
    assert gap(short, long) < 1e-6


def test_feddf_needs_classes():
    people = bench.population()._replace(public={"x": np.zeros((3, 2), np.float32)})
    with pytest.raises(ValueError, match="'feddf' needs a classification task; 'quadratic' has no classes"):
        bench.start(bench.make("feddf"), people)


@pytest.mark.full
def test_fedmds_mean_forgets_who_said_what():
    scores = [server("fedmd", cohort=bench.always(*ids), rounds=1, public_epochs=0).scores for ids in ((0, 3, 5), (5, 0, 3))]
    np.testing.assert_array_equal(*scores)


LABELS = jnp.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
THERE = jnp.array([True, True, True, False])


@pytest.mark.parametrize("dist", ["kl", "variation"])
def test_knfus_weights(dist):
    a = weights(LABELS, THERE, 2.0, dist, 0)
    np.testing.assert_allclose(a.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(a[0], a[2])  # equal labels, equal knowledge
    assert not a[:, 3].any() and a[0, 0] == a[0, 2] > a[0, 1] > 0
    far = 0.7 if dist == "variation" else 2 * 0.7 * np.log(8)
    np.testing.assert_allclose(a[0, 1] / a[0, 0], np.exp(-2 * far), rtol=1e-5)
    np.testing.assert_allclose(weights(LABELS, THERE, 0.0, dist, 0)[:, :3], 1 / 3, rtol=1e-6)
    alone = weights(LABELS[1:], THERE[1:], 1e6, dist, 0)
    np.testing.assert_array_equal(alone[:2, :2], np.eye(2))
    np.testing.assert_array_equal(weights(LABELS[1:], THERE[1:], 0.0, dist, 1)[:2, :2], np.eye(2))


def test_fedmds_sample_is_fresh_and_the_same_for_all():
    """With one example of the public ones in a round, what two clients say is about the same one, and another one later."""
    people = PROBLEM.population
    method = make("fedmd", sample=1, public_epochs=0)
    said = method.exchanges[1].local
    x = PROBLEM.task.init(jax.random.key(0))
    data = [bench.client(people, i)._replace(public=jax.tree.map(jnp.asarray, people.public), clock=jnp.int32(t)) for t in range(4) for i in (1, 4)]
    scores = np.stack([said(None, {}, x, d).upload["scores"][0] for d in data])
    np.testing.assert_array_equal(scores[0::2], scores[1::2])
    assert len(np.unique(scores[0::2], axis=0)) > 1


def trusted(uploads, own_steps=3):
    """The step of FLTrust's server for these changes, and its own."""
    method = make("fltrust", batch_size="full", epochs=own_steps)
    w = jax.tree.map(jnp.asarray, PROBLEM.task.init(jax.random.key(0)))
    public = jax.tree.map(jnp.asarray, PROBLEM.population.public)
    cohort = bench_cohort(len(uploads), public)
    stack = together().combine(jax.tree.map(lambda *x: jnp.stack(x), *uploads), jnp.ones(len(uploads)), cohort)
    return jax.tree.map(jnp.subtract, method.serve(jax.random.key(1), w, {"model": stack}, cohort), w)


def bench_cohort(slots, public):
    return Cohort(jnp.arange(slots), jnp.ones(slots, bool), jnp.ones(slots, jnp.int32), jnp.ones(slots, jnp.int32), slots, jnp.int32(0), public=public)


@pytest.mark.full
def test_fltrust_trusts_direction_alone():
    w = PROBLEM.task.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(3), 3)
    uploads = [jax.tree.map(lambda x, k=k: 0.1 * jax.random.normal(jax.random.fold_in(k, x.size), x.shape), w) for k in keys]
    own = trusted([jax.tree.map(jnp.zeros_like, w)] * 2)
    assert gap(own, jax.tree.map(jnp.zeros_like, w)) == 0  # nobody has a direction: the model stays
    base = trusted(uploads)
    assert gap(base, trusted([jax.tree.map(lambda x: 37.0 * x, uploads[0]), *uploads[1:]])) < 1e-6
    with_own = trusted([*uploads, base, base])
    flipped = trusted([*uploads, base, base, jax.tree.map(jnp.negative, base)])
    assert gap(with_own, flipped) < 1e-6
    alike = trusted([base] * 3)
    twice = trusted([alike] * 2)
    assert gap(alike, twice) < 1e-6  # the length is the server's own
    assert float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(base)))) <= float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(alike)))) + 1e-6


@pytest.mark.full
def test_from_flags():
    run = fedjax_lab.train(method="feddf", task="digits_logreg", partition="public:100+dirichlet:0.3", clients=6, cohort=3, rounds=2, eval_every=2,
                           options={"server_steps": 5})
    assert run.history[-1]["test_accuracy"] > run.history[0]["test_accuracy"]
