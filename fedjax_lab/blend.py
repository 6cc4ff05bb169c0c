"""Runs under different attacks and aggregators as branches of one program: which branch a run takes is a number that it is given.

A branch is taken by a run alone, or by all that go side by side; those that are not taken cost nothing but their compilation.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lab import registry, rules, spec
from fedjax_lab.config import Config
from fedjax_lab.parts.transforms import composed
from fedjax_lab.types import Adversary, Attack, Batch, Method, Stacked


class Blend(NamedTuple):
    """The branches of a group of runs. attacks: texts without their share;  aggregators: texts;  clients, seed: of who attacks."""

    attacks: tuple[str, ...]
    aggregators: tuple[str, ...]
    seed: int


def of(cells: Sequence[Config]) -> Blend:
    """The branches that these runs take."""
    attacks = dict.fromkeys(parted(cell.attack)[0] for cell in cells if cell.attack)
    return Blend(tuple(attacks), tuple(dict.fromkeys(cell.aggregator or "mean" for cell in cells)), cells[0].data_seed)


def parted(text: str) -> tuple[str, float]:
    """An attack without its share, and the share.

    Raises:
      ValueError: several attacks joined by '+', or no share= of its own.
    """
    name, positional, values = spec.parse(text)
    if len(spec.chain(text)) > 1 or positional or "share" not in values:
        raise ValueError(f"--attack={text}: expected one attack with share=, such as sign-flip:share=0.2")
    share = float(values.pop("share"))
    return name + ":" * bool(values) + ",".join(f"{k}={v}" for k, v in values.items()), share


def shared(text: str, share: float) -> str:
    """The attack with a share; the inverse of `parted`."""
    return f"{text}{',' if ':' in text else ':'}share={share:g}"


def values(blend: Blend, cell: Config) -> dict[str, Any]:
    """The numbers of one run."""
    attack, share = parted(cell.attack) if cell.attack else (None, 0.0)
    return {"--attack": jnp.int32(blend.attacks.index(attack) if attack else 0), "--share": jnp.float32(share),
            "--aggregator": jnp.int32(blend.aggregators.index(cell.aggregator or "mean"))}


def fields(blend: Blend, method: Method, chosen: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Method and adversary of a run from its numbers, which may be traced; the method is without an aggregator of a flag."""
    branches = [rules.stacked(composed.rule_of(text)).combine for text in blend.aggregators]
    rule = Stacked(lambda *given: jax.lax.switch(chosen["--aggregator"], _same(branches), *given))
    attacks = [spec.build("attack", text, registry.catalog("attack")) for text in blend.attacks]
    adversary = Adversary((_either(attacks, chosen["--attack"], chosen["--share"]),), jax.random.key(blend.seed)) if attacks else None
    return {"method": composed.with_rule(method, rule, "/".join(blend.aggregators)), "adversary": adversary}


def _same(branches: Sequence[Callable]) -> list[Callable]:
    """The branches with results of the stack's own dtypes."""
    def one(branch):
        return lambda stack, weight, cohort: jax.tree.map(lambda out, v: out.astype(v.dtype), branch(stack, weight, cohort), stack)
    return [one(branch) for branch in branches]


def _either(attacks: Sequence[Attack], at: jax.Array, share: jax.Array) -> Attack:
    """One of several attacks, which a number names."""
    def poison(batch: Batch, rank: jax.Array, classes: int) -> Batch:
        return jax.lax.switch(at, [lambda b, a=a: dict(a.poison(b, rank, classes)) if a.poison else dict(b) for a in attacks], batch)

    def forge(key, sight):
        def one(attack):
            sent = attack.forge(key, sight) if attack.forge else sight.own
            return jax.tree.map(lambda s, v: jnp.broadcast_to(s, v.shape).astype(v.dtype), sent, sight.own)
        return jax.lax.switch(at, [lambda attack=attack: one(attack) for attack in attacks])

    def probe(batch: Batch, classes: int) -> tuple[Batch, jax.Array]:
        nothing = jnp.zeros(batch["mask"].shape, bool)
        tests = [lambda b, a=a: (dict(b), nothing) if a.probe is None else a.probe(b, classes) for a in attacks]
        return jax.lax.switch(at, tests, batch)

    any_of = {"poison": poison, "forge": forge, "probe": probe}
    return Attack(share, idle=jnp.asarray([attack.idle for attack in attacks])[at],
                  **{name: one for name, one in any_of.items() if any(getattr(attack, name) for attack in attacks)})


def plain(cell: Config) -> Config:
    """The run's configuration without attack and aggregator, as its group shares it."""
    return dataclasses.replace(cell, attack=None, aggregator=None)


__all__ = ["Blend", "fields", "of", "parted", "plain", "shared", "values"]
