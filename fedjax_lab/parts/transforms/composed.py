"""Method -> Method: wires, an aggregation rule and a server optimizer, as flags name them.

    composed(method, wire_up="topk:0.01+qsgd:15", aggregator="median", server="adam:lr=0.01")
"""
from __future__ import annotations

from collections.abc import Sequence

from fedjax_lab import registry, rules, spec
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.parts.wires import codes
from fedjax_lab.types import Method, Phase, Stacked, Streaming, Wire

FIELD = "model"  # what wires and rules of flags act on


def composed(method: Method, *, wire_up: str | None = None, wire_down: str | None = None, aggregator: str | None = None,
             server: str | None = None, privacy: str | None = None, cohort: int = 1) -> Method:
    """The method with other parts in place of its own.

    Args:
      wire_up, wire_down: what the change goes through on its way to the server, and the model on its way to the clients:
        NAME[:VALUE][,arg=value...], joined by '+'.
      aggregator: the rule that makes one change of the cohort's; rules before it, joined by '+', change the uploads that it sees.
      server: the optimizer that takes the step.
      privacy: what hides clients from who sees the model, or from the server; joined by '+' it acts on an upload from left to right.
      cohort: expected clients in a round.

    Raises:
      ValueError: an unknown part or option, or a part that the method refuses; the line names both.
    """
    asked = {"wire_up": wire_up, "wire_down": wire_down, "aggregator": aggregator, "server": server}
    for kind, text in asked.items():
        if text is not None and kind in method.info.refuses:
            raise ValueError(f"--{kind}={text}: '{method.info.name}' refuses it: {method.info.refuses[kind]}")
    for way, text in (("up", wire_up), ("down", wire_down)):
        if text is not None:
            method = _wired(method, way, _wire(f"wire_{way}", text), text)
    if aggregator is not None:
        method = _aggregated(method, aggregator)
    if server is not None:
        method = served(method, _named("server", "server", server))
    return method if privacy is None else _private(method, privacy, cohort)


def _private(method: Method, text: str, cohort: int) -> Method:
    try:
        for item in spec.chain(text):
            method = spec.build("privacy", item, registry.catalog("privacy"), method, cohort)
    except ValueError as error:
        raise ValueError(f"--privacy={text}: {error}") from None
    return method


def _named(flag: str, kind: str, text: str):
    """The part of this kind that a flag names."""
    try:
        return spec.build(kind, text, registry.catalog(kind))
    except ValueError as error:
        raise ValueError(f"--{flag}={text}: {error}") from None


def _wire(flag: str, text: str) -> Wire:
    return codes.chain(*(_named(flag, "wire", item) for item in spec.chain(text)))


def _wired(method: Method, way: str, wire: Wire, text: str) -> Method:
    def one(phase: Phase) -> Phase:
        wires = getattr(phase, way)
        if FIELD in wires:
            raise ValueError(f"--wire_{way}={text}: '{method.info.name}' has its own wire there")
        return phase._replace(**{way: {**wires, FIELD: wire}})

    return method.rephased([one(phase) for phase in method.exchanges])


def rule_of(text: str) -> Streaming | Stacked:
    """The aggregation rule that a text names, with what mixes the uploads before it.

    Raises:
      ValueError: an unknown rule or option, or one before the last that only aggregates.
    """
    items = spec.chain(text)
    if not items:
        raise ValueError(f"--aggregator={text}: expected NAME[:VALUE][,arg=value...]")
    *before, last = (_named("aggregator", "aggregator", item) for item in items)
    for item, rule in zip(items, before, strict=False):
        if not isinstance(rule, Stacked) or rule.mix is None:
            raise ValueError(f"--aggregator={text}: '{spec.parse(item)[0]}' aggregates, so nothing comes after it; nnm and norm-clip may stand before another rule")
    return chained(before, last) if before else last


def chained(before: Sequence[Stacked], last: Streaming | Stacked) -> Stacked:
    """The rule `last`, of uploads that those before it have mixed, from left to right."""
    claims = [rule.tolerates for rule in (*before, last) if isinstance(rule, Stacked) and rule.tolerates]

    def combine(stack, weight, cohort):
        for rule in before:
            stack, weight = rule.mix(stack, weight, cohort)
        return rules.stacked(last).combine(stack, weight, cohort)

    return Stacked(combine, tolerates=(lambda n: min(claim(n) for claim in claims)) if claims else None)


def _aggregated(method: Method, text: str) -> Method:
    return with_rule(method, rule_of(text), text)


def with_rule(method: Method, rule: Streaming | Stacked, text: str) -> Method:
    """The method with this rule for the model, which a text named.

    Raises:
      ValueError: it has one of its own.
    """

    def one(phase: Phase) -> Phase:
        if FIELD in phase.aggregate:
            raise ValueError(f"--aggregator={text}: '{method.info.name}' has its own rule for the model")
        return phase._replace(aggregate={**phase.aggregate, FIELD: rule})

    return method.rephased([one(phase) for phase in method.exchanges])


__all__ = ["chained", "composed", "rule_of", "with_rule"]
