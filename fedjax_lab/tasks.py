"""Tasks by name: SOURCE_MODEL is a source of examples and a model for them, SOURCE_MODEL+MODEL models that clients have in turn."""
from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_lab import spec
from fedjax_lab.types import Task


def load(text: str, data_dir: str | None = None, cache_dir: str | None = None) -> tuple[Any, Callable[[Mapping], Task]]:
    """The source that a text names, SOURCE_MODEL[:arg=value,...][+MODEL[:arg=value,...]], and what makes the task from examples of the population.

    Raises:
      ValueError: no such source or model, or an option that neither has.
    """
    from fedjax_lab.data import sources

    name, _, options = split(text)
    mine = of_model(name, options)
    source = sources.load(spelled(name, {k: v for k, v in options.items() if k not in mine}), data_dir, cache_dir)
    return source, lambda examples: made(text, {k: v[:1] for k, v in examples.items()}, source.classes, source.manifest)


def made(text: str, example: Mapping[str, np.ndarray], classes: int, facts: Mapping[str, Any]) -> Task:
    """The task that a text names; arguments as of `build`.

    Raises:
      ValueError: no such model or option, or models that do not go together.
    """
    first, *others = text.split("+")
    name, model, options = split(text)
    named = [(first, model, of_model(name, options)), *((other, *_further(text, other)) for other in others)]
    tasks = [build(part, kind, example, classes, mine, facts) for part, kind, mine in named]
    if not others:
        return tasks[0]
    from fedjax_lab.models.several import several

    shapes = [jax.eval_shape(task.init, jax.random.key(0)) for task in tasks]
    batch = {**example, "mask": np.ones(1, bool)}
    outputs = [str(jax.eval_shape(task.apply, params, batch)) for task, params in zip(tasks, shapes, strict=True)]
    for part, params, output in zip(named, shapes, outputs, strict=True):
        if "stats" in params or output != outputs[0]:
            why = "has normalization statistics" if "stats" in params else f"has other outputs than '{first}'"
            raise ValueError(f"task '{text}': '{part[0]}' {why}; models that clients have in turn need outputs of one shape, and no statistics")
    return several(text, tasks)


def _further(text: str, part: str) -> tuple[str, dict[str, str]]:
    """A further model of a task's text, and its options."""
    from fedjax_lab import models

    name, positional, options = spec.parse(part)
    if positional:
        raise ValueError(f"task '{text}': '{part}' is not MODEL[:arg=value,...]")
    spec.choose("model", name, models.MODELS)
    return name, options


def of_model(source: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options that are not the source's."""
    from fedjax_lab.data import sources

    factory = sources.SOURCES.get(source)
    return {k: v for k, v in options.items() if factory is None or k not in inspect.signature(factory).parameters}


def build(text: str, model: str, example: Mapping[str, np.ndarray], classes: int, options: Mapping[str, str], facts: Mapping[str, Any]) -> Task:
    """The task of a model for examples like this one.

    Args:
      text: the task's name.
      model: a key of models.MODELS, or "quadratic".
      example: a batch of any size, for the shapes.
      classes: C, or 0.
      options: of the model, as text.
      facts: the source's manifest: "users" and "items" of ratings, "tokens" of texts.
    """
    from fedjax_lab import models
    from fedjax_lab.data import quadratic

    wanted = "a" if model == "quadratic" else "x"
    if wanted not in example:
        raise ValueError(f"task '{text}': model '{model}' needs examples with '{wanted}', and these have {', '.join(sorted(example))}; "
                         "model 'quadratic' goes with the source 'quadratic' alone, which goes with no other")
    if model == "quadratic":
        return spec.build("model", spelled(model, options), {"quadratic": quadratic.quadratic_task}, example["a"].shape[-1])
    known = _known(model, example, facts)
    fields = _options(models.MODELS[model](tuple(example["x"].shape[1:]), classes or 1, **known))
    unknown = set(options) - set(fields)
    if unknown:
        raise ValueError(f"'{text}' has no option '{min(unknown)}'; options of the model: {spec.nearest(min(unknown), fields)}")
    typed = {k: spec.convert(fields[k], v, f"option '{k}' of '{text}'") for k, v in options.items()}
    return models.build(model, {**example, "mask": np.ones(1, bool)}, classes or 1, title=text, **{**known, **typed})


def _known(model: str, example: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, int]:
    """The model's sizes that the source knows."""
    if model == "mf":
        if "users" not in facts:
            raise ValueError("model 'mf' needs ratings; choose the source ml_latest_small")
        return {k: facts[k] for k in ("users", "items")}
    return {"vocabulary": facts["tokens"]} if model == "transformer" and "tokens" in facts and example["y"].ndim == 1 else {}


def _options(module: Any) -> dict[str, Any]:
    """{field: type} of a module's fields that text can express."""
    hints = typing.get_type_hints(type(module), include_extras=True)
    simple = (int, float, bool, str)
    own = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name", "classes")]
    return {k: hints[k] for k in own if hints[k] in simple or typing.get_origin(hints[k]) in (tuple, typing.Literal, typing.Annotated)}


def spelled(name: str, options: Mapping[str, str]) -> str:
    """NAME:arg=value,..."""
    return name + (":" if options else "") + ",".join(f"{k}={v}" for k, v in options.items())


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """SOURCE_MODEL[:arg=value,...] into source, model and options; further models after a '+' are left out.

    Raises:
      ValueError: the text is of another form, or the model is unknown.
    """
    from fedjax_lab import models

    name, positional, options = spec.parse(text.split("+")[0])
    source, _, model = name.rpartition("_")
    if not source or positional:
        raise ValueError(f"task '{text}' is not SOURCE_MODEL[:arg=value,...]; for example digits_mlp, mnist_2nn, synthetic_logreg")
    spec.choose("model", model, {**models.MODELS, "quadratic": None})
    return source, model, options
