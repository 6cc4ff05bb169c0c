"""The virtual clock: how long clients take, and in which order their uploads come.

No registered schedule lets parameters decide when an upload comes: what FedASMU learns is when to ask for the newest model, which changes what
a client is sent and not when it is done. So a schedule is rolled out on the host before the run, and the engine replays it in one scan: a
rollout is a pure function of a Fleet and a delay law, and gives an Update per step of the server. An event queue inside the program, which
an order of arrivals that depends on parameters would need, is not here. Timing has its own stream of randomness, in which the k-th training
of a client takes as long under every schedule.

    law = LAW['+'LAW...] of NAME[:VALUE]     lognormal:0.5+stragglers:0.1/10
"""
from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, spec
from fedjax_lab.spec import NonNegative, Positive, Range
from fedjax_lab.types import Key

UNLIMITED = np.iinfo(np.int32).max
BLOCK = 64  # versions whose orders are drawn in one call

Times = Annotated[tuple[float, ...], Range(0, open="low")]


class Ends(NamedTuple):
    """When a training ends, in units of virtual time from its start.

    steps: (client) -> float64 [K], each of the K steps of a whole training;  last: (client) -> the end of the last of them.
    """

    steps: Callable[[int], np.ndarray]
    last: Callable[[int], float]


Law = Callable[[np.random.Generator, int], Ends]
"""(generator, k) -> Ends of the k-th training of every client, drawn for all of them."""


class Fleet(NamedTuple):
    """What a rollout knows of the run.

    key: the run's root key;  clients: N;  cohort: the flag;  rounds: how many updates the server makes;
    steps: int [N], local steps of a whole training;  watched: whether arrivals are to say when their steps end.
    """

    key: Key
    clients: int
    cohort: int
    rounds: int
    steps: np.ndarray
    watched: bool = False

    def seen(self, now: float, ends: np.ndarray) -> np.ndarray | None:
        """When steps end that end so long after now, where that is asked for."""
        return now + ends if self.watched else None


class Arrival(NamedTuple):
    """An upload that is consumed: of which client, sent the model after how many updates, with how many steps at most; factor as in
    ClientData.  ends: float64 [K], when its steps end, where the fleet is watched."""

    client: int
    base: int
    allowance: int = UNLIMITED
    factor: float = 1.0
    ends: np.ndarray | None = None


class Update(NamedTuple):
    """One update of the server.

    time: when;  arrivals: what it consumes, of distinct clients.
    By the end of that moment, rejected: uploads refused so far;  waiting: uploads that are there and that this update and those before
    have not consumed;  training: clients in flight, before others take their places.
    """

    time: float
    arrivals: tuple[Arrival, ...]
    rejected: int = 0
    waiting: int = 0
    training: int = 0


