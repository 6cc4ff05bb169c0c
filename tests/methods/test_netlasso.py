from __future__ import annotations

import functools
import itertools

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize

from fedjax_lab import models, registry
from fedjax_lab.parts.edges.ties import ties
from fedjax_lab.parts.solvers.newton import median, newton
from fedjax_lab.types import Census, Task

N = 6
PEOPLE = bench.population()
EDGES = {"ring": [(i, (i + 1) % N) for i in range(N)], "torus": [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5), (0, 3), (1, 4), (2, 5)]}


@functools.cache
def solved(lam, graph="ring", rounds=400, sizes=None, **options):
    """(server, record) after many iterations."""
    people = bench.population(sizes) if sizes else PEOPLE
    method = bench.make("netlasso", lam=lam, graph=graph, **{"l2": 0.0, "newton_steps": 1, **options})
    state, record = bench.run(method, people, rounds=rounds, cohort=bench.always(*range(people.clients)))
    return jax.tree.map(np.asarray, state.server), jax.tree.map(np.asarray, record)


def sums(people):
    """Of f_i(x) = 1/2 h_i x^2 - b_i x + const: (h [N, 3], b [N, 3])."""
    a, o = (people.train.examples[k].astype(np.float64) for k in "ao")
    rows = [slice(first, first + size) for first, size in zip(people.train.offset, people.train.size, strict=True)]
    return np.array([a[r].sum(0) for r in rows]), np.array([(a[r] * o[r]).sum(0) for r in rows])


@pytest.mark.full
def test_without_edges_everybody_is_alone():
    h, b = sums(PEOPLE)
    np.testing.assert_allclose(solved(0.0, rho=0.2)[0].x, b / h, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("graph", ["ring", "torus"])
def test_strong_edges_make_one_model_for_all_examples(graph):
    server, record = solved(1e3, graph, rho=3.0)
    np.testing.assert_allclose(server.x, np.tile(bench.optimum(PEOPLE), (N, 1)), atol=1e-4)
    np.testing.assert_allclose(server.params["x"], bench.optimum(PEOPLE), atol=1e-4)
    assert record.rounds["residual"][-1] < 1e-4 and record.rounds["moved"][-1] < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("graph, lam, rho, l2", [("ring", 1.5, 1.0, 0.0), ("torus", 2.0, 3.0, 0.5)])
def test_it_finds_the_minimum_of_the_objective(graph, lam, rho, l2):
    """Against a general solver, of the norms made smooth; some edges agree exactly and some do not."""
    h, b = sums(PEOPLE)

    def objective(x, smooth):
        x = x.reshape(N, 3)
        norms = [np.sqrt(((x[j] - x[k]) ** 2).sum() + smooth) for j, k in EDGES[graph]]
        return (0.5 * (h + l2) * x**2 - b * x).sum() + lam * sum(norms)

    start = np.zeros(3 * N)
    for smooth in (1e-2, 1e-4, 1e-6, 1e-9):
        start = optimize.minimize(objective, start, (smooth,), options={"maxiter": 4000}).x
    x = solved(lam, graph, rho=rho, l2=l2)[0].x.astype(np.float64)
    assert objective(x, 0) <= objective(start, 0) + 1e-4
    np.testing.assert_allclose(x, start.reshape(N, 3), atol=5e-3)
    apart = np.array([np.linalg.norm(x[j] - x[k]) for j, k in EDGES[graph]])
    assert (apart < 1e-3).any() and (apart > 0.05).any()


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """(positions, file) of six sensors along a road: two groups, far apart."""
    at, file = np.array([[0.0], [0.3], [0.7], [3.0], [3.4], [3.5]]), tmp_path_factory.mktemp("road") / "at.csv"
    np.savetxt(file, at)
    return at, str(file)


@pytest.mark.full
def test_edges_weigh_what_their_ends_are_apart(road):
    """The minimum of the weighted objective, and duals as large as the edge weighs."""
    at, file = road
    a, (h, b) = {(j, k): np.exp(-abs(at[j, 0] - at[k, 0])) for j, k in EDGES["ring"]}, sums(PEOPLE)

    def objective(x, smooth):
        x = x.reshape(N, 3)
        return (0.5 * h * x**2 - b * x).sum() + 3 * sum(w * np.sqrt(((x[j] - x[k]) ** 2).sum() + smooth) for (j, k), w in a.items())

    start = np.zeros(3 * N)
    for smooth in (1e-2, 1e-4, 1e-6, 1e-9):
        start = optimize.minimize(objective, start, (smooth,), options={"maxiter": 4000}).x
    server, _ = solved(3.0, places=file)
    np.testing.assert_allclose(server.x, start.reshape(N, 3), atol=5e-3)
    bound = 3 * np.exp(-np.abs(at - at.T))
    length = np.linalg.norm(server.duals, axis=2)
    assert all(length[i, k] <= bound[i, j] + 1e-5 for i in range(N) for k, j in enumerate(server.ties.ids[i]))
    assert np.ptp(length) > 1 and np.abs(solved(3.0)[0].x - server.x).max() > 0.05


def test_the_median_of_neighbors_is_weighted(road):
    """Node 2 has no examples; of its two neighbors the nearer one is the median."""
    sizes, method = (4, 1, 0, 6, 2, 5), bench.make("netlasso", graph="ring", places=road[1])
    server = method.init_server(jax.random.key(0), {"x": jnp.zeros(3)}, Census(N, np.array(sizes)))
    server = server._replace(x=jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32))
    own = method.personal(None, server, (), bench.client(bench.population(sizes), 2))["x"]
    np.testing.assert_allclose(own, server.x[1], atol=1e-3)  # 0.4 away, the other one 2.3


