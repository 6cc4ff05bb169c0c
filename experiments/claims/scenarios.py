"""The scenarios that several claims share, and the clients that no flag describes."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.records import Scenario
from fedjax_lab import tasks
from fedjax_lab.data import partition, population, quadratic, scenario, shift, source, sources
from fedjax_lab.types import Aux, Batch, Key, Population, Task, Tree

Clients = Callable[[], tuple[Task, Population]]


def natural(origin: source.Source) -> Population:
    """The population of a source's own clients."""
    return population.build(origin, partition.make("natural", origin, key=jax.random.key(0)), key=jax.random.key(0))


def located(task: Task, optimum: np.ndarray) -> Task:
    """A task on x [dim] whose metrics also say where x is: "distance" |x - optimum|^2, and its coordinates "x0", "x1", .."""

    def metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        place = {f"x{j}": outputs[:, j] for j in range(len(optimum))}
        return {**task.metrics(outputs, batch), "distance": ((outputs - jnp.asarray(optimum, outputs.dtype)) ** 2).sum(-1), **place}

    return task._replace(metrics=metrics)


def bowls(*, clients: int = 20, dim: int = 10, spread: float = 5.0, noise: float = 0.0, steps: tuple[int, int] | None = None, rows: int = 1) -> Clients:
    """QUAD: f_i(x) = 1/2 (x - o_i)^T A_i (x - o_i), A_i = diag(exp U(-1.5, 1.5)), o_i = spread N(0, I), a gradient's noise of deviation
    `noise` / sqrt(B) on a batch of B; clients count alike.

    Args:
      steps: client i has K_i ~ U{steps} copies of its one example, hence takes K_i steps of batch size 1 in an epoch.
      rows: copies of it without `steps`, so that a gradient on all of them has less noise than one on a batch.
    """

    def make() -> tuple[Task, Population]:
        bowl = quadratic.quadratic(clients, dim=dim, spread=spread)
        task = located(_noisy(quadratic.quadratic_task(dim), noise), bowl.truth["optimum"])
        copies = np.random.default_rng(5).integers(steps[0], steps[1] + 1, clients) if steps else np.full(clients, rows)
        train = {field: np.repeat(array, copies, 0) for field, array in bowl.train.items()}
        owner = {"client": np.repeat(np.arange(clients), copies)}
        return task, natural(source.make("quadratic", train, bowl.test, 0, owner, bowl.test_keys))

    return make


def _noisy(task: Task, noise: float) -> Task:
    """A task on {"x": [dim]} whose gradients have Gaussian noise of deviation `noise` in each coordinate, averaged over the batch."""

    def loss(params: Tree, batch: Batch, key: Key) -> tuple[jax.Array, Aux]:
        value, aux = task.loss(params, batch, key)
        x, count = params["x"], batch["mask"].sum()
        xi = noise / jnp.sqrt(jnp.maximum(count, 1)) * jax.random.normal(key, x.shape, x.dtype)
        return value + jnp.where(count > 0, xi @ (x - jax.lax.stop_gradient(x)), 0), aux

    return task._replace(loss=loss) if noise else task


def opposed(*, clients: int = 24, dim: int = 10, apart: float = 1.0, noise: float = 0.5) -> Clients:
    """Unit bowls whose minima are +apart in every coordinate for even clients and -apart for odd ones; the optimum is 0."""

    def make() -> tuple[Task, Population]:
        sign = np.where(np.arange(clients) % 2, -1.0, 1.0)[:, None]
        arrays = {"a": np.ones((clients, dim), np.float32), "o": (apart * sign * np.ones((1, dim))).astype(np.float32)}
        keys = {"client": np.arange(clients)}
        task = located(quadratic.quadratic_task(dim, noise=noise, start=1.0), np.zeros(dim))
        return task, natural(source.make("opposed", arrays, arrays, 0, keys, keys))

    return make


def least_squares(*, clients: int, dim: int, size: int, spread: float = 0.0, noise: float = 0.0, client_scale: float = 0.0,
                  feature_scale: float = 0.0) -> Clients:
    """Linear regression y = x w_k + noise N(0, 1), w_k = w + spread N(0, I), x ~ c_k s * N(0, I), without intercept, from w = 0.

    Args:
      client_scale: clients' input variances c_k^2 = 10^U(-client_scale, client_scale).
      feature_scale: features' scales s = exp(-feature_scale .. feature_scale), evenly spaced.
    """

    def make() -> tuple[Task, Population]:
        rng = np.random.default_rng(6)
        scale = 10 ** (rng.uniform(-client_scale, client_scale, (clients, 1, 1)) / 2) * np.exp(np.linspace(-feature_scale, feature_scale, dim))
        x = scale * rng.normal(size=(clients, size, dim))
        w = rng.normal(size=dim) + spread * rng.normal(size=(clients, dim))
        y = np.einsum("cnd,cd->cn", x, w) + noise * rng.normal(size=(clients, size))
        arrays = {"x": x.reshape(-1, dim).astype(np.float32), "y": y.reshape(-1).astype(np.float32)}
        best = np.linalg.lstsq(*(arrays[k].astype(np.float64) for k in ("x", "y")), rcond=None)[0]
        keys = {"client": np.repeat(np.arange(clients), size)}
        return located(_linear(dim), best), natural(source.make("least squares", arrays, arrays, 0, keys, keys))

    return make


