"""FedIT and FFA-LoRA, and the adapters they share."""
from __future__ import annotations

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import bowl, classifier

from fedjax_lab import models, registry
from fedjax_lab.local import batches, descend, gradient
from fedjax_lab.parts.transforms import lowrank
from fedjax_lab.parts.transforms.base import beside

PROBLEM = classifier()
TEXT = {"x": jnp.arange(12).reshape(2, 6) % 7, "y": jnp.ones((2, 6), jnp.int32), "mask": jnp.ones(2, bool)}
READER = models.build("transformer", TEXT, 7, width=8, depth=1, heads=2)
NORMED = models.build("resnet8", {"x": jnp.zeros((2, 4, 4, 3)), "y": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2, bool)}, 3, norm="batch", blocks=(1,),
                      width=4, lowering="xla")
MATRICES = {"w1": (5, 4), "w2": (4, 3)}


def make(name="fedit", **options):
    two = {"ranks": (2,)} if name == "fedit" else {"rank": 2}
    return registry.make(name, PROBLEM.task, **{"lr": 0.3, "local_steps": 4, "batch_size": "full", "client_optimizer": "sgd", **two, **options})


def uploads(method, server, *clients):
    """What these clients send from this server."""
    data = [bench.client(PROBLEM.population, i) for i in clients]
    return [jax.jit(lambda key, d=d, i=i: method.local(key, method.broadcast(server, i, 0), (), d).upload["model"])(jax.random.key(i))
            for i, d in zip(clients, data, strict=True)]


def moved(method, start, change):
    return {kind: {path: x + change[kind][path] for path, x in some.items()} for kind, some in start["params"].items()}


def started(name="fedit", seed=1, **options):
    """A method and a server whose B is not zero."""
    method = make(name, **options)
    server = jax.jit(method.task.init)(jax.random.key(seed))
    b = {path: jax.random.normal(jax.random.key(3), x.shape) for path, x in server["params"]["b"].items()}
    return method, {**server, "params": {**server["params"], "b": b}}


@pytest.mark.full
def test_nothing_changes_before_training():
    for name in ("fedit", "ffalora"):
        method = make(name)
        params = jax.jit(method.task.init)(jax.random.key(0))
        batch = {"x": jnp.asarray(PROBLEM.population.train.examples["x"])}
        np.testing.assert_array_equal(method.task.apply(params, batch), PROBLEM.task.apply(params["frozen"]["base"], batch))


@pytest.mark.parametrize("task, batch", [pytest.param(READER, TEXT, marks=pytest.mark.full), (NORMED, {"x": jnp.ones((2, 4, 4, 3)), "mask": jnp.ones(2, bool)})],
                         ids=["text", "normed"])
