"""The small world of the engine's and the contract's tests: twenty ragged clients, one without data, and scripted cohorts.

Cohorts come from a table in the participation's state, and data from the world: both are arguments of the compiled program, so
one compilation serves any order, mask, allowance and poison.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, tree
from fedjax_lab.engine import mesh, sync
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.registry import client_optimizer_of
from fedjax_lab.types import Aux, Draw, Method, Participation, Population, Result, Stream, Task

N, SLOTS, EMPTY, CLASSES, DIM = 20, 10, 3, 3, 12  # client EMPTY has no training examples
FREE = np.iinfo(np.int32).max


@functools.cache
def population(spare: int = 4) -> Population:
    """Ragged clients; `spare` rows at the end of the training examples belong to nobody."""
    rng = np.random.default_rng(0)
    size = rng.integers(3, 30, N).astype(np.int32)
    size[EMPTY] = 0
    offset = (np.cumsum(size) - size).astype(np.int32)
    train, test = _examples(rng, size.sum() + spare), _examples(rng, 100)
    owner = np.repeat(np.arange(N), size)
    counts = np.zeros((N, CLASSES), np.float32)
    np.add.at(counts, (owner, train["y"][: len(owner)]), 1)
    shown = rng.integers(1, 9, N).astype(np.int32)
    shown[5] = 0  # and client 5 no test examples
    index = np.concatenate([rng.choice(100, n, replace=False) for n in shown]).astype(np.int32)
    return Population(
        Stream(train, offset, size), Stream(test, (np.cumsum(shown) - shown).astype(np.int32), shown, index), counts,
        public=_examples(rng, 12)
    )


@functools.cache
def semi() -> Population:
    """The same clients, of whose examples some have a label."""
    people = population()
    train = people.train._replace(examples={**people.train.examples, "labeled": people.train.examples["x"][:, 5] > 0})
    return people._replace(train=train)


@functools.cache
def vertical() -> Population:
    """The same clients as parties whose first three examples are aligned; the server has the labels of these."""
    people, rng = population(), np.random.default_rng(1)
    unlabeled = {**people.train.examples, "y": np.full_like(people.train.examples["y"], -1)}
    test = {"x": rng.normal(size=(100, N, DIM)).astype(np.float32), "y": people.test.examples["y"]}
    nobody = np.zeros(N, np.int32)
    return Population(people.train._replace(examples=unlabeled), Stream(test, nobody, nobody), 0 * people.counts, public={"y": np.arange(3, dtype=np.int32)})


def _examples(rng, n):
    x = rng.normal(size=(n, DIM)).astype(np.float32)
    return {"x": x, "y": x[:, :CLASSES].argmax(1).astype(np.int32)}


def rows_of(client: int) -> slice:
    """Where the training examples of a client lie."""
    train = population().train
    return slice(train.offset[client], train.offset[client] + train.size[client])


def task(dtype=jnp.float32) -> Task:
    """A perceptron with one hidden layer, written by hand: cheap to compile, and split into features and head."""

    def init(key):
        draw = lambda name, *shape: jax.random.uniform(keys.purpose(key, name), shape, dtype, -0.5, 0.5)
        return {
            "body": {"kernel": draw("body", DIM, 8), "bias": jnp.zeros(8, dtype)},
            "head": {"kernel": draw("head", 8, CLASSES)},
        }

    def features(params, batch, key=None):
        return jnp.tanh(batch["x"].astype(dtype) @ params["body"]["kernel"] + params["body"]["bias"])

    def head(params, z):
        return z @ params["head"]["kernel"]

    def apply(params, batch, key=None):
        return head(params, features(params, batch, key))

    def metrics(logits, batch):
        loss = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["y"][:, None], 1)[:, 0]
        return {"loss": loss, "accuracy": (logits.argmax(-1) == batch["y"]).astype(dtype)}

    def loss(params, batch, key):
        mask = batch["mask"]
        clean = {**batch, "x": jnp.where(mask[:, None], batch["x"], 0)}
        values = metrics(apply(params, clean), clean)["loss"]
        return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1), Aux()

    def taps(params, batch):
        return {"body/kernel": batch["x"].astype(dtype)[:, None], "head/kernel": features(params, batch)[:, None]}

    return Task("tiny", init, apply, loss, metrics, features, head, taps)


def linear_task(dtype=jnp.float32) -> Task:
    """Linear regression of y on x, for methods that solve in closed form."""

    def apply(params, batch, key=None):
        return batch["x"].astype(dtype) @ params["w"]

    def metrics(outputs, batch):
        return {"loss": (outputs - batch["y"]) ** 2}

    def loss(params, batch, key):
        mask = batch["mask"]
        clean = {**batch, "x": jnp.where(mask[:, None], batch["x"], 0)}
        return jnp.where(mask, metrics(apply(params, clean), clean)["loss"], 0).sum() / jnp.maximum(mask.sum(), 1), Aux()

    return Task("linear", lambda key: {"w": jax.random.uniform(key, (DIM,), dtype)}, apply, loss, metrics)


def counted(task: Task) -> tuple[Task, list]:
    """The task, and a list that grows by one whenever its loss is traced."""
    traces = []

    def loss(*args):
        traces.append(None)
        return task.loss(*args)

    return task._replace(loss=loss), traces


def work(lr=0.1, epochs=1, local_steps=0, batch_size=4, client_optimizer="sgd") -> Work:
    return Work(lr, epochs, local_steps, batch_size, *client_optimizer_of(client_optimizer, lr))


def averaging(task, work) -> Method:
    """FedAvg, with rows of several dtypes: rounds taken part in, the last loss, whether ever seen."""

    def local(key, message, client, data):
        y = descend(batches(key, data, work), message["model"], gradient(task), work.optimizer)
        seen = {"rounds": client["rounds"] + 1, "loss": y.loss, "seen": jnp.ones((), bool), "model": y.params}
        return Result({"model": tree.sub(y.params, message["model"])}, data.size, seen, metrics={"loss": y.loss})

    def init_client(key, params, facts):
        return {"rounds": jnp.int32(0), "loss": 0.0, "seen": False, "model": params}

    return Method(local, init_client=init_client, steps=work.steps, personal=lambda key, server, client, data: client["model"])


def scripted(slots: int = SLOTS) -> Participation:
    """Cohorts read from state: ids, mask, allowance [T, S], row clock % T."""

    def init(key, census):
        ids = jnp.asarray(np.stack([np.random.default_rng(t).permutation(N)[:slots] for t in range(8)]), jnp.int32)
        return ids, jnp.ones(ids.shape, bool), jnp.full(ids.shape, FREE, jnp.int32)

    def draw(key, script, clock):
        ids, mask, allowance = (x[clock % x.shape[0]] for x in script)
        return Draw(script, ids, mask, mask, allowance)

    return Participation(slots, init, draw)


COMPILED: list[str] = []  # grows with every program that the backend compiles, whatever jit's caches say
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: COMPILED.append(name) if "backend_compile" in name else None
)


def build(method=None, *, devices=1, chunk=1, slots=SLOTS, the_task=None, people=None, **more):
    the_task = the_task or task()
    method = method or averaging(the_task, work())
    options = {"mesh": mesh.make(devices), "chunk": chunk, "length": 4, "eval_batch": 3, **more}
    return sync.build(the_task, method, people or population(), scripted(slots), **options)


@functools.cache
def base(devices=1, chunk=1, slots=SLOTS):
    """The program that most tests share, and the traces of its loss."""
    the_task, traces = counted(task())
    return build(averaging(the_task, work()), the_task=the_task, devices=devices, chunk=chunk, slots=slots), traces


def start(sim, seed=0, script=None):
    """A first state, with the cohorts (ids, mask, allowance) of a script where one is given."""
    state = sim.init(sim.world, jax.random.key(seed))
    if script is None:
        return state
    like = state.participation
    put = [np.broadcast_to(np.asarray(x, l.dtype), l.shape) for x, l in zip(script, like, strict=True)]
    return state._replace(participation=jax.device_put(tuple(put), like[0].sharding))


def run(sim, segments=(2, 1), seed=0, script=None, world=None):
    """(final state, last record) on the host; segments are numbers of rounds, world may differ from what the first state saw."""
    state, clock, record = start(sim, seed, script), 0, None
    for rounds in segments:
        state, record = sim.segment(world or sim.world, state, jnp.int32(clock), jnp.int32(rounds))
        clock += rounds
    return host(state), host(record)


def with_train(world, **arrays):
    """The world with other training examples, offsets or sizes of the same shapes."""
    train = world.population.train
    put = lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding)
    examples = {k: put(arrays.pop(k), v) if k in arrays else v for k, v in train.examples.items()}
    train = train._replace(examples=examples, **{k: put(v, getattr(train, k)) for k, v in arrays.items()})
    return world._replace(population=world.population._replace(train=train))


def host(values):
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x), values
    )


def same(a, b, but=()):
    """Asserts equal bits, leaf by leaf; names in `but` are left out."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        name = jax.tree_util.keystr(path)
        if not any(word in name for word in but):
            assert x.dtype == y.dtype and x.shape == y.shape, name
            np.testing.assert_array_equal(x.view(np.uint8) if x.ndim else x, y.view(np.uint8) if y.ndim else y, err_msg=name)


def close(a, b, rel=1e-6, but=()):
    """Asserts that floats differ by `rel` of the largest entry of their leaf at most, and all else by nothing."""
    for (path, x), (_, y) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        name = jax.tree_util.keystr(path)
        if not any(word in name for word in but):
            atol = rel * np.abs(x).max(initial=0) if np.issubdtype(x.dtype, np.floating) else 0
            np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)
