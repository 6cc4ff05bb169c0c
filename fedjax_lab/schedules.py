"""What --schedule names: in which order clients and server act, and so what lowers a method to a program."""
from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from fedjax_lab import events, registry, spec
from fedjax_lab.config import Config
from fedjax_lab.types import Method, Participation, Population

if TYPE_CHECKING:
    from fedjax_lab.engine.sync import Schedule

SYNC, GOSSIP, VERTICAL = "sync", "gossip", "vertical"
OWN = {SYNC: "rounds, one after the other", GOSSIP: "rounds without a server",
       VERTICAL: "rounds of parties with different features of the same examples"}
RING = "ring"  # the graph of a gossip where none is named


def lowering(config: Config, method: Method, population: Population) -> tuple[Schedule | None, Participation]:
    """What a round is, as engine.sync.build takes it, and who takes part.

    Raises:
      ValueError: an unknown schedule or scheme of participation, an option or a combination that is not valid, in one line.
    """
    from fedjax_lab.parts.cohorts.text import from_text

    name, parties = chosen(config, method), "parties" in population.manifest
    if parties != (VERTICAL in _own(method.info.schedule)):
        made, other = (f"parties with parts of the features; choose a method for --schedule={VERTICAL}", "clients") if parties else (
            f"clients with examples of their own; choose --partition={VERTICAL}:2, for example", "parties")
        raise ValueError(f"--schedule={name}: '{method.info.name}' is for {other}, and {population.manifest.get('partition', 'this population')} makes {made}")
    if name == GOSSIP:
        return gossiping(config, method, population)
    if config.graph:
        raise ValueError(f"--graph={config.graph}: who talks to whom is for --schedule={GOSSIP}; this is {name}")
    cohort = population.clients if parties and config.cohort == Config.cohort else config.cohort  # all parties where nothing is said
    if cohort > population.clients:
        raise ValueError(f"--cohort={config.cohort}: more than the {population.clients} clients there are; choose 1..{population.clients}")
    whole = config.participation == Config.participation and cohort == population.clients
    if "participation" in method.info.refuses and not whole:
        raise ValueError(f"--cohort={config.cohort} --participation={config.participation}: '{method.info.name}' refuses it: "
                         f"{method.info.refuses['participation']}; choose --cohort={population.clients} and uniform")
    if name in registry.catalog("schedule"):
        return None, timed(config, method, population)
    return None, from_text(config.participation, population.clients, cohort)


def timed(config: Config, method: Method, population: Population) -> Participation:
    """A schedule on the virtual clock, rolled out; see fedjax_lab.events.

    Raises:
      ValueError: an option is not valid, or the method or another flag does not go with it.
    """
    from fedjax_lab.parts.schedules.replay import replay

    text = config.schedule or _own(method.info.schedule)[0]
    if config.participation != Config.participation:
        raise ValueError(f"--participation={config.participation}: --schedule={text} says who takes part; leave it out")
    if "participation" in method.info.refuses:
        raise ValueError(f"--schedule={text}: '{method.info.name}' refuses it: {method.info.refuses['participation']}; choose --schedule={SYNC}")
    steps = np.asarray(method.steps(jax.numpy.asarray(population.train.size)))
    fleet = events.Fleet(jax.random.key(config.seed), population.clients, config.cohort, config.rounds, steps, method.downloads)
    try:
        with _uncollected():
            return replay(spec.build("schedule", text, registry.catalog("schedule"), fleet))
    except ValueError as error:
        raise ValueError(f"--schedule={text}: {error}") from None


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: the many tuples of a rollout die together, and a collection would look through everything that JAX holds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def mixing(*, steps: spec.Count = 1, order: Literal["after", "beside"] = "after") -> dict[str, Any]:
    """The options of gossip.

    Args:
      steps: gossip steps in a round, with the same weights and no training between.
      order: nodes mix after their training, or beside it: then the models that it starts from are mixed, and each node adds its own change.
    """
    return {"steps": steps, "order": order}


def gossiping(config: Config, method: Method, population: Population) -> tuple[Schedule, Participation]:
    """Gossip among all clients; who is not active in a round keeps its model.

    Raises:
      ValueError: an option is not valid, or the method or another flag does not go with it.
    """
    from fedjax_lab.engine import gossip
    from fedjax_lab.parts.cohorts.text import from_text
    from fedjax_lab.parts.mixing import text as graphs

    nodes, everybody = population.clients, config.participation == Config.participation
    if config.cohort not in (Config.cohort, nodes):
        raise ValueError(f"--cohort={config.cohort}: in gossip all {nodes} nodes are active; leave it out, --participation=bernoulli:0.5 and the like "
                         "say who is not")
    if "participation" in method.info.refuses and not everybody:
        raise ValueError(f"--participation={config.participation}: '{method.info.name}' refuses it: {method.info.refuses['participation']}; choose uniform")
    own, given = ([t for t in texts if spec.parse(t)[0] == GOSSIP] for texts in (_own(method.info.schedule), [config.schedule or GOSSIP]))
    options: dict[str, Any] = {}
    for text in (*own, *given):
        _, positional, values = spec.parse(text)
        try:
            options |= spec.bind(mixing, positional, values, name=GOSSIP)
        except ValueError as error:
            raise ValueError(f"--schedule={text}: {error}") from None
    topology = graphs.from_text(config.graph or RING, nodes, config.data_seed)
    return gossip.schedule(topology, **mixing(**options)), gossip.seating(from_text(config.participation, nodes, nodes), nodes)


def rolled_out(config: Config) -> bool:
    """Whether what happens when is fixed before the run, from its seed and its rounds."""
    own = registry.catalog("method")[config.method].info.schedule if config.method in registry.catalog("method") else SYNC
    return spec.parse(config.schedule or _own(own)[0])[0] in registry.catalog("schedule")


def vertical(method: str) -> bool:
    """Whether the method of this name is for parties with parts of the features."""
    known = registry.catalog("method")
    return method in known and VERTICAL in _own(known[method].info.schedule)


def _own(published: str) -> list[str]:
    """The schedules that a method was published for, the first by default."""
    return published.split(" or ")


def chosen(config: Config, method: Method) -> str:
    """The name of the schedule that --schedule names, or else of the method's own.

    Raises:
      ValueError: there is none of that name; or it is not the method's own, and --allow_untested does not say that this is meant.
    """
    name = spec.parse(config.schedule or _own(method.info.schedule)[0])[0]
    try:
        spec.choose("schedule", name, {**OWN, **registry.catalog("schedule")})
    except ValueError as error:
        raise ValueError(f"--schedule={config.schedule}: {error}") from None
    why = untested(config, method)
    if why and not config.allow_untested:
        raise ValueError(f"{why}; --allow_untested runs it all the same")
    return name


def untested(config: Config, method: Method) -> str:
    """Why no paper describes the method under this schedule, in words; "" where it was published for it."""
    own = [spec.parse(text)[0] for text in _own(method.info.schedule)]
    if not config.schedule or spec.parse(config.schedule)[0] in own:
        return ""
    return f"--schedule={config.schedule}: '{method.info.name}' was published for --schedule={' or '.join(own)}"


__all__ = ["chosen", "gossiping", "lowering", "mixing", "rolled_out", "timed", "untested", "vertical"]
