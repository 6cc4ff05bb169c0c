"""Every method equals a plain numpy loop that was written from its card alone, round by round.

The oracles know nothing of the package: they see who takes part in which round, which rows each step reads, and a gradient.
"""
from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import plan
import problem as problems
import pytest
from ahead import ahead
from cases import CASES, DOUBLE, LOOP, OWN, REDUCTIONS, ROUNDS
from jax.flatten_util import ravel_pytree

from fedjax_lab import keys, registry, schedules, spec
from fedjax_lab.engine import gossip, mesh, sync
from fedjax_lab.events import Arrival, Update
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.mixing import links
from fedjax_lab.parts.mixing.text import from_text as graph_of
from fedjax_lab.parts.schedules.replay import replay
from fedjax_lab.types import ClientData, View

WORK = ("epochs", "local_steps", "batch_size")
PROBLEMS = {**problems.PROBLEMS, "gaps": problems.bowl, "normed": problems.normed, "late": problems.bowl, "semi": problems.semi, "parties": problems.parties}
FAMILIES = ("optimization", "baselines", "personalization", "aggregation", "distillation", "representation", "modalities", "communication", "schedules", "decentralized", "trust", "finetuning", "tasks", "labels")
FROM_HERE = ("again", "of_phase", "observed", "everyone", "evaluation", "coins", "own", "root", "matrices")  # what an oracle is given by `oracle`, and no option
SEVERAL = ("ifca",)  # whose server holds several models
SETTLES = ("analyticfl", "fedrecon")  # what stands still once all clients were heard
ONCE = ("oneshot-vfl",)  # what has one round
EVERYBODY = ("fedlin", "rffl", "netlasso")  # what needs full participation

ORACLES = {p.stem.replace("_", "-"): importlib.import_module(f"oracles.{p.stem}")
           for p in sorted((pathlib.Path(__file__).parent / "oracles").glob("[a-z]*.py"))}
METHODS = registry.catalog("method")

# The first of a method's cases is in the default matrix, unless it takes more than six seconds.
LONG = ("bvr-l-sgd", "fedbr", "fedetf", "fedlabel", "fedlex", "fedma", "fedmd", "fedpage", "fixmatch-fl", "hyperfl", "oneshot-vfl", "pfedgate")
BOTH = [pytest.param(slug, *case, marks=pytest.mark.full if number or slug in LONG else ())
        for slug in ORACLES if slug in METHODS for number, case in enumerate(CASES[slug])]

STEPS = np.arange(1, 6) / 5  # of a training from b to t, which is that of update t at the latest
LATE = [Update(t, tuple(Arrival(*a, ends=a[1] - 0.5 + (t - a[1]) * STEPS) for a in arrivals)) for t, arrivals in enumerate([
    [(0, 0, 3, 1.0), (3, 0, 5, 2.0)], [(1, 0, 2, 0.5), (4, 1, 0, 3.0), (2, 1, 2, 1.5)], [(5, 0, 4, 2.5)], [], [(3, 2, 5, 1.0), (6, 1, 2, 0.25)],
    [(0, 1, 2, 4.0), (1, 5, 1, 1.0), (5, 3, 3, 0.75)]])]


GRAPHS = {"classifier": "watts-strogatz:4,p=0.5", "bowl": "random:3", "gaps": "ring"}  # of what is published for gossip
GOSSIPED = [slug for slug, factory in METHODS.items() if factory.info.schedule.startswith(schedules.GOSSIP)]


def graph(name: str):
    return graph_of(GRAPHS[name], len(problems.SIZES), 0)


def matrices(name: str) -> list[np.ndarray]:
    """The gossip matrix of every round."""
    topology, rounds = graph(name), [keys.for_round(jax.random.key(problems.ROOT), jnp.int32(t)) for t in range(ROUNDS)]
    arrays = jax.tree.map(jnp.asarray, topology.arrays)
    return [links.dense(topology.at(arrays, keys.purpose(key, "graph"), jnp.int32(t))) for t, key in enumerate(rounds)]


