"""Method -> Method: wires, an aggregation rule and a server optimizer, as flags name them.

    composed(method, wire_up="topk:0.01+qsgd:15", aggregator="median", server="adam:lr=0.01")
"""
from __future__ import annotations

from fedjax_lab import registry, spec
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.parts.wires import codes
from fedjax_lab.types import Method, Phase, Wire

FIELD = "model"  # what wires and rules of flags act on


def composed(method: Method, *, wire_up: str | None = None, wire_down: str | None = None, aggregator: str | None = None,
             server: str | None = None) -> Method:
    """The method with other parts in place of its own.

    Args:
      wire_up, wire_down: what the change goes through on its way to the server, and the model on its way to the clients:
        NAME[:VALUE][,arg=value...], joined by '+'.
      aggregator: the rule that makes one change of the cohort's.
      server: the optimizer that takes the step.

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


def _aggregated(method: Method, text: str) -> Method:
    rule = _named("aggregator", "aggregator", text)

    def one(phase: Phase) -> Phase:
        if FIELD in phase.aggregate:
            raise ValueError(f"--aggregator={text}: '{method.info.name}' has its own rule for the model")
        return phase._replace(aggregate={**phase.aggregate, FIELD: rule})

    return method.rephased([one(phase) for phase in method.exchanges])


__all__ = ["composed"]
