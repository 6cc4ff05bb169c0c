"""Who takes part: exact laws by chi-square tests and bounds of five deviations, purity, cost, and what the engine makes of the lost and the slow."""
from __future__ import annotations

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead import ahead
from engine import tiny
from scipy import stats

from fedjax_lab import keys, registry, tree
from fedjax_lab.engine import mesh, sync
from fedjax_lab.local import batches
from fedjax_lab.parts.cohorts.drawn import among
from fedjax_lab.parts.cohorts.text import from_text
from fedjax_lab.parts.cohorts.trace import trace
from fedjax_lab.parts.cohorts.weighted import weighted
from fedjax_lab.types import Census, Draw, Method, Participation, Result, Stacked

N, COHORT, DRAWS = 12, 4, 20000
SIZE = np.arange(N) + 1
ROOT = jax.random.key(11)
TABLE = np.random.default_rng(5).permuted(np.tile(np.arange(N), (7, 1)), axis=1)[:, :6]
TABLE[np.random.default_rng(6).random(TABLE.shape) < 0.3] = -1
PRESENT = np.random.default_rng(7).random((5, N)) < 0.4
PRESENT[3] = False
SCHEMES = {
    "uniform": "uniform", "poisson": "poisson", "bernoulli": "bernoulli:0.2/0.5/0.9", "weighted": "weighted", "cyclic": "cyclic:5",
    "cyclic shuffled": "cyclic:shuffle=true", "markov": "markov:0.2/0.6,leave=0.3", "trace": trace(N, COHORT, rounds=TABLE),
    "trace of availability": trace(N, COHORT, rounds=PRESENT), "dropout": "cyclic+dropout:0.3/0.6",
    "stragglers": "uniform+stragglers:0.3,steps=random", "all": "poisson+dropout:0.1+stragglers:0.5,steps=0.25,redraw=yes",
}


def scheme(name):
    return SCHEMES[name] if name == "trace" or " of " in name else from_text(SCHEMES.get(name, name), N, COHORT)


def compiled(function, *args):
    """What the function returns as a program, on the host."""
    return tiny.host(jax.jit(function)(*args))


def rounds_of(who, rounds, clients=N, size=SIZE):
    """root key -> (draws [rounds, S], the state that each round begins with), as a run makes them."""

    def one(state, clock):
        draw = who.draw(keys.for_round(ROOT, clock), state, clock)
        return draw.state, (draw._replace(state=(), share=draw.share + jnp.zeros(who.slots)), state)

    return lambda key: jax.lax.scan(one, who.init(key, Census(clients, size)), jnp.arange(rounds))[1]


def roll(who, rounds=DRAWS, clients=N, size=SIZE):
    """The draws of many rounds on end, [rounds, S]."""
    return compiled(lambda key: rounds_of(who, rounds, clients, size)(key)[0], ROOT)


@functools.cache
def draws(name):
    return roll(scheme(name))


def members(ids, mask, clients=N):
    """bool [R, N]: who is under the mask."""
    found = np.zeros((len(ids), clients), bool)
    found[np.nonzero(mask)[0], ids[mask]] = True
    return found


def fits(seen, p, draws=DRAWS):
    """Asserts that frequencies over independent draws are within five deviations of these probabilities."""
    np.testing.assert_array_less(np.abs(seen - p), 5 * np.sqrt(np.asarray(p) * (1 - np.asarray(p)) / draws) + 1e-9)


def together(member):
    """Frequencies of pairs i < j, and those pairs."""
    pairs = np.triu_indices(member.shape[1], 1)
    return (member.T.astype(float) @ member / len(member))[pairs], pairs


def passes(counts, p):
    """Asserts that counts fit these probabilities, at a level that one run in a million misses; rare outcomes are joined."""
    common = p * counts.sum() > 8
    join = lambda x: np.append(x[common], x[~common].sum())
    seen, expected = join(counts), np.maximum(join(p), 1e-12) * counts.sum()
    assert stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), common.sum()) > 1e-6


def test_every_registered_scheme_is_here():
    words = {item.split(":")[0] for text in SCHEMES.values() if isinstance(text, str) for item in text.split("+")} | {"trace"}
    assert words == set(registry.catalog("participation"))


@functools.cache
def few_twice(name):
    """200 rounds on end with their states, and the same all at once from those states: one program."""
    who = scheme(name)

    def both(key):
        draw, states = rounds_of(who, 200)(key)
        clock = jnp.arange(200)
        again = jax.vmap(lambda t, state: who.draw(keys.for_round(ROOT, t), state, t))(clock, states)
        return draw, states, again

    return compiled(both, ROOT)