def participation(name: str, cohort: int = problems.COHORT):
    if name == "late":
        return replay(LATE)
    drawn = uniform(len(problems.SIZES), cohort)
    if name in ("classifier", "normed", "semi", "parties"):
        return drawn

    def draw(key, state, clock):
        draw = drawn.draw(key, state, clock)
        there = ((draw.ids + clock) % 3 > 0) & (clock != 3) if name == "gaps" else draw.mask
        return draw._replace(mask=there, allowance=2 + (3 * draw.ids + clock) % 4)

    return drawn._replace(draw=draw)


@functools.cache
def turns(name: str, cohort: int = problems.COHORT, phase: int = 0, rounds: int = ROUNDS, **work):
    """The plan of six rounds, or more."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    people, work = PROBLEMS[name]().population, registry.training(lr=0.0, **given)
    return plan.rounds(people, participation(name, cohort), work, jax.random.key(problems.ROOT), rounds, phase)


@functools.cache
def everyone(name: str, phase: int, **work):
    """The plan of an exchange with all clients, where nobody straggles."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    people, work, n = PROBLEMS[name]().population, registry.training(lr=0.0, **given), len(problems.SIZES)
    return plan.rounds(people, uniform(n, n), work, jax.random.key(problems.ROOT), ROUNDS, phase)


@functools.cache
def evaluation(name: str, **work):
    """The plan of what all clients may do for their own models after a round."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    return plan.evaluation(PROBLEMS[name]().population, registry.training(lr=0.0, **given), jax.random.key(problems.ROOT))


def oracle(slug: str, name: str, options: dict, cohort: int = problems.COHORT, observed: list | None = None, own: list | None = None) -> list[np.ndarray]:
    """The server's models, round by round.

    An oracle with the argument `observed` reads coins off the engine's history, which it gets there; with `everyone` it gets the
    plan of an exchange with all clients, as `everyone(phase)`; with `evaluation` what they may do for their own models; with
    `root` the key that draws are derived from; with `again` the plan of the second phase, with `of_phase(phase=)` that of any. To the list `own` an oracle with such an argument adds all clients' own models
    [N, d] as they are evaluated after each round.
    """
    module, given = ORACLES[slug], {**LOOP[name], **options}
    work = {k: given.pop(k) for k in WORK if k in given}
    here = {"observed": observed, "everyone": functools.partial(everyone, name, **work), "root": jax.random.key(problems.ROOT)}
    here["own"] = [] if own is None else own
    asked = inspect.signature(module.run).parameters
    given |= {k: v for k, v in here.items() if k in asked}
    given |= {"matrices": matrices(name)} if "matrices" in asked else {}
    given |= {"again": turns(name, cohort, 1, **work)} if "again" in asked else {}
    given |= {"of_phase": functools.partial(turns, name, cohort, **work)} if "of_phase" in asked else {}
    if "evaluation" in asked:
        given["evaluation"] = evaluation(name, **work)
    phase = module.phase(**options) if hasattr(module, "phase") else 0
    return module.run(PROBLEMS[name](), turns(name, cohort, phase, **work), **given)


def engine(slug: str, name: str, options: dict, cohort: int = problems.COHORT, rounds: int = ROUNDS, own: list | None = None) -> list[np.ndarray]:
    """The server's models, round by round; to `own` the clients' own [N, d] are added, of a method that has them."""
    problem = PROBLEMS[name]()
    method = registry.make(slug, problem.task, **{**LOOP[name], **options})
    seats, rounds_of = participation(name, cohort), None
    if slug in GOSSIPED:
        _, positional, values = spec.parse(METHODS[slug].info.schedule)
        rounds_of = gossip.schedule(graph(name), **spec.bind(schedules.mixing, positional, values))
        seats = gossip.seating(seats, problem.clients)
    sim = ahead(sync.build(problem.task, method, problem.population, seats, mesh=mesh.make(1), chunk=2, schedule=rounds_of, eval_clients=0), init=False)
    state, history = sim.init(sim.world, jax.random.key(problems.ROOT)), []
    personal = jax.jit(functools.partial(owned, method))
    for clock in range(rounds):
        state, _ = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(1))
        several = state.server.server if slug in GOSSIPED else state.server if slug in SEVERAL else None
        models = flat(method.deploy(state.server)) if several is None else jax.vmap(flat)(several).ravel()
        history.append(np.array(models, np.float64))
        if own is not None and method.personal:
            own.append(np.array(personal(sim.world.population, state.server, state.clients), np.float64))
    return history


def flat(params) -> jax.Array:
    return ravel_pytree(params)[0]


def owned(method, population, server, rows) -> jax.Array:
    """[N, d]: all clients' own models, as they are evaluated."""
    ids, width = jnp.arange(population.clients, dtype=jnp.int32), int(problems.SIZES.max())

    def one(client, row):
        view = View(population.train, client, width)
        data = ClientData(client, jnp.int32(0), view, view, population.counts[client], jnp.int32(np.iinfo(np.int32).max))
        key = keys.for_client(keys.purpose(jax.random.key(problems.ROOT), "personal"), client)
        return flat(method.personal(key, server, row, data))

    return jax.vmap(one)(ids, rows)