def orders(fleet: Fleet) -> Callable[[int], Iterator[int]]:
    """(version) -> all clients, in the random order of which a synchronous round draws its uniform cohort from the front."""
    front = fleet.clients if fleet.clients <= 4 * BLOCK else BLOCK  # the rest is rarely asked for

    def ranked(first: int, count: int, start: int, stop: int) -> list[list[int]]:
        return np.asarray(_ranked(fleet.key, first + np.arange(count, dtype=np.int32), start, stop, fleet.clients)).tolist()

    @functools.lru_cache(maxsize=4)
    def block(number: int) -> list[list[int]]:
        return ranked(number * BLOCK, BLOCK, 0, front)

    def of(version: int) -> Iterator[int]:
        yield from block(version // BLOCK)[version % BLOCK]
        if front < fleet.clients:
            yield from ranked(version, 1, front, fleet.clients)[0]

    return of


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _ranked(root: Key, versions: jax.Array, start: int, stop: int, clients: int) -> jax.Array:
    """int32 [V, stop - start], those places of the order of each version."""
    def one(version):
        key = keys.purpose(keys.for_round(root, version), "cohort")
        return keys.shuffle(key, jnp.arange(start, stop, dtype=jnp.int32), clients)

    return jax.vmap(one)(versions)


def trainings(fleet: Fleet, law: str) -> Callable[[int], np.ndarray]:
    """(client) -> the ends of the steps of its next training, see Law.

    Raises:
      ValueError: an unknown law or an option that is not valid, in one line.
    """
    following = _following(fleet, law)
    return lambda client: following(client).steps(client)


def flights(fleet: Fleet, law: str) -> Callable[[int, float], tuple[float, np.ndarray | None]]:
    """(client, now) -> when its next training ends, and, where the fleet is watched, when each of its steps does.

    Raises:
      ValueError: as trainings.
    """
    following = _following(fleet, law)

    def flight(client: int, now: float) -> tuple[float, np.ndarray | None]:
        ends = following(client)
        return now + ends.last(client), now + ends.steps(client) if fleet.watched else None

    return flight


def _following(fleet: Fleet, law: str) -> Callable[[int], Ends]:
    """(client) -> the Ends of that client's next training."""
    found, words, done = _law(fleet, law), _words(fleet), [0] * fleet.clients
    nth: list[Ends] = []

    def following(client: int) -> Ends:
        k = done[client]
        done[client] = k + 1
        if k == len(nth):
            nth.append(found(np.random.default_rng([*words, k + 1]), k))
        return nth[k]

    return following


def _words(fleet: Fleet) -> list[int]:
    """Where the streams of timing start."""
    return np.asarray(jax.random.key_data(keys.purpose(fleet.key, "timing"))).tolist()


def _law(fleet: Fleet, text: str) -> Law:
    first, *changes = spec.chain(text) or ("",)
    law = spec.build("delay law", first, LAWS, fleet)
    for change in changes:
        law = spec.build("change of a delay law", change, CHANGES, fleet, law)
    return law


def _whole(fleet: Fleet, total: Callable[[np.random.Generator, int], np.ndarray]) -> Law:
    """Steps of equal length, the last of which ends at exactly these times: (generator, k) -> [N]."""

    counts, inverse = np.unique(np.maximum(fleet.steps, 1), return_inverse=True)
    shares, of = [np.arange(1, count + 1) / count for count in counts], inverse.tolist()

    def law(rng, k):
        times = total(rng, k).tolist()
        return Ends(lambda client: shares[of[client]] * times[client], times.__getitem__)

    return law


def _repeated(fleet: Fleet, values: Sequence[float]) -> np.ndarray:
    """[N], the values repeated over the clients."""
    return np.resize(np.asarray(values, np.float64), fleet.clients)


def count_of(fleet: Fleet, client: int) -> int:
    """Steps of a whole training; who has nothing to train takes the time of one."""
    return max(1, int(fleet.steps[client]))


def fixed(fleet: Fleet, *, time: Times = (1.0,)) -> Law:
    """A training takes this long.

    Args:
      time: of clients 0, 1, .., repeated as often as needed.
    """
    return _whole(fleet, lambda rng, k: _repeated(fleet, time))


def linear(fleet: Fleet, *, spread: Annotated[float, Range(0, 100, "high")] = 80.0) -> Law:
    """Client i takes 1 - i (spread / 100) / (N - 1), the scenario F-spread of Fraboni et al.

    Args:
      spread: in percent, by how much the fastest is faster than the slowest.
    """
    return _whole(fleet, lambda rng, k: 1 - np.arange(fleet.clients) * (spread / 100) / max(fleet.clients - 1, 1))


def halfnormal(fleet: Fleet, *, scale: Positive = 1.0) -> Law:
    """|N(0, scale^2)|, drawn for every training.

    Args:
      scale: the mean is scale sqrt(2 / pi).
    """
    return _whole(fleet, lambda rng, k: scale * np.abs(rng.standard_normal(fleet.clients)))


def exponential(fleet: Fleet, *, mean: Times = (1.0,)) -> Law:
    """Exponential, drawn for every training.

    Args:
      mean: of clients 0, 1, .., repeated as often as needed.
    """
    return _whole(fleet, lambda rng, k: _repeated(fleet, mean) * rng.standard_exponential(fleet.clients))


def lognormal(fleet: Fleet, *, sigma: NonNegative = 0.5) -> Law:
    """exp(N(0, sigma^2)), drawn for every training; the median is 1.

    Args:
      sigma: deviation of the logarithm.
    """
    return _whole(fleet, lambda rng, k: np.exp(sigma * rng.standard_normal(fleet.clients)))


def geometric(fleet: Fleet, *, p: Annotated[tuple[float, ...], Range(0, 1, open="low")] = (0.5, 0.0625)) -> Law:
    """Every step takes a geometric number of units of time, 1 / p on average.

    Args:
      p: of clients 0, 1, .., repeated as often as needed.
    """
    counts = np.maximum(fleet.steps, 1)

    def law(rng, k):
        ends = np.cumsum(rng.geometric(_repeated(fleet, p)[:, None], (fleet.clients, int(counts.max()))), 1).astype(np.float64)
        lasts = ends[np.arange(fleet.clients), counts - 1].tolist()
        return Ends(lambda client: ends[client, : counts[client]], lasts.__getitem__)

    return law


def steps(fleet: Fleet, *, time: Times = (1.0,)) -> Law:
    """Every step takes this long, so that clients with more data take longer.

    Args:
      time: of clients 0, 1, .., repeated as often as needed.
    """
    return _whole(fleet, lambda rng, k: np.maximum(fleet.steps, 1) * _repeated(fleet, time))


def recorded(fleet: Fleet, *, file: str | np.ndarray) -> Law:
    """Times that were measured, or written down.

    Args:
      file: an .npz with `times` [N, n]: client i takes times[i, 0], times[i, 1], .., then from the start again.
    """
    table = file
    if isinstance(file, str):
        try:
            with np.load(file, allow_pickle=False) as held:
                table = held["times"]
        except (OSError, KeyError, ValueError):
            raise ValueError(f"delay law 'recorded': '{file}' is no .npz with `times`") from None
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or len(table) != fleet.clients or not table.size or not (np.isfinite(table) & (table > 0)).all():
        raise ValueError(f"delay law 'recorded': {list(table.shape)}; expected finite positive times [{fleet.clients}, n]")
    return _whole(fleet, lambda rng, k: table[:, k % table.shape[1]])


def stragglers(fleet: Fleet, law: Law, *, slow: Annotated[tuple[float, ...], Range(0, open="low")] = (0.1, 10.0)) -> Law:
    """A share of the clients, drawn once, takes several times as long.

    Args:
      slow: the share, and how many times.
    """
    if len(slow) != 2 or slow[0] > 1:
        raise ValueError(f"option 'slow' of 'stragglers': '{'/'.join(map(str, slow))}' is not valid; expected SHARE/TIMES, such as 0.1/10")
    times = np.ones(fleet.clients)
    times[np.random.default_rng([*_words(fleet), 0]).permutation(fleet.clients)[: round(slow[0] * fleet.clients)]] = slow[1]
    times = times.tolist()

    def slowed(rng, k):
        ends = law(rng, k)
        return Ends(lambda client: ends.steps(client) * times[client], lambda client: ends.last(client) * times[client])

    return slowed


LAWS: Mapping[str, Callable[..., Law]] = {f.__name__: f for f in (fixed, linear, halfnormal, exponential, lognormal, geometric, steps, recorded)}
CHANGES: Mapping[str, Callable[..., Law]] = {"stragglers": stragglers}


def reweighed(updates: Sequence[Update], factor: Callable[[Arrival], float]) -> list[Update]:
    """The updates with these factors."""
    return [u._replace(arrivals=tuple([Arrival(*a[:3], factor(a), a.ends) for a in u.arrivals])) for u in updates]


def balanced(updates: Sequence[Update]) -> list[Update]:
    """The updates, with one over the share of them that consume the client as factor."""
    times = Counter([a.client for u in updates for a in u.arrivals])
    factors = {client: len(updates) / count for client, count in times.items()}
    return reweighed(updates, lambda arrival: factors[arrival.client])


def consumed(updates: Sequence[Update]) -> Mapping[int, list[Any]]:
    """{client: its arrivals}."""
    found: dict[int, list[Arrival]] = {}
    for arrival in (a for u in updates for a in u.arrivals):
        found.setdefault(arrival.client, []).append(arrival)
    return found


__all__ = ["CHANGES", "LAWS", "Arrival", "Ends", "Fleet", "Law", "Update", "balanced", "consumed", "count_of", "flights", "orders", "reweighed", "trainings"]