def few(name):
    return few_twice(name)[0]


@pytest.mark.parametrize("name", SCHEMES)
def test_ids_are_safe_and_distinct_where_the_mask_holds(name):
    draw = few(name)
    assert draw.ids.shape == draw.mask.shape == draw.heard.shape == draw.allowance.shape == (200, scheme(name).slots)
    assert (draw.ids.dtype, draw.allowance.dtype, draw.mask.dtype, draw.heard.dtype) == (np.int32, np.int32, bool, bool)
    assert draw.ids.min() >= 0 and draw.ids.max() < N
    assert (members(draw.ids, draw.mask).sum(1) == draw.mask.sum(1)).all() and draw.mask.any()
    assert (draw.allowance > 10**9).all() and (draw.share > 0).all() and (draw.share <= 1).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_draw_depends_on_key_state_and_clock_alone(name):
    draw, states, again = few_twice(name)
    for one, other in zip(draw[1:5], again[1:5], strict=True):
        np.testing.assert_array_equal(one, other)
    assert (draw.share.T == again.share.T).all()
    for now, then in zip(jax.tree.leaves(states), jax.tree.leaves(again.state), strict=True):
        assert now.dtype == then.dtype and (now[1:] == then[:-1]).all()
    assert len({(x * m).tobytes() for x, m in zip(draw.ids, draw.mask, strict=True)}) > 2


def test_uniform_is_without_replacement():
    member = members(*draws("uniform")[1:3])
    assert (member.sum(1) == COHORT).all()
    fits(member.mean(0), COHORT / N)
    fits(together(member)[0], COHORT * (COHORT - 1) / (N * (N - 1)))  # below (COHORT / N)^2


@pytest.mark.parametrize("text, q", [("poisson", [COHORT / N]), ("poisson:0.7", [0.7]), ("bernoulli", [0.2, 0.5, 0.9])])
def test_poisson_and_bernoulli_clients_are_independent(text, q):
    draw, p = draws(text), np.resize(q, N)
    member = members(draw.ids, draw.mask)
    fits(member.mean(0), p)
    seen, (i, j) = together(member)
    fits(seen, p[i] * p[j])
    if len(q) == 1:
        passes(np.bincount(member.sum(1), minlength=N + 1), stats.binom(N, q[0]).pmf(np.arange(N + 1)))
    fits((member[1:] & member[:-1]).mean(0), p**2)  # from round to round, too


def test_what_overflows_is_counted_and_chosen_uniformly():
    draw = roll(from_text("poisson:0.4,slots=5", N, COHORT))
    there, over = draw.mask.sum(1), draw.metrics["overflow"]
    passes(np.bincount(there + over, minlength=N + 1), stats.binom(N, 0.4).pmf(np.arange(N + 1)))
    assert (there[over > 0] == 5).all() and there.max() == 5 < (there + over).max()
    cut = members(draw.ids, draw.mask)[over > 0]
    fits(cut.mean(0), 5 / N, len(cut))


@pytest.mark.parametrize("clients, cohort", [(10**7, 1000), (10**5, 30000), (2**31 - 1, 3), (N, N)])
def test_the_number_of_clients_is_binomial_in_populations_of_any_size(clients, cohort):
    who, law = from_text("poisson", clients, cohort), stats.binom(clients, cohort / clients)

    def count(key):
        draw = who.draw(key, (), jnp.int32(0))
        return draw.mask.sum() + draw.metrics["overflow"]

    found = compiled(jax.vmap(count), jax.random.split(ROOT, DRAWS if cohort < 3000 else 50))
    low, high = int(law.ppf(1e-9)), int(law.isf(1e-9)) + 1
    assert low <= found.min() and found.max() <= high and cohort <= who.slots <= min(clients, cohort + 6 * cohort**0.5 + 10)
    if cohort < 3000:
        passes(np.bincount(found - low, minlength=high - low + 1), law.pmf(np.arange(low, high + 1)))