@pytest.mark.full
def test_the_objective_falls():
    """Near its minimum the gap is monotone; two penalties find the same one."""
    h, b = sums(PEOPLE)

    def value(x):
        return (0.5 * h * x**2 - b * x).sum() + 1.5 * sum(np.linalg.norm(x[j] - x[k]) for j, k in EDGES["ring"])

    values = [value(solved(1.5, rounds=n)[0].x.astype(np.float64)) for n in (3, 10, 30, 400)]
    assert values[0] > values[1] > values[2] >= values[3] - 1e-4
    assert value(solved(1.5, rho=4.0)[0].x.astype(np.float64)) == pytest.approx(values[3], abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("rounds", [2, 5])
def test_duals_are_opposite_and_bounded(rounds):
    server, _ = solved(0.8, "torus", rounds, rho=2.0)
    there = server.ties.there
    opposite = np.array([server.ties.heard(server.duals, i) for i in range(N)])
    np.testing.assert_allclose((server.duals + opposite)[there], 0, atol=1e-5)
    assert np.linalg.norm(server.duals, axis=2).max() <= 0.8 / 2 + 1e-6 and np.abs(server.duals[there]).min(1).max() > 1e-3


@pytest.mark.full
def test_a_row_is_sent_over_every_edge():
    assert solved(1.0, rounds=2)[1].rounds["bytes_up"][0].tolist() == [2 * 12] * N
    assert solved(0.8, "torus", 2, rho=2.0)[1].rounds["bytes_up"][0].tolist() == [3 * 12] * N
    assert not solved(1.0, rounds=2)[1].rounds["bytes_down"].any()


@pytest.mark.full
def test_a_node_without_examples_is_the_median_of_its_neighbors_and_ties_nobody():
    sizes = (4, 1, 0, 6, 2, 5)
    people = bench.population(sizes)
    server, _ = solved(1.5, sizes=sizes)
    h, b = sums(people)
    chain = [(3, 4), (4, 5), (5, 0), (0, 1)]
    value = lambda x: (0.5 * h * x**2 - b * x).sum() + 1.5 * sum(np.linalg.norm(x[j] - x[k]) for j, k in chain)
    best, rng = server.x.astype(np.float64), np.random.default_rng(0)
    best[2] = 0
    others = [best + 0.02 * rng.normal(size=best.shape) * (np.arange(N) != 2)[:, None] for _ in range(300)]
    assert value(best) <= min(map(value, others)) + 1e-5
    method = bench.make("netlasso", graph="ring")
    own = method.personal(None, jax.tree.map(jnp.asarray, server), (), bench.client(people, 2))["x"]
    around = server.x[[1, 3]]
    assert sum(np.linalg.norm(around - own, axis=1)) == pytest.approx(np.linalg.norm(around[0] - around[1]), rel=1e-5)
    np.testing.assert_array_equal(method.personal(None, jax.tree.map(jnp.asarray, server), (), bench.client(people, 3))["x"], server.x[3])


def test_the_line_search_never_climbs():
    f = lambda x: jnp.sum(jnp.sqrt(1 + x**2)) + 0.1 * jnp.sum(jnp.cos(3 * x))  # Newton's own steps diverge from afar
    x = jnp.array([5.0, -3.0, 0.5])
    after = jax.jit(lambda steps: f(newton(f, x, steps)))  # one program for all
    values = [float(after(steps)) for steps in range(12)]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(values)) and values[-1] < values[0] - 1
    matrix = jnp.array([[3.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(newton(lambda x: 0.5 * x @ matrix @ x - x.sum(), jnp.array([9.0, -4.0]), 1), jnp.linalg.solve(matrix, jnp.ones(2)), rtol=1e-5)
    assert np.isfinite(newton(lambda x: 0.0 * x.sum(), x, 3)).all()


@pytest.mark.full
def test_a_support_vector_machine_is_solved():
    """f_i of model svm, by Newton's steps, against a solver of its own: the bias is penalized like the other entries by both."""
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    x, y, l2 = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 3, 40), 0.5
    batch = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32), "mask": jnp.ones(40, bool)}
    task = models.build("svm", batch, 3)
    start, shape = ravel_pytree(jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0))))
    solve = jax.jit(lambda: newton(lambda p: 40 * task.loss(shape(p), batch, None)[0] + l2 / 2 * jnp.sum(p**2), start, 12))
    found = shape(solve())["head"]
    other = LinearSVC(C=1 / l2, loss="squared_hinge", dual=False, tol=1e-9, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(found["kernel"], other.coef_.T, atol=1e-4)
    np.testing.assert_allclose(found["bias"], other.intercept_, atol=1e-4)


def test_the_median_is_where_distances_are_least():
    points = jnp.array([[0.0], [1.0], [7.0], [2.0], [30.0]])
    np.testing.assert_allclose(median(points, jnp.ones(5)), [2.0], atol=1e-3)
    np.testing.assert_allclose(median(points, jnp.array([1.0, 1, 9, 1, 1])), [7.0], atol=1e-3)
    assert not median(points, jnp.zeros(5)).any()


def test_the_other_end_of_an_edge():
    found = ties("watts-strogatz:4,p=0.5", 12, 0)
    ends = np.stack([np.broadcast_to(np.arange(12)[:, None], found.ids.shape), found.ids], -1)
    got = np.array([found.heard(jnp.asarray(ends), i) for i in range(12)])
    np.testing.assert_array_equal(got[found.there], ends[..., ::-1][found.there])


def test_what_does_not_fit_is_one_line():
    big = Task("big", lambda key: {"w": jnp.zeros(3000)}, None, None, None)
    with pytest.raises(ValueError, match="task 'big' has 3,000, at most 2,000 fit"):
        registry.make("netlasso", big).init_server(None, big.init(None), None)
    for graph, words in (("random:3", "undirected graph that stays"), ("erdos:0.6,directed=true", "undirected graph"), ("rign", "unknown graph 'rign'")):
        with pytest.raises(ValueError, match=words) as error:
            ties(graph, 8, 0)
        assert "\n" not in str(error.value)