@contextlib.contextmanager
def precision(double: bool):
    """What is computed inside is double, if so asked; problems and plans that are kept have one type only."""
    if not double:
        yield
        return
    kept = [f for module in (problems, sys.modules[__name__]) for f in vars(module).values() if hasattr(f, "cache_clear")]
    for f in kept:
        f.cache_clear()
    try:
        with jax.enable_x64(True):
            yield
    finally:
        for f in kept:
            f.cache_clear()


def close(actual, expected, **tolerance):
    for t, (a, b) in enumerate(zip(actual, expected, strict=True)):
        np.testing.assert_allclose(a, b, err_msg=f"after round {t + 1}", **tolerance)


@pytest.mark.parametrize("slug, name, options", BOTH, ids=str)
def test_the_engine_equals_the_oracle(slug, name, options):
    cohort = len(problems.SIZES) if slug in EVERYBODY else problems.COHORT
    mine, theirs = [], []
    personal = "own" in inspect.signature(ORACLES[slug].run).parameters
    with precision(slug in DOUBLE):
        actual = engine(slug, name, options, cohort, own=mine if personal else None)
        expected = oracle(slug, name, options, cohort, actual, theirs)
    assert len(mine) == len(theirs) == ROUNDS * personal
    actual, expected = ([np.concatenate([x, *models]) for x, models in itertools.zip_longest(*found, fillvalue=())]
                        for found in ((actual, mine), (expected, theirs)))
    moves = [np.abs(b - a).max() for a, b in itertools.pairwise([np.resize(PROBLEMS[name]().start, expected[0].shape), *expected])]
    still = (name in ("gaps", "late")) + 4 * (slug in SETTLES) + 5 * (slug in ONCE) + ROUNDS // 2 * (options.get("p") == "sequential")
    assert np.sum(np.array(moves) > 1e-3) >= ROUNDS - still
    close(actual, expected, rtol=5e-5, atol=2e-6)


@pytest.mark.parametrize("slug", [slug for slug in ORACLES if slug in METHODS])
def test_the_defaults_are_the_cards(slug):
    offered = {name: p.default for name, p in inspect.signature(METHODS[slug]).parameters.items()}
    given = inspect.signature(ORACLES[slug].run).parameters.items()
    known = {name: p.default for name, p in given if p.default is not p.empty and name not in FROM_HERE}
    assert {name: offered.get(name) for name in known} == known


@pytest.mark.parametrize("slug", [slug for slug in ORACLES if slug in METHODS])
def test_every_option_is_turned_somewhere(slug):
    own = set(inspect.signature(METHODS[slug]).parameters) - set(inspect.signature(registry.training).parameters) - {"task"}
    elsewhere = {"tune"}  # in the method's own test file
    assert own - elsewhere <= {option for _, options in CASES[slug] for option in options}


