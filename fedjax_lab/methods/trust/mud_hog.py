"""MUD-HoG: clients are told apart by short and long histories of their changes, and only who looks malicious again and again is left out.

Gupta, Luo, Ngo, Das, "Long-Short History of Gradients is All You Need: Detecting Malicious and Unreliable Clients in Federated Learning",
ESORICS 2022.

    (1)  s_i = mean of the last 3 changes D_i of a client,  L_i = sum of all
    (2)  sign:     cos(s_i, med s) < 0,  med the coordinate median over who is not confirmed
    (3)  noise:    i in no cluster of DBSCAN(s) and |s_i - c| beyond the largest gap of these distances, c the median of the largest cluster
    (4)  targeted: the smaller cluster of 2-means of L
    (5)  confirmed after 2 (sign, noise) or 4 (targeted) rounds in a row;  of noise pardoned after 2 rounds without, and then unreliable
    (6)  unreliable: more than 2 times, net, below the largest gap of cos(s_i, med s)
    (7)  x <- x + server_lr mean of D_i over who is neither confirmed nor suspected of (3) or (4) now

(3) is of who is not of (2), (4) and (6) of who is of neither.
Keeps: decisions go with the clients, in whatever order they come.
Reduces to: the plain mean of the changes with start beyond the last round.
Departs: the radius of DBSCAN is a multiple of the median distance, where the paper gives one for each data set; 2-means starts from the
farthest pair; with partial participation a history is of the rounds in which a client was heard; and the last 3 changes are the last 3,
where the public code keeps one object three times.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab.local import Work
from fedjax_lab.parts import outliers
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.parts.gram import combined, cosines, distance_to, distances, middle, scaled, shares
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.states import stateful
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range, Share
from fedjax_lab.types import Method, Task, Tree

PAPER = "Long-Short History of Gradients is All You Need: Detecting Malicious and Unreliable Clients in Federated Learning"
SHORT = 3
SIGN, NOISE, TARGETED = 1, 2, 3


class Marks(NamedTuple):
    """A row per client. heard: changes so far;  hits: [., 3] rounds in a row under suspicion;  calm: of the confirmed of noise, without;
    low: (6), net;  kind: 0, or what it is confirmed of;  unreliable: bool."""

    heard: jax.Array
    hits: jax.Array
    calm: jax.Array
    low: jax.Array
    kind: jax.Array
    unreliable: jax.Array


class State(NamedTuple):
    """params: x;  recent: [N, 3, ...], a client's last changes;  total: [N, ...], the sum of all;  marks: [N]."""

    params: Tree
    recent: Tree
    total: Tree
    marks: Marks


def judged(marks: Marks, s: Tree, total: Tree, heard: jax.Array, eps: float, least: int) -> tuple[Marks, jax.Array]:
    """The marks of the cohort [S] after a round, and who is left out of it."""
    free = heard & (marks.kind == 0)
    sign = free & (cosines(s, middle(s, free)) < 0)  # (2)
    looked = heard & ~sign & ((marks.kind == 0) | (marks.kind == NOISE))
    apart = jnp.sqrt(distances(s, looked))
    pairs = looked[:, None] & looked[None] & ~jnp.eye(len(heard), dtype=bool)
    reach = jnp.nan_to_num(eps * jnp.nanmedian(jnp.where(pairs, apart, jnp.nan)), nan=jnp.inf)
    labels = outliers.density(apart, looked, reach, least)
    normal = outliers.largest(labels)
    away = distance_to(s, middle(s, normal))
    noise = looked & (labels < 0) & (away > outliers.gap(away, looked)) & jnp.any(normal)  # (3)
    rest = free & ~sign & ~noise
    targeted = rest & outliers.smaller_half(distances(total, rest), rest)  # (4)
    hits = jnp.where(heard[:, None], (marks.hits + 1) * jnp.stack([sign, noise, targeted], 1), marks.hits)
    calm = jnp.where(heard, (marks.calm + 1) * ((marks.kind == NOISE) & ~noise), marks.calm)
    found = jnp.where(hits[:, 0] >= 2, SIGN, jnp.where(hits[:, 1] >= 2, NOISE, jnp.where(hits[:, 2] >= 4, TARGETED, 0)))
    pardoned = heard & (calm >= 2)
    kind = jnp.where(pardoned, 0, jnp.where(free, found, marks.kind))  # (5)
    along = cosines(s, middle(s, rest))
    low = jnp.where(rest, jnp.where(along < outliers.gap(along, rest), marks.low + 1, jnp.maximum(marks.low - 1, 0)), marks.low)
    unreliable = marks.unreliable | pardoned | (rest & (low > 2))  # (6)
    return Marks(marks.heard, hits, calm, low, kind, unreliable), heard & ((kind > 0) | noise | targeted)


@method(family="trust", paper=PAPER, year=2022, refuses={"aggregator": "whom it leaves out is its rule"})
def mud_hog(task: Task, work: Work, *, start: Annotated[int, Range(0)] = 3, eps: Positive = 1.5, min_samples: Count = 5, keep: Share = 1.0,
            server_lr: Positive = 1.0) -> Method:
    """FedAvg without clients whose histories look like flipped signs, noise or a target of their own for several rounds.

    Args:
      start: the first round in which clients are looked at.
      eps: radius of DBSCAN, in median distances between clients.
      min_samples: neighbors of a core point of DBSCAN, itself among them.
      keep: what an unreliable client counts.
      server_lr: step of the server.
    """

    def serve(key, state, aggregate, cohort):
        uploads, weights = aggregate["model"]
        heard, ids = weights > 0, cohort.ids
        at, marks = jnp.where(heard, ids, cohort.clients), jax.tree.map(lambda x: x[ids], state.marks)
        recent = jax.tree.map(lambda h, d: h.at[at, marks.heard % SHORT].set(d, mode="drop"), state.recent, uploads)
        total = jax.tree.map(lambda h, d: h.at[at].add(d, mode="drop"), state.total, uploads)
        marks = marks._replace(heard=marks.heard + heard)
        s = scaled(1 / jnp.maximum(jnp.minimum(marks.heard, SHORT), 1), jax.tree.map(lambda h: jnp.sum(h[ids], 1), recent))  # (1)
        after, aside = judged(marks, s, jax.tree.map(lambda h: h[ids], total), heard, eps, min_samples)
        begun = cohort.clock >= start
        after = jax.tree.map(lambda new, old: jnp.where(begun, new, old), after, marks)
        count = jnp.where(heard & ~(begun & aside), jnp.where(after.unreliable, keep, 1.0), 0.0)
        params = stepped(server_lr, combined(shares(count), uploads), state.params)  # (7)
        return State(params, recent, total, jax.tree.map(lambda m, new: m.at[at].set(new, mode="drop"), state.marks, after))

    def first(params, census):
        n = census.clients
        none = jnp.zeros(n, jnp.int32)
        marks = Marks(none, jnp.zeros((n, 3), jnp.int32), none, none, none, jnp.zeros(n, bool))
        return State(params, *(jax.tree.map(lambda p, lead=lead: jnp.zeros((*lead, *p.shape), p.dtype), params) for lead in ((n, SHORT), (n,))), marks)

    return stateful(local_sgd(task, work), serve, first, steps=work.steps, aggregate={"model": together()})