def test_weights_rule_each_draw_among_those_left():
    w = np.array([1.0, 2, 3, 0, 4])
    draw = roll(weighted(5, 3), clients=5, size=w)
    p = {order: np.prod([w[i] / (w.sum() - w[list(order[:k])].sum()) for k, i in enumerate(order)]) for order in itertools.permutations([0, 1, 2, 4], 3)}
    number = {order: n for n, order in enumerate(p)}
    assert sum(p.values()) == pytest.approx(1) and draw.mask.all()
    passes(np.bincount([number[tuple(ids)] for ids in draw.ids.tolist()], minlength=len(p)), np.array(list(p.values())))
    inside = members(draw.ids, draw.mask, 5)
    fits(inside.mean(0), [sum(q for order, q in p.items() if i in order) for i in range(5)])
    everybody = roll(weighted(5, 5), 20, clients=5, size=w)
    assert (everybody.mask.sum(1) == 4).all() and not members(everybody.ids, everybody.mask, 5)[:, 3].any()


def test_weights_may_be_given(tmp_path):
    np.savez(tmp_path / "w.npz", weights=SIZE[::-1])
    given, plain = roll(from_text(f"weighted:{tmp_path / 'w.npz'}", N, COHORT), 20), roll(weighted(N, COHORT), 20, size=SIZE[::-1])
    np.testing.assert_array_equal(given.ids, plain.ids)
    for wrong in (SIZE[1:], -SIZE, np.where(SIZE == 3, np.nan, SIZE)):
        with pytest.raises(ValueError, match=rf"'weights' of 'weighted': .*; expected \[{N}\] finite numbers >= 0"):
            weighted(N, COHORT, weights=wrong)


@pytest.mark.parametrize("text, cycle", [("cyclic", 3), ("cyclic:shuffle=yes", 3), ("cyclic:groups=5", 5), ("cyclic:7,shuffle=true", 7), ("cyclic:12", 12)])
def test_a_cycle_covers_everybody_once(text, cycle):
    draw = roll(from_text(text, N, COHORT), 5 * cycle)
    turns = members(draw.ids, draw.mask).reshape(5, cycle, N)
    assert (turns.sum(1) == 1).all() and np.ptp(turns.sum(2)) <= 1
    first = turns[0].argmax(0)
    assert ((np.diff(first) >= 0).all() and (turns == turns[:1]).all()) == ("shuffle" not in text)
    assert len({x.tobytes() for x in turns}) == (5 if "shuffle" in text else 1)


