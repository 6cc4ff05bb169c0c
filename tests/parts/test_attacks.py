"""Each attack's formula against numpy; what members of a cohort send, and what they train on."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_lab import registry, rules
from fedjax_lab.engine import ledger
from fedjax_lab.parts.aggregators import nearest
from fedjax_lab.parts.attacks import backdoor, colluding, simple, text
from fedjax_lab.types import Cohort, Method, Phase, Sight

N, BAD = 20, np.array([2, 5, 11, 17])
RNG = np.random.default_rng(0)
STACK = {"a": RNG.normal(1, 0.3, (N, 5)).astype(np.float32), "b": RNG.normal(-1, 0.5, (N, 2, 3)).astype(np.float32)}
FLAT = np.concatenate([STACK["a"], STACK["b"].reshape(N, 6)], 1).astype(np.float64)
HEARD = np.arange(N) != 19
MEMBERS = np.isin(np.arange(N), BAD)
HONEST = FLAT[HEARD & ~MEMBERS]
BATCH = {"x": jnp.asarray(RNG.uniform(size=(6, 8, 8, 1)), jnp.float32), "y": jnp.array([0, 1, 2, 3, 4, 0]), "mask": jnp.array([1, 1, 1, 1, 1, 0], bool)}


def sight(rule=None, stack=STACK, ids=range(N)):
    heard, members = np.isin(ids, np.flatnonzero(HEARD)), np.isin(ids, BAD)
    cohort = Cohort(jnp.asarray(ids), jnp.asarray(heard), None, None, N, jnp.int32(0))
    rank = np.where(members, np.searchsorted(BAD, ids), -1)
    weight = jnp.asarray(heard, jnp.float32)
    rule = rules.stacked(rule or rules.mean())
    seats = np.append(np.flatnonzero(members), N)  # one more could have been there
    own = {k: jnp.asarray(np.concatenate([v[seats[:-1]], v[-1:]])) for k, v in stack.items()}
    return Sight(own, jnp.asarray(seats), jax.tree.map(jnp.asarray, stack), weight, jnp.asarray(members), jnp.asarray(heard & ~members),
                 jnp.asarray(rank), cohort, lambda stack: rule.combine(stack, weight, cohort))


def sent(attack, rule=None):
    """[4, d]: what the members send."""
    out = jax.tree.map(lambda s, v: np.broadcast_to(s, (5, *v.shape[1:]))[:4].reshape(4, -1), attack.forge(jax.random.key(1), sight(rule)), STACK)
    return np.concatenate([out["a"], out["b"]], 1)


def mean_with(values):
    return np.concatenate([HONEST, values]).mean(0)


def test_sign_flip():
    np.testing.assert_allclose(sent(simple.sign_flip(scale=3.0)), -3 * FLAT[BAD], rtol=1e-6)


def test_gaussian_is_normal_with_its_scale_and_everyones_own():
    many = {"a": np.zeros((N, 20_000), np.float32)}
    noise = np.asarray(simple.gaussian(std=2.5).forge(jax.random.key(3), sight(stack=many))["a"])
    assert stats.kstest(noise[:4].ravel() / 2.5, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise[:4]) - np.eye(4)).max() < 0.05
    order = RNG.permutation(N)  # a member's noise is its own, wherever it sits
    moved = simple.gaussian(std=2.5).forge(jax.random.key(3), sight(stack=many, ids=order))["a"]
    np.testing.assert_array_equal(moved[:4], noise[np.searchsorted(BAD, order[np.isin(order, BAD)])])
    np.testing.assert_allclose(sent(simple.gaussian(std=0.0, onto="own")), FLAT[BAD], rtol=1e-6)
    assert not sent(simple.gaussian(std=0.0)).any()


def test_free_riders_send_nothing_or_noise_and_do_not_train():
    nothing, uniform = simple.free_rider(), sent(simple.free_rider(sends="uniform", scale=0.5))
    assert nothing.idle and not sent(nothing).any()
    assert np.abs(uniform).max() <= 0.5 and 0.1 < np.abs(uniform).mean() < 0.4 and len(np.unique(uniform)) == uniform.size
    above = sent(simple.free_rider(sends="uniform", scale=0.5, low=0.5))
    assert (above >= 0.25).all() and above.max() <= 0.5 and 0.3 < above.mean() < 0.45


def test_alie_is_within_the_spread_by_the_papers_quantile():
    n, f = HEARD.sum(), 4
    needed = n // 2 + 1 - f
    z = stats.norm.ppf((n - f - needed) / (n - f))
    np.testing.assert_allclose(sent(colluding.alie()), np.tile(HONEST.mean(0) - z * HONEST.std(0), (4, 1)), rtol=1e-4)
    np.testing.assert_allclose(sent(colluding.alie(z=1.5)), np.tile(HONEST.mean(0) - 1.5 * HONEST.std(0), (4, 1)), rtol=1e-4)
    assert float(colluding.quantile(50, 12)) == pytest.approx(0.3360, abs=1e-4)
    assert float(colluding.quantile(10, 6)) == pytest.approx(stats.norm.ppf(1 - 1e-6), rel=1e-2)  # a majority of attackers needs nobody


@pytest.mark.parametrize("scale", [0.1, 2.0, 10.0])
def test_ipm_turns_the_mean_around_exactly_beyond_the_ratio_of_honest_to_attackers(scale):
    values = sent(colluding.ipm(scale=scale))
    np.testing.assert_allclose(mean_with(values), (15 - scale * 4) / 19 * HONEST.mean(0), rtol=1e-5, atol=1e-6)
    assert (mean_with(values) @ HONEST.mean(0) < 0) == (scale > 15 / 4)


@pytest.mark.parametrize("direction", [pytest.param("std", marks=pytest.mark.full), "mean", "sign"])
def test_min_max_by_distances_is_as_far_as_the_farthest_honest_pair(direction):
    values = sent(colluding.min_max(against="distances", direction=direction))[0]
    limit = max(np.linalg.norm(a - b) for a in HONEST for b in HONEST)
    assert np.linalg.norm(values - HONEST, axis=1).max() == pytest.approx(limit, rel=1e-4)
    way = {"std": HONEST.std(0), "mean": HONEST.mean(0), "sign": np.sign(HONEST.mean(0))}[direction]
    off = HONEST.mean(0) - values
    np.testing.assert_allclose(off / np.linalg.norm(off), way / np.linalg.norm(way), rtol=1e-3)


def test_min_max_against_a_rule_does_the_most_harm_of_all_it_tries():
    far = np.linalg.norm(sent(colluding.min_max(most=50.0))[0] - HONEST.mean(0)) / np.linalg.norm(HONEST.mean(0))
    assert far == pytest.approx(50, rel=1e-3)  # the mean goes wherever it is pulled
    krum = nearest.krum(f=4)
    values = sent(colluding.min_max(most=50.0, tries=12), krum)[0]
    lengths = np.concatenate([[0], np.geomspace(50 / 2**10, 50, 11)])
    way = HONEST.std(0) * np.linalg.norm(HONEST.mean(0)) / np.linalg.norm(HONEST.std(0))

    def harm(g):
        stack = {k: np.where(MEMBERS.reshape(-1, *[1] * (v.ndim - 1)), part.reshape(v.shape[1:]), v) for (k, v), part in
                 zip(STACK.items(), np.split((HONEST.mean(0) - g * way).astype(np.float32), [5]), strict=True)}
        got = krum.combine(stack, HEARD.astype(np.float32), None)
        return np.linalg.norm(np.concatenate([got["a"], got["b"].ravel()]) - HONEST.mean(0))

    best = lengths[np.argmax([harm(g) for g in lengths])]
    np.testing.assert_allclose(values, HONEST.mean(0) - best * way, rtol=1e-3, atol=1e-4)


def test_label_flip_mirrors_all_or_moves_one_class():
    assert simple.label_flip().poison(BATCH, 0, 5)["y"].tolist() == [4, 3, 2, 1, 0, 4]
    one = simple.label_flip(source=1, target=3)
    assert one.poison(BATCH, 0, 5)["y"].tolist() == [0, 3, 2, 3, 4, 0]
    wanted, counted = one.probe(BATCH, 5)
    assert wanted["y"][1] == 3 and counted.tolist() == [False, True, False, False, False, False]
    with pytest.raises(ValueError, match="^--attack=label-flip: needs labels, and classes among them; there are 5, asked for 7"):
        simple.label_flip(source=7).poison(BATCH, 0, 5)


def test_the_trigger_is_on_the_first_of_a_batch_and_its_parts_make_the_whole():
    attack = backdoor.replacement(target=2, poisoned=0.4, size=3, value=9.0)
    x, y = (np.asarray(attack.poison(BATCH, 0, 5)[k]) for k in "xy")
    assert (x[:2, :3, :3] == 9).all() and (x[:2] == 9).sum() == 18 and y.tolist() == [2, 2, 2, 3, 4, 0]
    np.testing.assert_array_equal(x[2:], BATCH["x"][2:])
    parts = np.asarray(backdoor.quarters((1, 8, 8, 1), 3))
    assert parts.sum(0).max() == 1 and np.array_equal(parts.any(0), np.asarray(backdoor.stamp((1, 8, 8, 1), 3)))
    spread = backdoor.replacement(size=3, value=9.0, trigger="distributed")
    shown = [np.asarray(spread.poison(BATCH, jnp.int32(r), 5)["x"][0] == 9) for r in range(5)]
    assert np.array_equal(np.stack(shown[:4]), parts) and np.array_equal(shown[4], parts[0])
    tested, counted = spread.probe(BATCH, 5)
    assert (np.asarray(tested["x"])[:, :3, :3] == 9).all() and (tested["y"] == 0).all()
    assert counted.tolist() == [False, True, True, True, True, False]


def test_one_replacement_among_those_at_rest_is_the_mean():
    still = {k: np.where(MEMBERS.reshape(-1, *[1] * (v.ndim - 1)), v[BAD[0]], 0).astype(np.float32) for k, v in STACK.items()}
    found = sight(stack=still)
    out = backdoor.replacement().forge(jax.random.key(0), found)
    sent = {k: found.stack[k].at[found.seats].set(v, mode="drop") for k, v in out.items()}
    for k, v in found.rule(sent).items():
        np.testing.assert_allclose(v, STACK[k][BAD[0]], rtol=1e-5)


@pytest.mark.parametrize("name", registry.catalog("attack"))
def test_poison_is_no_arithmetic_for_the_honest(name):
    """It stands in every client's batch, behind a mask: a few scalars at most."""
    attack = registry.catalog("attack")[name]()
    if attack.poison is not None:
        assert sum(ledger.flops(lambda batch, rank: attack.poison(batch, rank, 5), BATCH, jnp.int32(0))) <= 2


