"""A small bench for methods: quadratic clients of unequal size, and a run of any method on them through the engine.

Clients take unequal steps because the engine allows them so (`rota`), and all gradients are full-batch unless the task is NOISY:
without reshuffled batches a program compiles in a third of the time.
"""
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import registry
from fedjax_lab.data.quadratic import quadratic_task
from fedjax_lab.engine import mesh, sync
from fedjax_lab.types import Aux, ClientData, Draw, Method, Participation, Population, Stream, Task, View

DIM = 3
TASK = quadratic_task(DIM, start=1.0)
NOISY = quadratic_task(DIM, noise=0.5, start=1.0)


@functools.cache
def population(sizes: tuple[int, ...] = (4, 1, 3, 6, 2, 5), spread: float = 2.0, alike: bool = False) -> Population:
    """Clients of these sizes whose examples are rows (a, o); with `alike` all rows of all clients are the same."""
    rng, size = np.random.default_rng(3), np.array(sizes, np.int32)
    owner = np.repeat(np.arange(len(size)), size) * (not alike)
    a = np.exp(rng.uniform(-1, 1, (len(size), DIM)))[owner]
    o = (spread * rng.normal(size=(len(size), DIM)))[owner] + (not alike) * 0.5 * rng.normal(size=a.shape)
    train = Stream({"a": a.astype(np.float32), "o": o.astype(np.float32)}, (np.cumsum(size) - size).astype(np.int32), size)
    return Population(train, train, np.zeros((len(size), 0), np.float32))


@functools.cache
def split() -> Task:
    """A linear map of rows o to features and a linear head."""

    def features(params, batch, key=None):
        return jnp.tanh(batch["o"] @ params["body"])

    def head(params, z):
        return z @ params["head"]

    def values(outputs, batch):
        return {"loss": (outputs - batch["a"].sum(-1)) ** 2}

    def loss(params, batch, key):
        each = values(head(params, features(params, batch)), batch)["loss"]
        return jnp.where(batch["mask"], each, 0).sum() / jnp.maximum(batch["mask"].sum(), 1), Aux()

    def init(key):
        return {"body": jax.random.normal(key, (3, 4)), "head": jax.random.normal(key, (4,))}

    return Task("split", init, lambda p, b, key=None: head(p, features(p, b)), loss, values, features, head)


@functools.cache
def rota(clients: int, cohort: int, steps: tuple[int, ...] = (4, 2, 3, 1, 5)) -> Participation:
    """Every second client, from another start each round; client i may take steps[i mod len] steps."""

    def draw(key, state, clock):
        ids = (jnp.arange(cohort, dtype=jnp.int32) * (2 if clients > cohort else 1) + clock) % clients
        whole = jnp.ones(cohort, bool)
        return Draw(state, ids, whole, whole, jnp.asarray(steps, jnp.int32)[ids % len(steps)])

    return Participation(cohort, lambda key, census: (), draw)


@functools.cache
def always(*ids: int) -> Participation:
    """The same clients in every round."""

    def draw(key, state, clock):
        whole = jnp.ones(len(ids), bool)
        return Draw(state, jnp.asarray(ids, jnp.int32), whole, whole, jnp.full(len(ids), 99, jnp.int32))

    return Participation(len(ids), lambda key, census: (), draw)


def make(name: str, task=TASK, **options: Any) -> Method:
    """A method with full batches, five local steps at most and a rate of 0.05, unless told otherwise."""
    return registry.make(name, task, **{"lr": 0.05, "batch_size": "full", "local_steps": 5, **options})


def run(method: Method, people: Population | None = None, *, rounds: int = 4, cohort: int | Participation = 3, chunk: int = 1, task=TASK,
        seed: int = 0, eval_clients: int | None = None):
    """(State, Record) after `rounds` rounds in one segment."""
    people = population() if people is None else people
    participation = rota(people.clients, cohort) if isinstance(cohort, int) else cohort
    sim = sync.build(task, method, people, participation, mesh=mesh.make(1), chunk=chunk, length=rounds, eval_clients=eval_clients)
    state = sim.init(sim.world, jax.random.key(seed))
    return sim.segment(sim.world, state, jnp.int32(0), jnp.int32(rounds))


def history(method: Method, people: Population | None = None, *, segments: tuple[int, ...] = (1, 1, 1), cohort: int | Participation = 3, task=TASK,
            seed: int = 0) -> list:
    """[(State, Record)] after each of several segments of so many rounds, by one program, on the host."""
    people = population() if people is None else people
    participation = rota(people.clients, cohort) if isinstance(cohort, int) else cohort
    sim = sync.build(task, method, people, participation, mesh=mesh.make(1), length=max(segments))
    state, clock, seen = sim.init(sim.world, jax.random.key(seed)), 0, []
    segment = sim.segment.lower(sim.world, state, jnp.int32(0), jnp.int32(1)).compile()
    for rounds in segments:
        state, record = segment(sim.world, state, jnp.int32(clock), jnp.int32(rounds))
        clock += rounds
        seen.append(jax.tree.map(np.array, (state._replace(key=()), record)))
    return seen


def start(method: Method, people: Population | None = None, task=TASK):
    """The State before the first round."""
    people = population() if people is None else people
    sim = sync.build(task, method, people, rota(people.clients, 1), mesh=mesh.make(1), chunk=1)
    return sim.init(sim.world, jax.random.key(0))


RUN = ("rounds", "cohort", "chunk", "task", "seed")


def path(name: str, people: Population | None = None, **options: Any) -> np.ndarray:
    """The deployed parameters [DIM] after the last round; options of `run` and of the method. Runs are remembered."""
    at = (name, id(people), *sorted((k, id(v) if callable(v) or isinstance(v, tuple) else v) for k, v in options.items()))
    if at not in _seen:
        method = make(name, options.get("task", TASK), **{k: v for k, v in options.items() if k not in RUN})
        state, _ = run(method, people, **{k: v for k, v in options.items() if k in RUN})
        _seen[at] = np.asarray(method.deploy(state.server)["x"]), people, options  # what an id stands for must live
    return _seen[at][0]


_seen: dict[tuple, tuple] = {}


def client(people: Population, i: int, allowance: int = 1 << 30) -> ClientData:
    """What `local` and `personal` see of one client."""
    views = [View(jax.tree.map(jnp.asarray, s), jnp.int32(i), int(s.size.max())) for s in (people.train, people.test)]
    return ClientData(jnp.int32(i), jnp.int32(0), *views, jnp.asarray(people.counts[i]), jnp.int32(allowance))


def optimum(people: Population, weighting: str = "examples") -> np.ndarray:
    """The minimum of the mean of the clients' objectives, weighted by examples or uniform."""
    examples, size = people.train.examples, people.train.size
    w = np.repeat(np.ones(len(size)) if weighting == "examples" else 1 / size, size)[:, None]
    return (w * examples["a"] * examples["o"]).sum(0) / (w * examples["a"]).sum(0)