def underdetermined(*, clients: int = 20, dim: int = 32, sizes: tuple[int, int] = (10, 19), noise: float = 0.01) -> Clients:
    """Linear regression in float64 y = x w + noise N(0, 1) with one w for all and fewer rows than features at every client: n_k ~ U{sizes},
    x ~ N(mu_k, s_k), mu_k ~ U(-0.5, 0.5), s_k ~ U(0.5, 1.5). The metric "loss" is |w_k - w|^2 / |w|^2."""

    def make() -> tuple[Task, Population]:
        rng = np.random.default_rng(7)
        size = rng.integers(sizes[0], sizes[1] + 1, clients)
        owner = np.repeat(np.arange(clients), size)
        center, scale = rng.uniform(-0.5, 0.5, clients)[owner, None], np.sqrt(rng.uniform(0.5, 1.5, clients))[owner, None]
        x = center + scale * rng.normal(size=(len(owner), dim))
        w = rng.normal(size=dim)
        arrays = {"x": x, "y": x @ w + noise * rng.normal(size=len(x))}
        task = _linear(dim, np.float64)
        task = task._replace(metrics=lambda outputs, batch: {"loss": ((outputs - w) ** 2).sum(-1) / (w @ w)})
        keys = {"client": owner}
        return task, natural(source.make("underdetermined", arrays, arrays, 0, keys, keys))

    return make


def swapped(*, clients: int = 24) -> Clients:
    """DIG dealt evenly and at random, where odd clients call the digits 0 to 4 by the next one's name; tested on both kinds alike."""

    def make() -> tuple[Task, Population]:
        origin, model = tasks.load("digits_mlp:widths=64")
        people = scenario.build("iid", origin, key=jax.random.key(0), clients=clients)

        def renamed(arrays, group, generator, classes):
            return {**arrays, "y": np.where(arrays["y"] < 5, (arrays["y"] + 1) % 5, arrays["y"]).astype(np.int32)}

        people = shift.shifted(people, shift.Shift(2, renamed), jax.random.key(0), np.arange(clients) % 2)
        return model(people.train.examples), people

    return make


def headlines(*, clients: int = 100, words: int = 1000) -> Clients:
    """Sparse logistic regression: which of four topics a piece of news has, from its words alone, counted and scaled to length 1;
    Dirichlet(0.3)."""

    def make() -> tuple[Task, Population]:
        news = sources.load(f"ag_news_small:words={words}")
        sides = [{"x": _bag(side["x"], words + 2), "y": side["y"]} for side in (news.train, news.test)]
        bags = source.make("ag_news_small words", *sides, news.classes)
        people = scenario.build("dirichlet:0.3", bags, key=jax.random.key(0), clients=clients)
        return tasks.build("headlines", "logreg", {k: v[:1] for k, v in bags.train.items()}, bags.classes, {}, bags.manifest), people

    return make


def _bag(tokens: np.ndarray, size: int) -> np.ndarray:
    """float32 [M, size]: counts of the tokens [M, length] but padding and unknown ones, each row of length 1."""
    rows = np.zeros((len(tokens), size), np.float32)
    np.add.at(rows, (np.arange(len(tokens))[:, None], tokens), 1.0)
    rows[:, :2] = 0
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)


def _linear(dim: int, dtype: Any = np.float32) -> Task:
    """Half the mean squared error of x w; parameters {"w": [dim]}, outputs w for each example."""

    def apply(params: Tree, batch: Batch, key: Key | None = None) -> jax.Array:
        return jnp.broadcast_to(params["w"], batch["x"].shape)

    def metrics(outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": 0.5 * ((outputs * batch["x"]).sum(-1) - batch["y"]) ** 2}

    def loss(params: Tree, batch: Batch, key: Key) -> tuple[jax.Array, Aux]:
        mask = batch["mask"]
        return jnp.where(mask, metrics(apply(params, batch), batch)["loss"], 0).sum() / jnp.maximum(mask.sum(), 1), Aux()

    return Task("least squares", lambda key: {"w": jnp.zeros(dim, dtype)}, apply, loss, metrics)


def quad(cohort: int, steps: int, rounds: int, *, noise: float = 0.0, rows: int = 1) -> Scenario:
    """QUAD with `cohort` of 20 clients a round and `steps` local steps on one of `rows` examples."""
    text = f"QUAD, {cohort} of 20 clients, {steps} local steps, gradient noise {noise:g}, {rounds} rounds"
    text += f", first gradients on {rows} examples" if rows > 1 else ""
    return Scenario(text, {"cohort": cohort, "rounds": rounds, "eval_every": max(1, rounds // 40)}, {"local_steps": steps, "batch_size": 1},
                    bowls(noise=noise, rows=rows))


def digits(rounds: int, *, cohort: int = 20, partition: str = "dirichlet:0.1", clients: int = 20, options: Any = None, every: int = 5) -> Scenario:
    """DIG: the UCI digits, an MLP 64-64-10."""
    return Scenario(f"DIG (UCI digits, MLP 64-64-10, {partition}), {cohort} of {clients} clients, {rounds} rounds",
                    {"task": "digits_mlp:widths=64", "partition": partition, "clients": clients, "cohort": cohort, "rounds": rounds,
                     "eval_every": every}, options or {})


def mnist(rounds: int, *, cohort: int = 10, partition: str = "shards:2", options: Any = None, every: int = 5, **settings: Any) -> Scenario:
    """MN: 10,000 examples of MNIST, 100 clients, an MLP 784-100-10."""
    return Scenario(f"MN (MNIST, 10,000 examples, MLP 784-100-10, {partition}), {cohort} of 100 clients, {rounds} rounds",
                    {"task": "mnist_mlp:widths=100", "partition": f"subset:10000+{partition}", "clients": 100, "cohort": cohort, "rounds": rounds,
                     "eval_every": every, **settings}, options or {})
