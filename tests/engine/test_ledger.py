"""Operations of local training: by hand, against XLA's own count, and over whole runs."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine import tiny

import fedjax_lab
from fedjax_lab import config as configs
from fedjax_lab import run
from fedjax_lab.engine import ledger
from fedjax_lab.engine.ledger import Cost, Flops

SETTINGS = {"task": "digits_logreg", "clients": 6, "rounds": 3, "eval_every": 2, "devices": 1}


@pytest.mark.parametrize("f, once, turn", [
    (lambda x: x @ x.T, 2 * 4 * 4 * 8, 0),
    (lambda x: jnp.sum(x + 1), 32 + 32, 0),
    (lambda x: x[:, ::-1].T.reshape(-1), 0, 0),  # data that move
    (lambda x: jnp.sum(x.astype(jnp.int32)) * 2, 0, 0),
    (lambda x: jax.lax.scan(lambda c, row: (c * 2, row + c), 1.0, x)[1], 4 * (1 + 8), 0),
    (lambda x: jax.lax.fori_loop(0, x[0, 0].astype(int), lambda i, x: jnp.tanh(x), x), 0, 32),
    (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x * 2, lambda: jnp.tanh(x) + 1), 64, 0),
    (lambda x: jax.jit(jax.vmap(jnp.tanh))(x), 32, 0),
    (lambda x: jax.lax.conv(x.reshape(1, 1, 4, 8), jnp.ones((5, 1, 3, 3)), (1, 1), "VALID"), 2 * 5 * 2 * 6 * 9, 0),
])
def test_by_hand(f, once, turn):
    assert ledger.flops(f, jnp.ones((4, 8))) == Flops(once, turn)


def test_shapes_suffice():
    shape = jax.ShapeDtypeStruct((10**6, 10**4), jnp.float32)
    assert ledger.flops(lambda x: x * 2, shape).once == 10**10


def test_it_agrees_with_xla():
    def loss(w, x, y):
        h = jnp.tanh(x @ w["a"])
        return jnp.mean((h @ w["b"] - y) ** 2)

    args = {"a": jnp.ones((64, 48)), "b": jnp.ones((48, 10))}, jnp.ones((20, 64)), jnp.ones((20, 10))
    xla = jax.jit(jax.grad(loss)).lower(*args).cost_analysis()["flops"]
    assert ledger.flops(jax.grad(loss), *args).once == pytest.approx(xla, rel=0.05)


@pytest.mark.parametrize("batch, capacity, width", [(10, 73, 10), (10, 7, 7), (1, 30, 1), (10**6, 30, 30), (10, 1, 1), (2, 2, 2)])
def test_a_cost_comes_back(batch, capacity, width):
    """From a client of 11 + 13 n operations outside its loop, and 17 + 19 b in a step of b examples."""
    found = ledger.cost(lambda c: Flops(11 + 13 * c, 17 + 19 * min(batch, c)), capacity)
    assert (found.client, found.example) == (11, 13) and found.width == (width if batch > 1 else 1)
    for n, steps in ((1, 1), (capacity, 3)):
        batches = [min(found.width, n - at) for at in range(0, n, found.width)]
        seen = sum(batches[t % len(batches)] for t in range(steps))
        assert found.step * steps + found.seen * seen == sum(17 + 19 * min(batch, batches[t % len(batches)]) for t in range(steps))


def test_rounds_are_added_up_client_by_client():
    size, costs = np.array([0, 3, 10, 25]), [Cost(100, 1, 10, 1000, 10), Cost(7, 0, 0, 0, 1, True)]
    rounds = {"ids": np.array([[1, 3, 0], [2, 0, 1]]), "steps0": np.array([[2, 4, 0], [1, 0, 0]]), "all_steps1": np.array([[0, 1, 1, 1], [0, 0, 0, 0]])}
    first = (100 + 3 + 20 + 1000 * (3 + 3)) + (100 + 25 + 40 + 1000 * (10 + 10 + 5 + 10))
    assert ledger.spent(costs, size, rounds) == first + (100 + 10 + 10 + 1000 * 10) + 3 * 7
    assert ledger.spent([], size, rounds) == 0


def costs(**settings):
    return run.prepare(configs.make({**SETTINGS, "cohort": 6, **settings})).simulation.costs()


def flops(**settings):
    done = fedjax_lab.train(**{**SETTINGS, "cohort": 6, **settings})
    return [row["flops"] for row in done.history]


def test_every_row_has_the_operations_so_far():
    """All clients, two epochs: a product of matrices forward and one backward for each example, twice in every round."""
    found = flops(options={"epochs": 2})
    assert found[0] == 0 and found[1] * 3 == found[2] * 2
    least = 3 * 2 * 1442 * 4 * 64 * 10
    assert least < found[2] < 1.35 * least  # softmax, bias and steps are the rest


@pytest.mark.full
def test_what_counts_and_what_does_not():
    plain = flops()[-1]
    assert plain == flops(chunk=3, lanes=16, population="host")[-1]
    assert flops(participation="uniform+stragglers:1,steps=0.5")[-1] < 0.7 * plain
    assert flops(participation="uniform+dropout:1")[-1] == plain  # those lost on the way have worked too


def test_a_batch_that_is_short_counts_as_what_it_is():
    found = [costs(options={"batch_size": b})[0] for b in (1, 10, "full")]
    assert len({c.seen + c.step for c in found}) == 1  # a step of one example
    assert [c.width for c in found[:2]] == [1, 10] and found[2].width > 200


@pytest.mark.full
def test_the_method_says_how_many_gradients_there_are():
    (plain,), (sam,), (all_, cohort) = costs(), costs(method="fedsam"), costs(method="mime")
    assert 2 * plain.seen == sam.seen == cohort.seen and all_.seen == plain.seen
    assert not any(c.everyone for c in (plain, sam, all_, cohort)) and any(c.everyone for c in costs(method="bvr-l-sgd"))


def test_a_method_that_holds_an_array_of_a_batchs_width_counts_short_batches_as_whole():
    plain = tiny.averaging(tiny.task(), tiny.work())

    def local(key, message, row, data):
        if data.train.capacity < 3:
            raise ValueError("Incompatible shapes")
        return plain.local(key, message, row, data)

    (whole,), (fine,) = (tiny.build(method).costs() for method in (plain._replace(local=local), plain))
    assert (whole.example, whole.seen, whole.width) == (0, 0, 1)
    assert whole.step == pytest.approx(fine.step + fine.seen * fine.width, rel=0.01) and whole.client == fine.client > 0
