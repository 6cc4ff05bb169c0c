"""The virtual clock against a simulation that goes through time in small steps, and the delay laws against their distributions."""
from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_lab import events, keys
from fedjax_lab.events import Fleet
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.schedules.buffered import buffered
from fedjax_lab.parts.schedules.compass import compass
from fedjax_lab.parts.schedules.polling import polling
from fedjax_lab.parts.schedules.replay import packed
from fedjax_lab.parts.schedules.ticks import ticks
from fedjax_lab.parts.schedules.triggered import triggered

ROOT = jax.random.key(3)


def fleet(clients=9, cohort=4, rounds=12, steps=5, seed=3) -> Fleet:
    return Fleet(jax.random.key(seed), clients, cohort, rounds, np.broadcast_to(steps, clients))


@functools.cache
def cohorts(clients, cohort, rounds):
    """The cohorts of synchronous rounds, in the order in which they are drawn."""
    def ids(n):
        return uniform(clients, cohort).draw(keys.purpose(keys.for_round(ROOT, n), "cohort"), (), n).ids
    return np.asarray(jax.jit(jax.vmap(ids))(jnp.arange(rounds, dtype=jnp.int32))).tolist()


def by_the_second(f: Fleet, buffer: int, times: np.ndarray, limit: int | None):
    """Second by second: who is done, what the buffer holds, who starts. Integer times [N, n], repeated; no queue, and no helper of the library."""
    ranks = cohorts(f.clients, f.clients, f.rounds + 1)
    left, base, began = {}, {}, np.zeros(f.clients, int)  # seconds to go and version, per client in flight; trainings begun
    done, full, resting, updates, refused, order = [], [], [], [], 0, []
    for now in itertools.count():
        for c in order:
            left[c] -= 1
        for c in [c for c in order if left[c] == 0]:
            del left[c]
            order.remove(c)
            if limit is not None and len(updates) - base[c] > limit:
                refused += 1
                continue
            full.append((c, base[c]))
            resting.append(c)
            if len(full) == buffer and len(updates) < f.rounds:
                updates.append((now, full, refused))
                done += full
                full, resting = [], []
        updates = [(t, b, refused if t == now else r) for t, b, r in updates]
        if len(updates) >= f.rounds:
            return updates, done, full, left, began.sum() - refused
        for c in ranks[len(updates)]:
            if len(left) < f.cohort and c not in left and c not in resting:
                left[c], base[c] = times[c, began[c] % times.shape[1]], len(updates)
                began[c] += 1
                order.append(c)


@pytest.mark.parametrize("buffer, cohort, limit, top, seed", [
    (1, 4, None, 9, 0), (3, 4, None, 9, 1), (4, 4, 1, 9, 2), (9, 4, None, 3, 3), (2, 9, 2, 30, 4), (1, 1, None, 9, 5), (9, 9, None, 9, 6), (5, 7, 0, 9, 7)])
def test_the_queue_does_what_happens_second_by_second(buffer, cohort, limit, top, seed, tmp_path):
    times = np.random.default_rng(seed).integers(1, top, (9, 4))
    np.savez(tmp_path / "t.npz", times=times)
    found = buffered(fleet(cohort=cohort), buffer=buffer, law=f"recorded:{tmp_path / 't.npz'}", max_staleness=limit)
    expected, done, *_ = by_the_second(fleet(cohort=cohort), buffer, times, limit)
    if top > 3:  # those who are done in one second may come in any order: who started first
        assert [(u.time, sorted((a.client, a.base) for a in u.arrivals), u.rejected) for u in found] == [(t, sorted(b), r) for t, b, r in expected]
    assert len(set(done)) == len(done) == buffer * 12  # nobody twice from one version
    arrivals = [(n, a) for n, u in enumerate(found) for a in u.arrivals]
    assert all(len({a.client for a in u.arrivals}) == buffer for u in found)
    assert all(0 <= n - a.base <= (math.inf if limit is None else limit) for n, a in arrivals)
    for client in range(9):  # its trainings follow one another
        mine = [(a.base, n) for n, a in arrivals if a.client == client]
        assert all(end < base for (_, end), (base, _) in itertools.pairwise(mine))


def test_nothing_is_lost():
    """Every training that began is consumed, rejected, waiting or still going; `training` counts before replacements."""
    found = buffered(fleet(rounds=20), buffer=3, law="fixed:2/3/5", max_staleness=2)
    _, _, waiting, going, began = by_the_second(fleet(rounds=20), 3, np.array([2, 3, 5] * 3)[:, None], 2)
    last = found[-1]
    assert began == 60 + last.waiting + last.training and (last.waiting, last.training) == (len(waiting), len(going))
    equal = buffered(fleet(clients=20, cohort=10), buffer=4, law="fixed")
    assert [(u.time, u.waiting, u.training) for u in equal[:5]] == [(1, 6, 0), (1, 2, 0), (2, 8, 0), (2, 4, 0), (2, 0, 0)]


