"""FedFTG: weights by class, a generator that looks for what the mean has lost, and a step that leaves any method's own state alone."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import classifier

from fedjax_lab import registry, rules
from fedjax_lab.methods.distillation.fedftg import shares
from fedjax_lab.parts import examples, generator
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.transforms.served import Both
from fedjax_lab.types import Census, Cohort

PROBLEM = classifier()
PEOPLE, TASK = PROBLEM.population, PROBLEM.task
EXAMPLE = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in PEOPLE.train.examples.items()}
CENSUS = Census(PROBLEM.clients, PROBLEM.size, 3, EXAMPLE)
SMALL = {"turns": 3, "noise": 3, "width": 6, "server_batch": 12}
LOCAL = {"lr": 0.1, "local_steps": 3, "batch_size": "full"}


def make(**options):
    return registry.make("fedftg", TASK, **{**LOCAL, **SMALL, **options})


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.full
@pytest.mark.parametrize("base", ["fedavg", "fedprox", "scaffold", "feddyn", "moon"])
def test_without_turns_it_is_the_base_method_bit_by_bit(base):
    one, other = (bench.run(m, PEOPLE, task=TASK, rounds=2)[0] for m in (make(base=base, turns=0), registry.make(base, TASK, **LOCAL)))
    same(one._replace(key=()), other._replace(key=()))


@pytest.mark.full
@pytest.mark.parametrize("base", ["fedavg", "scaffold", "feddyn"])
def test_the_base_methods_own_state_is_untouched(base):
    """After one round: everything but the model, which is tuned; the mean is that of the base method."""
    one, other = (bench.run(m, PEOPLE, task=TASK, rounds=1)[0] for m in (make(base=base), registry.make(base, TASK, **LOCAL)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one.clients, other.clients)
    own, theirs = one.server.server, other.server
    if base != "fedavg":
        own, theirs = own._replace(params=()), theirs._replace(params=())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), own, theirs)
    still = bench.run(make(base=base, student_steps=0), PEOPLE, task=TASK, rounds=1)[0]
    deployed = registry.make(base, TASK, **LOCAL).deploy(other.server)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), make(base=base).deploy(still.server), deployed)


def test_weights_by_class():
    heard = jnp.array([True, True, False])
    logp, a = shares(jnp.array([[3.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 2.0], [9.0, 9.0, 9.0, 9.0]]), heard)
    np.testing.assert_array_equal(a.sum(0), [1, 0, 1, 1])
    np.testing.assert_allclose(a[0], [0.75, 0, 0.5, 0])
    np.testing.assert_allclose(jax.nn.softmax(logp), np.array([4, 0, 2, 2]) / 8, rtol=1e-6)


def test_models_that_agree_have_no_gap_and_no_slope():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 4))
    value, slope = jax.value_and_grad(lambda x: examples.between(x, logits).sum())(logits)
    assert abs(value) < 1e-6 and np.abs(slope).max() < 1e-6
    other = jnp.roll(logits, 1, 0)
    np.testing.assert_allclose(examples.between(logits, other), examples.divergence(jax.nn.softmax(logits), other), rtol=1e-4, atol=1e-6)


COUNTS = jnp.array([[3.0, 0.0, 1.0], [1.0, 2.0, 1.0], [0.0, 4.0, 0.0]])


def served(uploads, heard=(True,) * 3, **options):
    """The server's state before and after these changes."""
    method = make(**options)
    server = method.init_server(jax.random.key(1), TASK.init(jax.random.key(0)), CENSUS)
    ids, weight = jnp.arange(3), jnp.array(heard, jnp.float32)
    cohort = Cohort(ids, jnp.array(heard), 1 + ids, 1 + ids, 3, jnp.int32(0), COUNTS * weight[:, None])
    stack = jax.tree.map(lambda *x: jnp.stack(x), *uploads)
    both = Both(rules.stacked(rules.mean()).combine(stack, weight, cohort), together().combine(stack, weight, cohort))
    serve = jax.jit(lambda server: method.serve(jax.random.key(2), server, {"model": both}, cohort))
    return server, serve(server)


@pytest.mark.full
def test_an_ensemble_that_agrees_with_the_model_does_not_move_it():
    still = jax.tree.map(jnp.zeros_like, TASK.init(jax.random.key(0)))
    before, after = served([still] * 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), before.server, after.server)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before.memory), jax.tree.leaves(after.memory), strict=True))  # G learns all the same


def test_where_nobody_is_heard_nothing_moves():
    noise = [jax.tree.map(lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), TASK.init(jax.random.key(0))) for i in range(3)]
    before, after = served(noise, heard=(False,) * 3)
    same(before, after)


@pytest.mark.full
def test_the_generator_looks_for_samples_on_which_the_models_differ():
    """With nothing but the gap to descend, samples are found on which the weighted gap is larger."""
    key, x = jax.random.key(5), TASK.init(jax.random.key(0))
    apart = [jax.tree.map(lambda v, i=i: 0.5 * jax.random.normal(jax.random.fold_in(key, i), v.shape), x) for i in range(3)]
    before, after = served(apart, turns=60, fidelity=0.0, diversity=0.0, student_steps=0, gap="kl")
    logp, a = shares(COUNTS, jnp.ones(3, bool))
    z, y = jax.random.normal(key, (200, 3)), jax.random.categorical(key, logp, shape=(200,))

    def gap(G):
        batch = {"x": generator.made(G, z, y), "y": y}
        said = TASK.apply(after.server, batch)
        return float(sum((a[k][y] * examples.between(said, TASK.apply(jax.tree.map(jnp.add, x, apart[k]), batch))).mean() for k in range(3)))

    assert gap(after.memory) > 1.2 * gap(before.memory)


def test_diversity_is_one_where_noise_changes_nothing():
    z = jax.random.normal(jax.random.key(0), (8, 3))
    assert generator.alike(z, jnp.ones((8, 4, 4, 1))) == 1
    near, far = (generator.alike(z, scale * z) for scale in (0.1, 1.0))
    assert far < near < 1


@pytest.mark.full
def test_images_lie_between_zero_and_one():
    G = generator.init(jax.random.key(0), 4, 3, 5, (6, 6, 1))
    x = generator.made(G, 9 * jax.random.normal(jax.random.key(1), (7, 4)), jnp.arange(7) % 3)
    assert x.shape == (7, 6, 6, 1) and x.min() >= 0 and x.max() <= 1


def test_what_it_needs():
    with pytest.raises(ValueError, match="'fedftg' needs one class per example; task 'tiny' has none"):
        make().init_server(jax.random.key(0), TASK.init(jax.random.key(0)), CENSUS._replace(classes=0))
    tokens = CENSUS._replace(example={**EXAMPLE, "x": jax.ShapeDtypeStruct((8,), jnp.int32)})
    with pytest.raises(ValueError, match="'fedftg' needs inputs that can be generated, images or real numbers; those of task 'tiny' are int32"):
        make().init_server(jax.random.key(0), TASK.init(jax.random.key(0)), tokens)
    with pytest.raises(ValueError, match="base"):
        make(base="fedsgd")
