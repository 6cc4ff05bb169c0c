"""Who talks to whom, from one flag: `--graph=random-regular:4`."""
from __future__ import annotations

from fedjax_lab import registry, spec
from fedjax_lab.types import Topology


def from_text(text: str, nodes: int, seed: int) -> Topology:
    """The graph that a text names.

    Args:
      text: NAME[:VALUE][,arg=value...].
      nodes: N.
      seed: of what is drawn once.

    Raises:
      ValueError: an unknown name or option, a value that is not valid, or a graph that falls apart, in one line.
    """
    known = registry.catalog("graph")
    try:
        name, _, _ = spec.parse(text)
        return spec.build("graph", text.replace(name, name.replace("_", "-"), 1), known, nodes, seed)
    except ValueError as error:
        raise ValueError(f"--graph={text}: {error}") from None