@pytest.mark.parametrize("clients", [7, 300])
def test_the_order_of_a_version_is_that_of_a_synchronous_round(clients):
    order = events.orders(fleet(clients, cohort=5))
    for version, ids in enumerate(cohorts(clients, clients, 70)):
        if version % 23 == 0:
            assert list(order(version)) == ids


def test_equal_delays_are_synchronous_rounds():
    found = buffered(fleet(), buffer=4, law="fixed:2.5")
    assert [sorted(a.client for a in u.arrivals) for u in found] == [sorted(ids) for ids in cohorts(9, 4, 12)]
    assert [(u.time, {a.base for a in u.arrivals}) for u in found] == [(2.5 * (n + 1), {n}) for n in range(12)]


def test_with_a_buffer_of_one_the_factors_are_the_papers():
    tau = np.array([1, 2, 4.0])
    found = buffered(fleet(3, 3, rounds=7 * 5), buffer=1, law="fixed:1/2/4")
    for update in found:
        for a in update.arrivals:
            assert a.factor == pytest.approx(tau[a.client] * (1 / tau).sum(), rel=1e-12)


@pytest.mark.parametrize("dt, law", [(0.5, "linear:80"), (0.2, "fixed:0.2/0.6/1/0.7"), (0.3, "fixed:1/0.3/0.9")])
def test_a_client_is_in_every_tick_that_it_takes(dt, law):
    n = 12
    tau = [events.trainings(fleet(n), law)(i)[-1] for i in range(n)]
    every = [math.ceil(round(t / dt, 6)) for t in tau]
    period = math.lcm(*every)
    found = ticks(fleet(n, n, rounds=2 * period), dt=dt, law=law)
    factors = np.zeros((2 * period, n))
    for tick, update in enumerate(found):
        assert {a.client for a in update.arrivals} == {i for i in range(n) if (tick + 1) % every[i] == 0}
        for a in update.arrivals:
            factors[tick, a.client] = a.factor
            assert tick + 1 - a.base == every[a.client]
    assert (factors[:period].sum(0) == period).all() and (factors[period:].sum(0) == period).all()


@pytest.mark.parametrize("alpha", ["stochastic", "deterministic"])
def test_who_is_polled_answers_with_the_steps_done(alpha):
    f = fleet(20, 6, rounds=60, steps=[8] * 19 + [0])
    found = polling(f, interval=5.0, law="geometric:0.5/0.05", alpha=alpha)
    assert [[a.client for a in u.arrivals] for u in found] == cohorts(20, 6, 60)
    last, mine = dict.fromkeys(range(20), 0), {i: [] for i in range(20)}
    for n, update in enumerate(found):
        for a in update.arrivals:
            assert a.base == last[a.client]
            last[a.client] = n + 1
            mine[a.client].append(a)
    done = {i: np.array([a.allowance for a in mine[i]]) for i in range(20)}
    assert all(0 <= d.min() and d.max() <= 8 for d in done.values())
    assert min(d.min() for d in done.values()) == 0 and np.mean([done[i].mean() for i in range(0, 18, 2)]) > 2 * np.mean([done[i].mean() for i in range(1, 18, 2)])
    for i in range(19):  # with one gradient g everywhere u_i - a_i = -lr g on average, for fast and slow alike
        assert np.mean([a.factor * a.allowance for a in mine[i]]) == pytest.approx(1, rel=1e-9)
        assert alpha == "stochastic" or len({a.factor for a in mine[i]}) == 1
    # E steps in as many polls as passed: geometric steps of mean 1 / p are Bernoulli(p) in every unit of time
    fresh = [int(np.searchsorted(events.trainings(fleet(seed=s, steps=99), "geometric:0.3")(0), 20, "right")) for s in range(800)]
    assert stats.kstest(np.array(fresh) + np.random.default_rng(0).random(800), lambda x: stats.binom(20, 0.3).cdf(np.floor(x) - 1)
                        + (x - np.floor(x)) * stats.binom(20, 0.3).pmf(np.floor(x))).pvalue > 1e-3


