"""Attacks as --attack names them: sign-flip:0.2,scale=4+label-flip:0.1."""
from __future__ import annotations

import math

import jax

from fedjax_lab import registry, rules, spec
from fedjax_lab.types import Adversary, Method, Stacked


def from_text(text: str | None, seed: int) -> Adversary | None:
    """The attacks that a text names, NAME[:VALUE][,arg=value...] joined by '+'; None without a text.

    Args:
      seed: of the draw of who attacks; clients are members of one group at most.

    Raises:
      ValueError: an unknown attack or option, or a value that is not valid.
    """
    if not text:
        return None
    try:
        attacks = tuple(spec.build("attack", item, registry.catalog("attack")) for item in spec.chain(text))
    except ValueError as error:
        raise ValueError(f"--attack={text}: {error}") from None
    return Adversary(attacks, jax.random.key(seed))


def beyond(adversary: Adversary | None, method: Method, cohort: int) -> str:
    """A line of warning where more attackers are expected among a cohort than the rule of a field "model" is made for; else ""."""
    expected = math.ceil(cohort * sum(attack.share for attack in adversary.attacks) - 1e-6) if adversary else 0
    for phase in method.exchanges:
        rule = phase.aggregate.get("model", rules.mean())
        if isinstance(rule, Stacked) and rule.tolerates and expected > rule.tolerates(cohort):
            return f"{expected} attackers are expected in a cohort of {cohort}; the aggregator is made for {rule.tolerates(cohort)} at most"
    return ""


__all__ = ["beyond", "from_text"]