def test_every_method_of_these_families_has_an_oracle():
    assert {name for name, factory in METHODS.items() if factory.info.family in FAMILIES} <= set(ORACLES)


def test_the_oracles_know_nothing_of_the_package():
    folder = pathlib.Path(__file__).parent / "oracles"
    assert not [path.name for path in folder.glob("*.py") if "fedjax_lab" in path.read_text() or "jax" in path.read_text()]


@pytest.mark.parametrize("slug, options, other, others, cohort, work", REDUCTIONS, ids=str)
def test_the_oracles_reduce_as_the_cards_say(slug, options, other, others, cohort, work):
    actual, expected = (oracle(n, "classifier", o | work, cohort) for n, o in ((slug, options), (other, others)))
    close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("slug, options, other, others", OWN, ids=str)
def test_the_oracles_own_models_reduce_as_the_cards_say(slug, options, other, others):
    actual, expected = [], []
    for name, given, own in ((slug, options, actual), (other, others, expected)):
        oracle(name, "bowl", given, own=own)
    close(actual, expected, rtol=1e-12, atol=1e-12)


def test_periodic_participation_is_estimated_exactly():
    estimate = ORACLES["fedstale"].Intervals(cutoff=50)
    for t in range(12):
        estimate.observe(t % 3 == 2)
        assert estimate.mean == (3 if t >= 2 else 1)


def test_the_contrastive_slope_is_the_derivative():
    moon, rng, tau = ORACLES["moon"], np.random.default_rng(0), 0.5
    z, z_g, z_p, d = rng.normal(size=(4, 3, 5))

    def value(z):
        s_g, s_p = moon.cosine(z, z_g)[0], moon.cosine(z, z_p)[0]
        return np.mean(np.logaddexp(s_g / tau, s_p / tau) - s_g / tau)

    assert (value(z + 1e-6 * d) - value(z - 1e-6 * d)) / 2e-6 == pytest.approx((moon.slope(z, z_g, z_p, tau) * d).sum(), rel=1e-6)
    assert not moon.slope(z, z_g, z_g, tau).any()


def test_the_plan_covers_the_ragged_and_the_partial():
    for name in problems.PROBLEMS:
        cohorts = [[turn.client for turn in cohort] for cohort in turns(name)]
        assert all(len(set(c)) == problems.COHORT for c in cohorts)
        assert set(np.concatenate(cohorts)) == set(range(len(problems.SIZES)))
        assert any(len({len(turn.batches) for turn in cohort}) > 2 for cohort in turns(name))
    for turn in itertools.chain.from_iterable(turns("classifier")):
        rows = np.sort(np.concatenate(turn.batches))
        np.testing.assert_array_equal(rows, np.repeat(problems.classifier().rows(turn.client), 2))  # each example once an epoch


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_the_gradient_of_a_batch_is_the_mean_over_its_examples(name):
    problem, rng = PROBLEMS[name](), np.random.default_rng(0)
    y, z = problem.start + 0.1 * rng.normal(size=problem.start.shape), rng.normal(size=problem.start.shape)
    for client in range(problem.clients):
        rows = problem.rows(client)
        for value in (problem.loss, problem.gradient, lambda v, r: problem.curvature(v, r, z)):
            np.testing.assert_allclose(value(y, rows), np.mean([value(y, r) for r in rows[:, None]], 0), rtol=1e-4, atol=1e-6)


def test_the_gradient_by_hand_is_that_of_the_task():
    problem = problems.bowl()
    batch = {**problem.population.train.examples, "mask": np.ones(problems.SIZES.sum(), bool)}
    x = np.linspace(-1, 1, problems.DIM)
    by_task = jax.grad(lambda p: problem.task.loss(p, batch, jax.random.key(0))[0])({"x": jnp.asarray(x, jnp.float32)})["x"]
    np.testing.assert_allclose(problem.gradient(x, np.arange(problems.SIZES.sum())), by_task, rtol=1e-5, atol=1e-6)
