"""What the library carries: every method, wire and aggregator under its name, with the card it came from.

A factory's keyword signature is its whole configuration; flags, `--list` and error messages are read from it. `@method` adds the
options that every method with local training has under the same names (`lr`, `epochs`, `local_steps`, `batch_size`,
`client_optimizer`, `lr_decay`) and hands the factory a `Work` made of them; `@part` only registers.
"""
from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import optax

from fedjax_lab import spec
from fedjax_lab.local import Work
from fedjax_lab.types import Info, Method

KINDS = ("method", "wire", "aggregator", "attack", "privacy", "model", "audit", "analytics")
"""The kinds of systems; a factory of another kind ("server") is a piece of one and is not listed as a system."""

_FACTORIES: dict[str, Callable] = {}


def training(
    *,
    lr: Annotated[float, spec.Range(0)] = 0.1,
    epochs: spec.Count = 1,
    local_steps: Annotated[int, spec.Range(0)] = 0,
    batch_size: Literal["full"] | spec.Count = 10,
    client_optimizer: str = "sgd",
    lr_decay: Annotated[float, spec.Range(0, 1, "low")] = 1.0,
) -> Work:
    """Local training, as every method has it.

    Args:
      lr: client learning rate.
      epochs: passes over a client's data in a round, reshuffled each time; used when local_steps is 0.
      local_steps: the same number of steps for every client, whatever its size; 0 means epochs.
      batch_size: examples in a step, or "full" for all of a client's.
      client_optimizer: sgd, momentum:0.9, adam, adamw, adagrad, rmsprop or yogi, with options as NAME:arg=value; its state is fresh
        in every round.
      lr_decay: what lr is multiplied by after every round.
    """
    optimizer, plain = client_optimizer_of(client_optimizer, lr)
    return Work(lr, epochs, local_steps, batch_size, optimizer, plain, client_optimizer, lr_decay)


def _sgd(lr, *, momentum: spec.Share = 0.0, nesterov: bool = False, weight_decay: spec.NonNegative = 0.0):
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.sgd(lr, momentum or None, nesterov))


