"""FAL and its ascent: where changed inputs lie, what they are on a linear model, and what one step from all clients is."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import problem as problems
import pytest

from fedjax_lab import registry
from fedjax_lab.parts.oracles.pgd import perturbed
from fedjax_lab.types import Aux, Task

PROBLEM = problems.classifier()
WIDE = {"low": -9.0, "high": 9.0}


def linear() -> Task:
    """The logistic loss log(1 + exp(-y (w x + b))) with labels -1 and 1."""
    def values(outputs, batch):
        return {"loss": jnp.logaddexp(0, -batch["y"] * outputs)}

    def apply(params, batch, key=None):
        return batch["x"] @ params["w"] + params["b"]

    def loss(params, batch, key):
        return jnp.mean(values(apply(params, batch), batch)["loss"]), Aux()

    return Task("linear", lambda key: {"w": jnp.ones(4), "b": jnp.zeros(())}, apply, loss, values)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_on_a_linear_model_it_goes_straight_against_the_margin(norm):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=4), jnp.float32), "b": jnp.float32(0.3)}
    batch = {"x": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), "y": jnp.asarray(rng.choice([-1.0, 1.0], 6), jnp.float32)}
    far = perturbed(linear(), rho=0.2, norm=norm, steps=30, step=0.2, **WIDE)(jax.random.key(0), params, batch)["x"]
    w = np.asarray(params["w"])
    against = w / np.linalg.norm(w) if norm == "l2" else np.sign(w)
    np.testing.assert_allclose(far, batch["x"] - 0.2 * np.asarray(batch["y"])[:, None] * against, atol=2e-3)


@pytest.mark.parametrize("norm, order", [("linf", np.inf), ("l2", 2)])
def test_changed_inputs_stay_in_the_ball_and_in_the_box_and_are_worse(norm, order):
    rng = np.random.default_rng(1)
    batch = {"x": jnp.asarray(rng.uniform(size=(40, 5)), jnp.float32), "y": jnp.asarray(rng.integers(0, 3, 40), jnp.int32), "mask": jnp.ones(40, bool)}
    params = PROBLEM.task.init(jax.random.key(3))
    found = {random: perturbed(PROBLEM.task, rho=0.3, norm=norm, steps=5, random=random)(jax.random.key(0), params, batch) for random in (True, False)}
    for near in found.values():
        assert (np.linalg.norm(near["x"] - batch["x"], order, axis=1) <= 0.3 + 1e-6).all()
        assert near["x"].min() >= 0 and near["x"].max() <= 1
        loss = [PROBLEM.task.metrics(PROBLEM.task.apply(params, b), b)["loss"] for b in (batch, near)]
        assert (loss[1] > loss[0]).mean() > 0.9
    assert np.abs(found[True]["x"] - found[False]["x"]).max() > 1e-3
    assert jnp.abs(jax.grad(lambda x: perturbed(PROBLEM.task, rho=0.3)(jax.random.key(0), params, {**batch, "x": x})["x"].sum())(batch["x"])).max() == 0


def test_pixels_become_real_numbers():
    batch = {"x": jnp.full((2, 5), 128, jnp.uint8), "y": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2, bool)}
    near = perturbed(PROBLEM.task, rho=0.1)(jax.random.key(0), PROBLEM.task.init(jax.random.key(1)), batch)["x"]
    assert near.dtype == jnp.float32 and np.abs(near - 128 / 255).max() <= 0.1 + 1e-6


def ended(name="fal", cohort=3, rounds=2, **options):
    method = registry.make(name, PROBLEM.task, **{"lr": 0.2, "batch_size": "full", "local_steps": 2, **options})
    return bench.run(method, PROBLEM.population, task=PROBLEM.task, cohort=cohort, rounds=rounds)[0].server


@pytest.mark.full
def test_without_ascent_it_is_fedavg_to_the_bit():
    jax.tree.map(np.testing.assert_array_equal, ended(steps=0), ended("fedavg", weighting="uniform"))


@pytest.mark.full
def test_one_step_of_everybody_is_one_step_on_the_union():
    """Adversarial gradient descent where all data are in one place, clients by their examples."""
    options = {"rho": 0.2, "steps": 3, "random": False, **WIDE}
    server = ended(cohort=bench.always(*range(7)), rounds=1, local_steps=1, weighting="examples", **options)
    everything = {**PROBLEM.population.train.examples, "mask": np.ones(problems.SIZES.sum(), bool)}
    start = problems.plan.first_params(PROBLEM.task, jax.random.key(0))
    near = perturbed(PROBLEM.task, **options)(jax.random.key(0), start, jax.tree.map(jnp.asarray, everything))
    grad = jax.grad(lambda p: PROBLEM.task.loss(p, near, None)[0])(start)
    jax.tree.map(lambda x, w, g: np.testing.assert_allclose(x, w - 0.2 * g, atol=1e-5), server, start, grad)


def test_inputs_that_cannot_be_changed_by_a_little_are_refused():
    with pytest.raises(ValueError, match="'fal' changes inputs 'x' by a little: they must be real numbers or pixels, and this task has only a, o"):
        bench.run(bench.make("fal"))