@pytest.mark.parametrize("cohort, limit, latency, seed", [(2, None, 0, 0), (3, 1, 0, 1), (9, None, 2, 2), (1, 0, 1, 3)])
def test_clients_are_triggered_second_by_second(cohort, limit, latency, seed, tmp_path):
    """Integer times, and starts every 4 seconds; no queue."""
    times = np.random.default_rng(seed).integers(1, 15, (9, 4)) + 0.5 - 0.5  # [N, n]
    np.savez(tmp_path / "t.npz", times=times)
    found = triggered(fleet(cohort=cohort, rounds=30), period=4, law=f"recorded:{tmp_path / 't.npz'}", max_staleness=limit, latency=float(latency))
    ranks, left, base, began, updates, refused, order = cohorts(9, 9, 31), {}, {}, np.zeros(9, int), [], 0, []
    for now in itertools.count():
        left = {c: seconds - 1 for c, seconds in left.items()}
        for c in [c for c in order if left[c] == 0]:
            order.remove(c)
            del left[c]
            if limit is not None and len(updates) - base[c] > limit:
                refused += 1
            else:
                updates.append((now, c, base[c], refused, len(left)))
        if len(updates) >= 30:
            break
        for c in [c for c in ranks[len(updates)] if c not in left][: cohort if now % 4 == 0 else 0]:
            left[c], base[c] = times[c, began[c] % 4] + latency, len(updates)
            began[c] += 1
            order.append(c)
    assert [(u.time, *u.arrivals[0][:2], u.rejected, u.training) for u in found] == updates[:30]
    assert all(len(u.arrivals) == 1 and not u.waiting for u in found)
    assert began.sum() == len(updates) + refused + len(left)  # nothing is lost


@pytest.mark.parametrize("schedule", [lambda f: triggered(f, period=0.3, law="exponential"), lambda f: buffered(f, buffer=2, law="exponential", max_staleness=2),
                                      lambda f: polling(f, interval=2.0, law="geometric:0.9/0.3"), lambda f: ticks(f._replace(cohort=9), dt=0.4, law="linear"),
                                      lambda f: compass(f._replace(cohort=9), law="lognormal:0.8")])
def test_the_newest_model_after_every_step(schedule):
    """Against a search through all updates, and never a model that is not there yet."""
    found = schedule(fleet(rounds=40)._replace(watched=True))
    latest = packed(found).latest
    assert latest.shape == (40, max(len(u.arrivals) for u in found), 6) and (np.diff(latest, axis=2) >= 0).all()
    newer = 0
    for t, update in enumerate(found):
        for slot, a in enumerate(update.arrivals):
            steps = len(a.ends)
            assert steps == min(a.allowance, 5) or a.allowance < 5  # polled before the end
            there = [min(t, max(a.base, sum(u.time <= end for u in found))) for end in a.ends]
            assert latest[t, slot].tolist()[: steps + 1] == [a.base, *there]
            newer += there[-1] > a.base
    assert newer > 5 and packed(schedule(fleet(rounds=40))).latest == ()


def sample(law, count=4000, clients=2, steps=3):
    f = fleet(clients, steps=steps)
    train = events.trainings(f, law)
    return np.array([train(clients - 1)[-1] for _ in range(count)])


@pytest.mark.parametrize("law, cdf", [
    ("halfnormal:2", stats.halfnorm(scale=2).cdf), ("exponential:1/3", stats.expon(scale=3).cdf), ("lognormal:0.7", stats.lognorm(0.7).cdf)])
def test_laws_have_their_distributions(law, cdf):
    assert stats.kstest(sample(law), cdf).pvalue > 1e-3


def test_geometric_steps():
    total = sample("geometric:0.9/0.3").astype(int) - 3  # failures before three successes
    seen = np.bincount(np.minimum(total, 15), minlength=16)
    law = stats.nbinom(3, 0.3)
    assert stats.chisquare(seen, len(total) * np.append(law.pmf(np.arange(15)), law.sf(14))).pvalue > 1e-3


def test_laws_without_chance():
    assert sample("fixed:2/5", 3).tolist() == [5, 5, 5]
    assert sample("steps:0.5/0.25", 2, steps=7).tolist() == [1.75, 1.75]
    spread = [events.trainings(fleet(11), "linear:60")(i)[-1] for i in range(11)]
    np.testing.assert_allclose(spread, 1 - np.arange(11) * 0.06, rtol=1e-12)
    for count in (1, 3, 49, 57):  # steps are even, and the last ends exactly in time
        ends = events.trainings(fleet(steps=count), "fixed:0.7")(0)
        assert len(ends) == count and ends[-1] == 0.7 and np.allclose(np.diff(ends, prepend=0), 0.7 / count)
    times = np.array([events.trainings(fleet(40), "fixed+stragglers:0.25/8")(i)[-1] for i in range(40)])
    assert sorted(times.tolist()) == [1.0] * 30 + [8.0] * 10 and times[:30].max() == 8