def test_large_groups_send_a_uniform_cohort():
    draw = roll(from_text("cyclic:2", 11, COHORT), clients=11)
    member = members(draw.ids, draw.mask, 11).reshape(-1, 2, 11)
    fits(member[:, 0].mean(0), np.repeat([COHORT / 6, 0], [6, 5]), DRAWS // 2)
    fits(member[:, 1].mean(0), np.repeat([0, COHORT / 5], [6, 5]), DRAWS // 2)


def test_availability_is_a_markov_chain_in_its_stationary_law():
    arrive, leave = np.resize([0.2, 0.6, 0.9], N), np.resize([0.3, 0.05], N)
    who = from_text("markov:0.2/0.6/0.9,leave=0.3/0.05", N, COHORT)
    state, pi = compiled(rounds_of(who, DRAWS), ROOT)[1], arrive / (arrive + leave)
    began = compiled(jax.vmap(lambda key: who.init(key, Census(N, SIZE))), jax.random.split(ROOT, DRAWS))
    fits(began.mean(0), pi)
    now, then = state[:-1], state[1:]
    fits((then & ~now).sum(0) / (~now).sum(0), arrive, (~now).sum(0))  # transitions are exact, so the law stays
    fits((now & ~then).sum(0) / now.sum(0), leave, now.sum(0))
    memory = 1 - arrive - leave
    mean_time = (1 + memory) / (1 - memory)  # in how many rounds a chain forgets
    fits(state.mean(0), pi, DRAWS / mean_time)
    for lag in (1, 3):
        seen = [np.corrcoef(x[lag:], x[:-lag])[0, 1] for x in state.T.astype(float)]
        np.testing.assert_allclose(seen, memory**lag, atol=0.06)
    apart = np.corrcoef(state.T)[~np.eye(N, dtype=bool)]
    assert np.abs(apart).max() < 0.07  # clients are independent


def test_the_cohort_is_uniform_among_the_available():
    here = np.zeros((3, N), bool)
    here[0, [1, 4, 5, 9, 11]] = here[1] = True
    several = jax.vmap(among, (None, 0, None))
    ids, mask = compiled(jax.vmap(lambda key: several(key, jnp.asarray(here), 7)), jax.random.split(ROOT, DRAWS))
    assert (mask.sum(2) == [5, 7, 0]).all() and (members(ids[:, 0], mask[:, 0]) == here[0]).all()
    two = members(ids[:, 0, :2], mask[:, 0, :2])  # the first two are a cohort of two
    fits(two.mean(0), here[0] * 2 / 5)
    fits(together(two[:, here[0]])[0], 2 / 20)
    fits(members(ids[:, 1], mask[:, 1]).mean(0), 7 / N)
    draw, state, _ = few_twice("markov")
    member = members(draw.ids, draw.mask)
    assert not (member & ~state).any() and (member.sum(1) == np.minimum(COHORT, state.sum(1))).all()


def test_a_trace_is_reproduced_and_begins_again(tmp_path):
    draw = few("trace")
    for t in range(20):
        assert sorted(draw.ids[t][draw.mask[t]]) == sorted(x for x in TABLE[t % 7] if x >= 0)
    assert scheme("trace").slots == (TABLE >= 0).sum(1).max()
    draw = few("trace of availability")
    member = members(draw.ids, draw.mask)
    here = np.resize(PRESENT, (200, N))
    assert not (member & ~here).any() and (member.sum(1) == np.minimum(COHORT, here.sum(1))).all() and not member[3].any()
    for name, table in (("ids", TABLE), ("available", PRESENT)):
        np.savez(tmp_path / "t.npz", **{name: table})
        filed, given = roll(from_text(f"trace:{tmp_path / 't.npz'}", N, COHORT), 9), roll(trace(N, COHORT, rounds=table), 9)
        np.testing.assert_array_equal(filed.ids, given.ids)


@pytest.mark.parametrize("table, words", [
    ([[0, N]], f"round 0 names client {N}; expected 0..{N - 1}, or -1"), ([[0, 1], [2, -2]], "round 1 names client -2"),
    ([[0, 1], [2, 2]], "round 1 names client 2 twice"), ([[0.5, 1]], r"float64\[1, 2\]; expected integer"), ([1, 2], r"int64\[2\]; expected"),
    (np.ones((2, 3), bool), rf"bool\[2, 3\]; expected .* bool \[rounds, {N}\]"),
])
def test_a_trace_that_makes_no_sense_is_refused(table, words):
    with pytest.raises(ValueError, match=f"'rounds' of 'trace': {words}"):
        trace(N, COHORT, rounds=table)


def test_the_lost_start_and_are_not_heard():
    rate = np.resize([0.1, 0.6], N)
    plain, draw = draws("uniform"), draws("uniform+dropout:0.1/0.6")
    np.testing.assert_array_equal(plain.ids, draw.ids)
    assert draw.mask.all() and plain.heard.all()
    started, lost = members(draw.ids, draw.mask).sum(0), members(draw.ids, draw.mask & ~draw.heard).sum(0)
    fits(lost / started, rate, started)
    both = (~draw.heard).sum(1) == COHORT  # independent within a round: all four lost
    chosen = np.array([rate[list(c)].prod() for c in itertools.combinations(range(N), COHORT)]).mean()
    fits(both.mean(), chosen)
    assert not few("uniform+dropout:1").heard.any()


def slow(text, rounds=200):
    draw = roll(from_text(text, N, N), rounds)
    return np.take_along_axis(draw.share, np.argsort(draw.ids, 1), 1)  # [R, N] by id


def test_stragglers_are_a_share_of_all_clients():
    share = slow("uniform+stragglers:0.3,steps=0.25")
    assert ((share == 0.25).sum(1) == 4).all() and (share == share[0]).all() and set(share[0]) == {0.25, 1.0}  # 3.6 of 12
    moving = slow("uniform+stragglers:0.3,steps=0.25,redraw=true", 4000)
    assert ((moving == 0.25).sum(1) == 4).all()
    fits((moving < 1).mean(0), 4 / N, 4000)
    fits(together(moving < 1)[0], 12 / (N * (N - 1)), 4000)
    random = slow("uniform+stragglers:1,steps=random")
    assert stats.kstest(random.ravel(), "uniform").pvalue > 1e-4


def test_who_is_slow_does_not_depend_on_who_is_drawn():
    fixed, draw = slow("uniform+stragglers:0.5")[0], few("poisson+stragglers:0.5")
    assert set(fixed) == {0.5, 1.0}
    np.testing.assert_array_equal(draw.share, fixed[draw.ids])


@pytest.mark.parametrize("text, plain", [("uniform+dropout:0+stragglers:0.4,steps=1", "uniform"), ("markov:1,leave=0", "uniform"),
                                         ("cyclic:1", "uniform"), ("poisson+stragglers:0", "poisson")])
def test_identities_change_no_bit(text, plain):
    one, other = few(text), few(plain)
    for a, b in zip(one[1:5], other[1:5], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.share == 1).all()


def sizes(jaxpr):
    """Entries of every array that a program makes, inner programs included."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("text", ["uniform", "poisson", "cyclic:shuffle=true+dropout+stragglers"])
def test_ten_million_clients_cost_what_their_cohort_costs(text):
    took = []
    for clients in (10**4, 10**7):
        who = from_text(text, clients, 500)
        state = who.init(ROOT, Census(clients, np.ones(1)))
        assert max(sizes(jax.make_jaxpr(who.draw)(ROOT, state, jnp.int32(0)).jaxpr)) <= 5 * who.slots
        assert sum(x.size for x in jax.tree.leaves(state)) < 10
        draw = jax.jit(who.draw)
        took.append(min(_seconds(draw, state) for _ in range(20)))
    assert took[1] < 5 * took[0] + 1e-3


def _seconds(draw, state):
    begin = time.perf_counter()
    jax.block_until_ready(draw(ROOT, state, jnp.int32(1)))
    return time.perf_counter() - begin


def simulation(method, participation, rounds, devices=1, chunk=1):
    return ahead(sync.build(tiny.task(), method, tiny.population(), participation, mesh=mesh.make(devices), chunk=chunk, length=rounds, eval_clients=1))


IDS = np.stack([np.random.default_rng(t).permutation(tiny.N)[: tiny.SLOTS] for t in range(8)])


def written() -> Participation:
    """Everything of a Draw but its ids is read from the state: mask, heard, allowance, share [8, S]."""

    def init(key, census):
        return jnp.ones(IDS.shape, bool), jnp.ones(IDS.shape, bool), jnp.full(IDS.shape, tiny.FREE, jnp.int32), jnp.ones(IDS.shape)

    def draw(key, script, clock):
        ids, mask, heard, allowance, share = (jnp.asarray(x)[clock] for x in (IDS, *script))
        return Draw(script, ids.astype(jnp.int32), mask, heard, allowance, share=share)

    return Participation(tiny.SLOTS, init, draw)


def noting() -> Method:
    """FedAvg of four epochs with a row of the steps that its client took, a median beside the mean, and the cohort's sizes."""
    work = tiny.work(epochs=4)
    method = tiny.averaging(tiny.task(), work)

    def local(key, message, row, data):
        result = method.local(key, message, row["own"], data)
        upload = {**result.upload, "stacked": result.upload["model"]["head"]["kernel"]}
        return result._replace(upload=upload, client={"own": result.client, "steps": batches(key, data, work).steps})

    def serve(key, server, aggregate, cohort):
        return {"params": tree.add(server["params"], aggregate["model"]), "median": aggregate["stacked"], "size": cohort.size, "steps": cohort.steps}

    def combine(stack, weights, cohort):
        return jnp.nanmedian(jnp.where(cohort.mask[:, None, None], stack, jnp.nan), 0)

    def init_server(key, params, census):
        return {"params": params, "median": params["head"]["kernel"], **dict.fromkeys(("size", "steps"), jnp.zeros(tiny.SLOTS, jnp.int32))}

    def init_client(key, params, facts):
        return {"own": method.init_client(key, params, facts), "steps": jnp.int32(-1)}

    return Method(local, init_server, init_client, lambda server, client, clock: {"model": server["params"]}, serve, {"stacked": Stacked(combine)},
                  steps=work.steps, deploy=lambda server: server["params"])


@functools.cache
def noted():
    return simulation(noting(), written(), 3, devices=2, chunk=3)


def test_the_server_learns_nothing_of_the_lost_and_their_rows_stay():
    (lost, record), (absent, other) = (
        tiny.run(noted(), (3,), script=(mask, IDS % 2 == 1, tiny.FREE, 1)) for mask in (True, IDS % 2 == 1)
    )
    tiny.same(lost.server, absent.server)  # bit for bit
    tiny.same(lost.clients, absent.clients)
    rounds, full = record.rounds, 4 * tree.size(absent.server["params"])
    assert rounds["mask"].all() and (lost.clients["steps"][::2] == -1).all() and (lost.clients["steps"][1::2] > 0).any()
    np.testing.assert_array_equal(rounds["heard"], rounds["ids"] % 2 == 1)
    np.testing.assert_array_equal(rounds["bytes_up"], rounds["heard"] * (full + 4 * lost.server["median"].size))
    np.testing.assert_array_equal(rounds["bytes_down"], np.full_like(rounds["ids"], full))
    np.testing.assert_array_equal(other.rounds["bytes_down"].sum(1), full * rounds["heard"].sum(1))
    np.testing.assert_array_equal(rounds["loss"], other.rounds["loss"])


def test_stragglers_take_a_share_of_their_own_steps():
    share = np.random.default_rng(0).choice([0.03, 0.25, 0.5, 0.9, 1.0], IDS.shape).astype(np.float32)
    allowance = np.where(IDS % 3 == 0, 5, tiny.FREE)
    state, record = tiny.run(noted(), (1,), script=(True, True, allowance, share))
    own = 4 * -(-tiny.population().train.size[IDS[0]] // 4)
    granted = np.minimum(np.where(share[0] < 1, np.maximum(np.round(share[0] * own), 1), own), allowance[0])
    expected = np.minimum(own, granted)  # a client without data takes none
    assert (expected < own).any() and (expected == 5).any() and (expected == 1).any() and (expected == own).any()
    np.testing.assert_array_equal(state.clients["steps"][IDS[0]], expected)
    np.testing.assert_array_equal(state.server["steps"], -np.sort(-expected))  # the longest first, as the engine wants them
    np.testing.assert_array_equal(state.clients["steps"][record.rounds["ids"][0]], state.server["steps"])


@pytest.mark.parametrize("text", ["poisson:0.3,slots=5+dropout:0.4", "cyclic:shuffle=yes+stragglers"])
def test_the_engine_draws_what_the_scheme_draws(text):
    """Rounds in the engine and the scheme by itself; a row counts how often its client was heard."""
    who = from_text(text, tiny.N, 5)
    count = Method(lambda key, message, row, data: Result({}, 1.0, row + 1), init_client=lambda key, params, facts: jnp.int32(0),
                   serve=lambda key, server, aggregate, cohort: server)
    final, record = tiny.run(simulation(count, who, 6), (6,))

    def alone(root):
        def one(state, clock):
            draw = who.draw(keys.purpose(keys.for_round(root, clock), "cohort"), state, clock)
            return draw.state, draw._replace(state=())

        return jax.lax.scan(one, who.init(keys.purpose(root, "participation"), Census(tiny.N, tiny.population().train.size)), jnp.arange(6))

    state, draw = compiled(alone, jax.random.key(0))
    tiny.same(final.participation, state)
    for name in ("mask", "heard"):
        np.testing.assert_array_equal(members(record.rounds["ids"], record.rounds[name], tiny.N),
                                      members(draw.ids, draw.mask & getattr(draw, name), tiny.N))
    np.testing.assert_array_equal(final.clients, members(draw.ids, draw.mask & draw.heard, tiny.N).sum(0))
    for name, value in draw.metrics.items():
        assert value.any()
        np.testing.assert_array_equal(record.rounds[name], value)


REFUSED = {
    "": "expected one of bernoulli, cyclic, markov, poisson, trace, uniform, weighted, then each of dropout, stragglers once",
    "unifrm": "unknown participation 'unifrm'; valid: bernoulli, .*; did you mean 'uniform'",
    "dropout:0.1": "expected one of bernoulli", "uniform+poisson": "then each of dropout, stragglers", "uniform+dropout+dropout": "once",
    "uniform:3": "'uniform' takes at most 0 values", "poisson:2": "'q' of 'poisson': '2' is not valid; expected float > 0 and <= 1",
    "poisson:slots=13": "'slots' of 'poisson': '13' is more than the 12 clients there are; choose 1..12",
    "cyclic:13": "'groups' of 'cyclic': '13' is more than the 12 clients", "markov:0": "'arrive' of 'markov': '0'", "trace": "needs option 'rounds'",
    "trace:nowhere.npz": "'nowhere.npz' is no .npz file; expected one with `ids` or `available`",
    "uniform+stragglers:steps=0": "'steps' of 'stragglers': '0' is not valid; expected one of random or float > 0 and <= 1",
    "uniform+dropout:rate=-1": "'rate' of 'dropout': '-1'", "uniform+": "empty item",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_line(text):
    with pytest.raises(ValueError, match=REFUSED[text]) as error:
        from_text(text, N, COHORT)
    assert str(error.value).startswith(f"--participation={text}: ") and "\n" not in str(error.value)


def test_a_file_without_the_array_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=SIZE)
    with pytest.raises(ValueError, match="other.npz' has a; expected `weights`"):
        from_text(f"weighted:{tmp_path / 'other.npz'}", N, COHORT)
