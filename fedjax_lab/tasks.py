"""Tasks by name: SOURCE_MODEL is a source of examples and a model for them."""
from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lab import spec
from fedjax_lab.types import Task


def load(text: str, data_dir: str | None = None, cache_dir: str | None = None) -> tuple[Any, Task]:
    """The source and the task that a text names, SOURCE_MODEL[:arg=value,...].

    Raises:
      ValueError: no such source or model, or an option that neither has.
    """
    from fedjax_lab.data import sources

    name, model, options = split(text)
    mine = of_model(name, options)
    source = sources.load(spelled(name, {k: v for k, v in options.items() if k not in mine}), data_dir, cache_dir)
    return source, build(text, model, {k: v[:1] for k, v in source.train.items()}, source.classes, mine)


def of_model(source: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options that are not the source's."""
    from fedjax_lab.data import sources

    factory = sources.SOURCES.get(source)
    return {k: v for k, v in options.items() if factory is None or k not in inspect.signature(factory).parameters}


def build(text: str, model: str, example: Mapping[str, np.ndarray], classes: int, options: Mapping[str, str]) -> Task:
    """The task of a model for examples like this one."""
    from fedjax_lab import models
    from fedjax_lab.data import quadratic

    if model == "quadratic":
        return spec.build("model", spelled(model, options), {"quadratic": quadratic.quadratic_task}, example["a"].shape[-1])
    fields = _options(models.MODELS[model](tuple(example["x"].shape[1:]), classes or 1))
    unknown = set(options) - set(fields)
    if unknown:
        raise ValueError(f"'{text}' has no option '{min(unknown)}'; options of the model: {spec.nearest(min(unknown), fields)}")
    typed = {k: spec.convert(fields[k], v, f"option '{k}' of '{text}'") for k, v in options.items()}
    example = {**example, "mask": np.ones(1, bool)}
    return models.build(model, example, classes or 1, title=text, **typed)


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
    """SOURCE_MODEL[:arg=value,...] into source, model and options.

    Raises:
      ValueError: the text is of another form, or the model is unknown.
    """
    from fedjax_lab import models

    name, positional, options = spec.parse(text)
    source, _, model = name.rpartition("_")
    if not source or positional:
        raise ValueError(f"task '{text}' is not SOURCE_MODEL[:arg=value,...]; for example digits_mlp, mnist_2nn, synthetic_logreg")
    spec.choose("model", model, {**models.MODELS, "quadratic": None})
    return source, model, options