@pytest.mark.parametrize("law", ["halfnormal", "linear:60", "steps:0.5", "geometric:0.9/0.3", "lognormal:0.3+stragglers:0.4/7"])
def test_a_flight_ends_with_its_last_step(law):
    f = fleet(steps=np.arange(9) % 4)
    train, flight, watched = events.trainings(f, law), events.flights(f, law), events.flights(f._replace(watched=True), law)
    for at in range(18):
        steps = train(at % 9)
        assert flight(at % 9, 1.5) == (1.5 + steps[-1], None)
        end, ends = watched(at % 9, 1.5)
        assert end == ends[-1] and np.array_equal(ends, 1.5 + steps)


def test_a_client_reads_its_own_stream():
    """Its k-th training takes as long, whoever else trains and whatever the schedule; another seed is another stream."""
    train = events.trainings(fleet(), "lognormal")
    alone = [train(4)[-1] for _ in range(3)]
    other = events.trainings(fleet(cohort=9, rounds=1), "lognormal")
    mixed = [(other(2), other(4)[-1], other(0))[1] for _ in range(3)]
    assert alone == mixed and len(set(alone)) == 3
    assert events.trainings(fleet(seed=4), "lognormal")(4)[-1] not in alone
    assert other(2)[-1] not in alone


@pytest.mark.parametrize("law, words", [
    ("haltnormal", "unknown delay law 'haltnormal'; valid: .*did you mean 'halfnormal'"), ("fixed:0", "'0' is not valid"), ("", "has no name"),
    ("fixed+lognormal", "change of a delay law"), ("fixed+stragglers:2/3", "SHARE/TIMES"), ("recorded:nowhere.npz", "no .npz"),
    ("linear:100", "'100' is not valid")])
def test_a_law_that_is_not_valid(law, words):
    with pytest.raises(ValueError, match=words) as error:
        events.trainings(fleet(), law)
    assert "\n" not in str(error.value)


def test_recorded_times_must_fit():
    for table in (np.ones((3, 2)), np.zeros((9, 2)), np.full((9, 1), np.nan), np.ones(9)):
        with pytest.raises(ValueError, match="finite positive times"):
            events.recorded(fleet(), file=table)


def spans(f: Fleet, found, seconds):
    """[(update, arrival, when it came)] where every client starts at the moment of the update whose model it has."""
    moments = [0.0, *(u.time for u in found)]
    return [(n, a, moments[a.base] + a.allowance * seconds[a.client]) for n, u in enumerate(found) for a in u.arrivals]


@pytest.mark.parametrize("speeds", [(1, 2, 3.5, 0.7), (1,), (1, 9)])
def test_groups_arrive_together(speeds):
    """With speeds that do not change nobody is late: all members are there within a step of the last."""
    f = fleet(8, 8, rounds=40, steps=100)
    seconds = np.resize(speeds, 8)
    found = compass(f, law="steps:" + "/".join(map(str, speeds)))
    arrivals = spans(f, found, seconds)
    assert all(20 <= a.allowance <= 100 for _, a, _ in arrivals)
    assert all(found[n].time - max(seconds) - 1e-6 <= came <= found[n].time + 1e-6 for n, _, came in arrivals)
    alone = [n for n, a, _ in arrivals if a.base == 0]
    assert len(alone) == 8 and all(len(found[n].arrivals) == 1 for n in alone)
    if max(speeds) / min(speeds) <= 100 / 20:  # then all find into one group, at once where they are equally fast
        assert all(len(u.arrivals) == 8 for u in found[8 if speeds == (1,) else 20:])


@pytest.mark.parametrize("seed", range(4))
def test_every_upload_of_a_group_is_consumed_once(seed):
    """With speeds that change all the time: nobody twice, late ones with the next group, and each training follows the last."""
    f = fleet(7, 7, rounds=60, steps=50, seed=seed)
    found = compass(f, law="lognormal:0.8")
    times = [u.time for u in found]
    assert times == sorted(times) and any(u.waiting for u in found) and {len(u.arrivals) for u in found} > {1, 2}
    for client in range(7):
        mine = [(a.base, n) for n, u in enumerate(found) for a in u.arrivals if a.client == client]
        assert mine and len({base for base, _ in mine}) == len(mine)
    for update in found:
        clients = [a.client for a in update.arrivals]
        assert len(set(clients)) == len(clients) and all(10 <= a.allowance <= 50 for a in update.arrivals)
        moment = [a for u in found if u.time == update.time for a in u.arrivals]
        assert len({a.client for a in moment}) + update.waiting + update.training >= 7
