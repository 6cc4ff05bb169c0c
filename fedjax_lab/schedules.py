"""What --schedule names: in which order clients and server act, and so what lowers a method to a program."""
from __future__ import annotations

from collections.abc import Callable

from fedjax_lab import spec
from fedjax_lab.config import Config
from fedjax_lab.types import Method, Participation, Population, Simulation

SYNC = "sync"
OWN = {SYNC: "rounds, one after the other"}


def lowering(config: Config, method: Method, population: Population) -> tuple[Callable[..., Simulation], Participation]:
    """What builds the simulation, and who takes part.

    Raises:
      ValueError: an unknown schedule or scheme of participation, an option or a combination that is not valid, in one line.
    """
    from fedjax_lab.engine import sync
    from fedjax_lab.parts.cohorts.text import from_text

    name = chosen(config, method)
    if config.cohort > population.clients:
        raise ValueError(f"--cohort={config.cohort}: more than the {population.clients} clients there are; choose 1..{population.clients}")
    whole = config.participation == Config.participation and config.cohort == population.clients
    if "participation" in method.info.refuses and not whole:
        raise ValueError(f"--cohort={config.cohort} --participation={config.participation}: '{method.info.name}' refuses it: "
                         f"{method.info.refuses['participation']}; choose --cohort={population.clients} and uniform")
    spec.choose("schedule", name, OWN)
    return sync.build, from_text(config.participation, population.clients, config.cohort)


def chosen(config: Config, method: Method) -> str:
    """The name of the schedule that --schedule names, or else of the method's own.

    Raises:
      ValueError: it is not the method's own, and --allow_untested does not say that this is meant.
    """
    own = spec.parse(method.info.schedule)[0]
    name = spec.parse(config.schedule)[0] if config.schedule else own
    if name != own and not config.allow_untested:
        raise ValueError(f"--schedule={config.schedule}: '{method.info.name}' was published for --schedule={own}; "
                         "--allow_untested runs it all the same")
    return name


__all__ = ["chosen", "lowering"]
