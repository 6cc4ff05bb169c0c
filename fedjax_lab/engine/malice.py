"""Attacks on a run: which clients are malicious, what their examples become, and what arrives of them instead of their uploads.

A client's rank is its place in a permutation of the population; the first ranks are the first group, the next the second. Poison is a
mask inside the batch, and forging acts once a round on a stack of the members' uploads alone, as many as there can be in a cohort: an
honest client's training costs no operation more.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.types import Adversary, Attack, Batch, Cohort, Key, Sight, Tree

FIELD = "model"  # what members forge


def counts(adversary: Adversary, clients: int) -> list[int]:
    """How many members each group has, to the nearest client.

    Raises:
      ValueError: together they are more than there are clients.
    """
    found = [round(attack.share * clients) for attack in adversary.attacks]
    if sum(found) > clients:
        raise ValueError(f"attack: shares {', '.join(f'{attack.share:g}' for attack in adversary.attacks)} are more than all clients")
    return found


def groups(adversary: Adversary, clients: int, ids: jax.Array) -> Iterator[tuple[Attack, jax.Array, jax.Array]]:
    """(attack, whether these ids are in its group, their ranks in it), group by group. A share that is traced is taken as it is."""
    rank, first = keys.shuffle(keys.purpose(adversary.key, "attackers"), ids, clients), 0
    for attack in adversary.attacks:
        count = jnp.round(attack.share * clients).astype(jnp.int32)
        yield attack, (rank >= first) & (rank < first + count), rank - first
        first = first + count


def members(adversary: Adversary | None, clients: int, ids: jax.Array) -> jax.Array:
    """bool of the shape of ids: who is malicious."""
    found = jnp.zeros(ids.shape, bool)
    for _, member, _ in groups(adversary, clients, ids) if adversary else ():
        found |= member
    return found


def poison(adversary: Adversary | None, clients: int, classes: int, client: jax.Array) -> Callable[[Batch], Batch] | None:
    """(batch) -> batch of one client; None where no group changes data."""
    if adversary is None or not any(attack.poison for attack in adversary.attacks):
        return None
    roles = [role for role in groups(adversary, clients, client) if role[0].poison]  # once, not in every batch

    def change(batch: Batch) -> Batch:
        for attack, member, rank in roles:
            batch = tree.select(member, dict(attack.poison(batch, rank, classes)), dict(batch))
        return batch

    return change


def allowance(adversary: Adversary | None, clients: int, ids: jax.Array, granted: jax.Array) -> jax.Array:
    """The most local steps of these clients: none of the idle."""
    for attack, member, _ in groups(adversary, clients, ids) if adversary else ():
        granted = jnp.where(member & attack.idle, 0, granted)
    return granted


def forges(adversary: Adversary | None) -> bool:
    """Whether any group forges."""
    return adversary is not None and any(attack.forge for attack in adversary.attacks)


def forge(adversary: Adversary, key: Key, stack: Tree, weight: Tree, cohort: Cohort, rule: Callable[[Tree], Tree]) -> Tree:
    """The stack [S, ...] with what members send in it; rows of others are as they were."""
    heard, slots = cohort.mask, cohort.mask.shape[0]
    honest = heard & ~members(adversary, cohort.clients, cohort.ids)
    for number, (attack, member, rank) in enumerate(groups(adversary, cohort.clients, cohort.ids)):
        count = most(attack, cohort.clients, slots)
        if attack.forge is None or not count:
            continue
        member = member & heard
        seats = jnp.nonzero(member, size=count, fill_value=slots)[0].astype(jnp.int32)
        own = jax.tree.map(lambda v, at=seats: jnp.take(v, at, axis=0, mode="clip"), stack)
        sight = Sight(own, seats, stack, weight, member, honest, jnp.where(member, rank, -1), cohort, rule)
        sent = attack.forge(keys.purpose(key, f"forge{number}"), sight)
        put = lambda v, s, at=seats: v.at[at].set(jnp.broadcast_to(s, (*at.shape, *v.shape[1:])).astype(v.dtype), mode="drop")
        stack = jax.tree.map(put, stack, sent)
    return stack


def most(attack: Attack, clients: int, slots: int) -> int:
    """How many members of a group can be in so many slots; all of them where its share is traced."""
    return min(slots, round(attack.share * clients)) if isinstance(attack.share, (int, float)) else slots


def probes(adversary: Adversary | None) -> Mapping[str, Callable[[Batch, int], tuple[Batch, jax.Array]]]:
    """{column of the evaluation: probe}."""
    found = [attack.probe for attack in adversary.attacks if attack.probe] if adversary else []
    return {"attack_success" + f"_{at}" * (len(found) > 1): probe for at, probe in enumerate(found)}


__all__ = ["FIELD", "allowance", "counts", "forge", "forges", "groups", "members", "most", "poison", "probes"]