def _momentum(lr, *, momentum: spec.Share = 0.9, nesterov: bool = False, weight_decay: spec.NonNegative = 0.0):
    return _sgd(lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def _adam(make):
    def build(lr, *, b1: spec.Share = 0.9, b2: spec.Share = 0.999, eps: spec.Positive = 1e-8):
        return make(lr, b1=b1, b2=b2, eps=eps)
    return build


def _adamw(lr, *, b1: spec.Share = 0.9, b2: spec.Share = 0.999, eps: spec.Positive = 1e-8, weight_decay: spec.NonNegative = 1e-4):
    return optax.adamw(lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def _adagrad(lr, *, eps: spec.Positive = 1e-7):
    return optax.adagrad(lr, eps=eps)


def _rmsprop(lr, *, decay: spec.Share = 0.9, eps: spec.Positive = 1e-8, momentum: spec.Share = 0.0):
    return optax.rmsprop(lr, decay=decay, eps=eps, momentum=momentum or None)


CLIENT_OPTIMIZERS: Mapping[str, Callable] = {
    "sgd": _sgd, "momentum": _momentum, "adam": _adam(optax.adam), "yogi": _adam(optax.yogi),
    "adamw": _adamw, "adagrad": _adagrad, "rmsprop": _rmsprop,
}


def client_optimizer_of(text: str, lr: Any) -> tuple[optax.GradientTransformation, bool]:
    """The optax transformation that a text names, and whether it is plain SGD."""
    name, positional, values = spec.parse(text)
    factory = spec.choose("client_optimizer", name, CLIENT_OPTIMIZERS)
    options = spec.bind(factory, positional, values, name=name)
    return factory(lr, **options), name == "sgd" and not any(options.values())


def method(*, family: str, paper: str, year: int, stateful: bool = False, plain_sgd: str = "", everyone: str = "",
           refuses: Mapping[str, str] = {}, schedule: str = "sync", several: bool = False, **defaults: Any) -> Callable:
    """Registers `factory(task, work, *, ...) -> Method` under its name (underscores become dashes).

    The registered function is called as `factory(task, *, ..., lr=..., epochs=..., ...)`.

    Args:
      family, paper, year, stateful: for the card.
      plain_sgd: why client_optimizer must be plain SGD, where the mathematics needs it; "" where any will do.
      everyone: why all clients must take part in every round, where the mathematics needs it; "" where some will do.
      refuses: {part: why} of the parts that a flag may not put into it; see Info.
      schedule: what it was published for, and runs under where --schedule says nothing.
      several: whether clients may have models of different architectures (Task.own).
      defaults: of the training options, where they differ.

    Raises:
      ValueError: the name is registered already; later, from the factory, an option is unknown.

    >>> @method(family="mine", paper="none", year=2026, epochs=2)
    ... def damped(task, work, *, factor: float = 0.5):
    ...     '''FedAvg whose clients send a part of their change.
    ...
    ...     Args:
    ...       factor: how much.
    ...     '''
    ...     def local(key, message, client, data):
    ...         x = message["model"]
    ...         y = descend(batches(key, data, work), x, gradient(task), work.optimizer)
    ...         return Result({"model": tree.scale(factor, tree.sub(y.params, x))}, data.size, metrics={"loss": y.loss})
    ...     return Method(local, steps=work.steps)
    >>> made = damped(task, factor=0.25, lr=0.05)  # or fedjax_lab.train(method="damped", options={"factor": 0.25, "lr": 0.05})
    >>> made.info.name, made.info.summary, int(made.steps(jnp.int32(30)))
    ('damped', 'FedAvg whose clients send a part of their change.', 6)
    """
    absent = {"participation": f"all clients must take part in every round, {everyone}"} if everyone else {}

    def register(factory: Callable) -> Callable[..., Method]:
        name = factory.__name__.replace("_", "-")
        info = _info(factory, name, "method", family, paper, year, stateful)._replace(refuses={**refuses, **absent}, schedule=schedule, several=several)
        shared = inspect.signature(training, eval_str=True).parameters
        shared = {k: p.replace(default=defaults.get(k, p.default)) for k, p in shared.items()}
        own = [p for k, p in inspect.signature(factory, eval_str=True).parameters.items() if k not in ("task", "work")]

        @functools.wraps(factory)
        def build(task, **options) -> Method:
            if task.own is not None and not several:
                able = ", ".join(sorted(n for n, other in catalog("method").items() if other.info.several))
                raise ValueError(f"'{name}' is for clients with one model, and task '{task.name}' gives them several; choose one of {able}")
            unknown = set(options) - set(shared) - {p.name for p in own}
            if unknown:
                valid = spec.nearest(min(unknown), [*(p.name for p in own), *shared])
                raise ValueError(f"'{name}' has no option '{min(unknown)}'; valid: {valid}")
            work = training(**{k: options.pop(k, p.default) for k, p in shared.items()})
            if plain_sgd and not work.plain:
                raise ValueError(f"'{name}' refuses client_optimizer '{work.named}': it must be sgd without momentum or decay, {plain_sgd}")
            return _decayed(lambda work: factory(task, work, **options), work)._replace(info=info)

        del build.__wrapped__
        parameters = [inspect.Parameter("task", inspect.Parameter.POSITIONAL_OR_KEYWORD), *own, *shared.values()]
        build.__signature__ = inspect.Signature(parameters)
        build.__annotations__ = {p.name: p.annotation for p in parameters[1:]}
        build.__doc__ = _join_args(factory.__doc__, training.__doc__)
        build.info, build.factory = info, factory
        return _add(name, build)

    return register


def _decayed(make: Callable[[Work], Method], work: Work) -> Method:
    """make(work), its phases made anew in every round for that round's lr where it decays: what divides by lr divides by the right one."""
    method = make(work)
    if not work.decays:
        return method

    def renewed(number, phase):
        def local(key, message, client, data):
            return make(work.at(data.clock)).exchanges[number].local(key, message, client, data)

        def serve(key, server, aggregate, cohort):
            return make(work.at(cohort.clock)).exchanges[number].serve(key, server, aggregate, cohort)

        return phase._replace(local=local, serve=serve)

    return method.rephased([renewed(number, phase) for number, phase in enumerate(method.exchanges)])


def part(*, kind: str, family: str, paper: str, year: int, stateful: bool = False) -> Callable:
    """Registers a wire, aggregator, server or other part under its name.

    Args:
      kind: "wire" (the factory gives a Wire), "aggregator" (Streaming or Stacked), "server" (an optax transformation), "participation",
        "schedule" (the rollout of a virtual clock, see fedjax_lab.events).
      family, paper, year, stateful: for the card.

    Raises:
      ValueError: the name is registered already.

    >>> @part(kind="wire", family="mine", paper="none", year=2026)
    ... def rounded(*, step: float = 0.1):
    ...     '''Every entry as a whole number of steps, 16 bits each.
    ...
    ...     Args:
    ...       step: between two values.
    ...     '''
    ...     def encode(key, value, row):
    ...         return jax.tree.map(lambda x: jnp.round(x / step).astype(jnp.int16), value), row
    ...     def decode(code):
    ...         return jax.tree.map(lambda x: x * step, code)
    ...     return Wire(lambda field: (), encode, decode, lambda code: 16 * tree.size(code))
    >>> code, _ = rounded(step=0.5).encode(jax.random.key(0), jnp.array([0.4, 1.1]), ())  # or train(wire_up="rounded:0.5")
    >>> code.tolist(), rounded(step=0.5).bits(code)
    ([1, 2], 32)
    """

    def register(factory: Callable) -> Callable:
        name = factory.__name__.strip("_").replace("_", "-")
        factory.info = _info(factory, name, kind, family, paper, year, stateful)
        return _add(name, factory)

    return register


def _info(factory, name, kind, family, paper, year, stateful) -> Info:
    return Info(name, kind, family, paper, year, inspect.getdoc(factory).split("\n")[0], stateful)


def _add(name: str, factory: Callable) -> Callable:
    if name in _FACTORIES:
        raise ValueError(f"'{name}' is registered twice")
    _FACTORIES[name] = factory
    return factory


def _join_args(own: str | None, shared: str) -> str:
    """A docstring whose Args section holds the factory's own options and the shared ones."""
    body, extra = inspect.cleandoc(own or ""), inspect.cleandoc(shared).split("Args:\n", 1)[1]
    return f"{body}\n{extra}" if "Args:" in body else f"{body}\n\nArgs:\n{extra}"


def catalog(kind: str | None = None) -> dict[str, Callable]:
    """Every registered factory by name, sorted; of one kind only, where given. Imports all of methods/ and parts/.

    >>> catalog("method")["scaffold"].info.year, "scaffold" in catalog("wire")
    (2020, False)
    """
    _import_all()
    return {name: f for name, f in sorted(_FACTORIES.items()) if kind in (None, f.info.kind)}


@functools.cache
def _import_all() -> None:
    import fedjax_lab.methods
    import fedjax_lab.parts

    for package in (fedjax_lab.methods, fedjax_lab.parts):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def systems() -> dict[str, Callable]:
    """What is a published system of its own, by name."""
    return {name: f for name, f in catalog().items() if f.info.kind in KINDS}


def make(name: str, task: Any, **options: Any) -> Method:
    """The named method for a task, with its options typed and checked.

    Args:
      name: of the method, as --list prints it.
      task: what is trained.
      options: of the method, as text or as Python values.

    Raises:
      ValueError: an unknown name, or an unknown, ill-typed or out-of-range option; the line lists what is valid.

    >>> make("fedprox", task, mu=0.1).info.year
    2020
    >>> make("fedprox", task, mi=0.1)
    Traceback (most recent call last):
    ValueError: 'fedprox' has no option 'mi'; valid: mu, weighting, lr, ...; did you mean 'mu'?
    """
    factory = spec.choose("method", name, catalog("method"))
    return factory(task, **spec.bind(factory, (), options, name=name))


__all__ = ["CLIENT_OPTIMIZERS", "KINDS", "catalog", "client_optimizer_of", "make", "method", "part", "systems", "training"]