@pytest.mark.parametrize("where", [(), pytest.param(("head",), marks=pytest.mark.full)], ids=["all", "head"])
def test_products_equal_the_sum(task, batch, where, monkeypatch):
    """Where flax multiplies, no copy of a matrix is made; what comes out is that of the merged model."""
    at, copied, merge = lowrank.sites(task, where, ()), [], lowrank.merged
    monkeypatch.setattr(lowrank, "merged", lambda base, a, b, scale: copied.extend(a) or merge(base, a, b, scale))
    tuned = lowrank.adapted(task, at, rank=2, scale=3.0, start="kaiming")
    params = jax.jit(tuned.init)(jax.random.key(0))
    a, b = params["params"]["a"], {k: jax.random.normal(jax.random.key(1), x.shape) for k, x in params["params"]["b"].items()}
    params = {**params, "params": {**params["params"], "b": b}}
    out = jax.jit(tuned.apply)(params, batch)
    assert not copied and at.matrices
    np.testing.assert_allclose(out, jax.jit(task.apply)(merge(params["frozen"]["base"], a, b, 3.0), batch), rtol=1e-4, atol=1e-5)
    assert np.abs(out - jax.jit(task.apply)(params["frozen"]["base"], batch)).max() > 0.01
    np.testing.assert_allclose(jax.jit(tuned.head)(params, jax.jit(tuned.features)(params, batch)), out, rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_tables_are_not_adapted_unless_asked_for():
    assert not [path for path in lowrank.sites(READER, (), ()).matrices if "embed" in path or "positions" in path]
    at = lowrank.sites(READER, ("embed",), ())
    tuned = lowrank.adapted(READER, at, rank=2, scale=1.0, start="kaiming")
    params = jax.jit(tuned.init)(jax.random.key(0))
    params["params"]["b"] = jax.tree.map(jnp.ones_like, params["params"]["b"])
    table = params["frozen"]["base"]["embed"]["embedding"]
    base = {**params["frozen"]["base"], "embed": {"embedding": table + (jnp.ones((8, 2)) @ params["params"]["a"]["embed/embedding"]).T}}
    np.testing.assert_allclose(jax.jit(tuned.apply)(params, TEXT), jax.jit(READER.apply)(base, TEXT), rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_one_client_is_local_lora():
    method = make()
    state, _ = bench.run(method, PROBLEM.population, task=PROBLEM.task, cohort=bench.always(3), rounds=2)
    server = state.server
    first = jax.tree.map(np.asarray, server["frozen"]["base"])
    adapters = bench.start(method, PROBLEM.population, PROBLEM.task).server["params"]
    work = registry.training(lr=0.3, local_steps=4, batch_size="full")
    data = bench.client(PROBLEM.population, 3)
    task = beside(method.task, {"base": first})
    for _ in range(2):  # full batches: their order does not matter
        adapters = jax.jit(lambda y: descend(batches(jax.random.key(0), data, work), y, gradient(task), work.optimizer).params)(adapters)
    for kind in ("a", "b"):
        for path, x in adapters[kind].items():
            np.testing.assert_allclose(server["params"][kind][path], x, rtol=1e-4, atol=1e-6)


@pytest.mark.full
def test_the_mean_of_factors_is_not_the_mean_of_products():
    """The gap is FedIT's bias; with a common A there is none."""
    gaps = {}
    for name in ("fedit", "ffalora"):
        method, server = started(name)
        ends = [moved(method, server, change) for change in uploads(method, server, 1, 4)]
        a = [end["a"] if name == "fedit" else server["frozen"]["a"] for end in ends]
        p = np.array([17, 12]) / 29
        products = [{k: np.asarray(end["b"][k] @ one[k]) for k in one} for end, one in zip(ends, a, strict=True)]
        mean = {k: sum(w * x[k] for w, x in zip(p, products, strict=True)) for k in MATRICES}
        factors = {k: np.asarray(sum(w * e["b"][k] for w, e in zip(p, ends, strict=True)) @ sum(w * x[k] for w, x in zip(p, a, strict=True))) for k in MATRICES}
        gaps[name] = max(np.linalg.norm(mean[k] - factors[k]) / np.linalg.norm(mean[k]) for k in MATRICES)
    assert gaps["fedit"] > 1e-3 and gaps["ffalora"] < 1e-6


@pytest.mark.full
def test_ffaloras_first_factor_never_moves():
    method = make("ffalora")
    (first, _), (last, record) = (bench.run(method, PROBLEM.population, task=PROBLEM.task, rounds=n) for n in (1, 3))
    for path, x in first.server["frozen"]["a"].items():
        np.testing.assert_array_equal(x, last.server["frozen"]["a"][path])
        np.testing.assert_array_equal(x, bench.start(method, PROBLEM.population, PROBLEM.task).server["frozen"]["a"][path])
    assert (record.rounds["bytes_up"][0] == 4 * 2 * (4 + 3)).all()


@pytest.mark.full
def test_a_message_has_the_adapters_alone():
    _, record = bench.run(make(), PROBLEM.population, task=PROBLEM.task, rounds=1)
    assert (record.rounds["bytes_up"] == 4 * 2 * (5 + 4 + 4 + 3)).all() and (record.rounds["bytes_down"] == record.rounds["bytes_up"]).all()
    _, record = bench.run(make(where=("w1",), whole=("2",)), PROBLEM.population, task=PROBLEM.task, rounds=1)
    assert (record.rounds["bytes_up"] == 4 * (2 * (5 + 4) + 4 * 3 + 3)).all()


@pytest.mark.full
def test_what_a_client_lacks_is_neither_sent_nor_trained():
    """Clients have the first rows of A and columns of B; the server's mean counts zeros for the others."""
    method, server = started(ranks=(3, 1, 2))
    received = jax.jit(method.broadcast)(server, 4, 0)["model"]
    change, = uploads(method, server, 4)
    for path, (m, n) in MATRICES.items():
        for parts in (received, change):
            assert not np.any(parts["a"][path][1:]) and not np.any(parts["b"][path][:, 1:])
            assert np.all(parts["a"][path][0]) and np.all(parts["b"][path][:, 0])
        np.testing.assert_array_equal(received["a"][path][:1], server["params"]["a"][path][:1])
        assert server["params"]["a"][path].shape == (3, m) and server["params"]["b"][path].shape == (n, 3)
    _, record = bench.run(method, PROBLEM.population, task=PROBLEM.task, rounds=1)
    assert sorted(record.rounds["bytes_up"][0]) == sorted(record.rounds["bytes_down"][0]) == [4 * r * (5 + 4 + 4 + 3) for r in (1, 2, 3)]


@pytest.mark.full
def test_the_base_is_frozen_and_what_is_whole_is_trained():
    method = make(whole=("b2",))
    start, (end, _) = bench.start(method, PROBLEM.population, PROBLEM.task), bench.run(method, PROBLEM.population, task=PROBLEM.task, rounds=2)
    jax.tree.map(np.testing.assert_array_equal, start.server["frozen"], end.server["frozen"])
    assert np.abs(end.server["params"]["whole"]["b2"] - start.server["params"]["whole"]["b2"]).max() > 1e-3


@pytest.mark.full
def test_orthogonal_rows():
    a, b = lowrank.fresh(jax.random.key(0), lowrank.sites(READER, (), ()), 3, "orthogonal")
    for x in a.values():
        np.testing.assert_allclose(x @ x.T, np.eye(3), atol=1e-5)
    assert not any(np.any(x) for x in b.values())


def test_refusals():
    with pytest.raises(ValueError, match=r"option 'where': 'query' is in the path of no matrix; there are w1, w2$"):
        make(where=("w1", "query"))
    with pytest.raises(ValueError, match=r"option 'whole': 'query' is in the path of no leaf; there are b1, b2, w1, w2$"):
        make(whole=("query",))
    with pytest.raises(ValueError, match=r"task 'quadratic' has no matrix to adapt; its leaves are x$"):
        registry.make("fedit", bowl().task)