def test_text():
    adversary = text.from_text("sign-flip:0.1,scale=4+label-flip:share=0.3", 7)
    assert [attack.share for attack in adversary.attacks] == [0.1, 0.3] and adversary.key == jax.random.key(7)
    assert text.from_text(None, 0) is None
    with pytest.raises(ValueError, match="^--attack=sing-flip: unknown attack 'sing-flip'.*did you mean 'sign-flip'"):
        text.from_text("sing-flip", 0)
    with pytest.raises(ValueError, match="^--attack=alie:1.2: option 'share' of 'alie': '1.2' is not valid; expected float >= 0 and <= 1"):
        text.from_text("alie:1.2", 0)


def test_a_share_above_what_the_rule_tolerates_is_a_line():
    method = Method(lambda *_: None, aggregate={"model": nearest.krum(f=2)})
    assert text.beyond(text.from_text("alie:0.2", 0), method, 10) == ""
    assert text.beyond(text.from_text("alie:0.2+ipm:0.1", 0), method, 10) == (
        "3 attackers are expected in a cohort of 10; the aggregator is made for 2 at most")
    assert text.beyond(text.from_text("alie:0.2", 0), method._replace(aggregate={}), 10) == "" == text.beyond(None, method, 10)
    assert isinstance(method.exchanges[0], Phase)
