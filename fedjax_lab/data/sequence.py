"""Task sequences for continual learning: one population per task, over the same clients.

A client without examples of a task has size zero in that task's population. Shapes differ between tasks, so a task is a stage.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from fedjax_lab.data import draw, manifest, shift
from fedjax_lab.data.population import class_counts
from fedjax_lab.spec import Count
from fedjax_lab.types import Key, Population, Stream


def class_incremental(people: Population, key: Key, tasks: Count = 5, *, cumulative: bool = True) -> tuple[Population, ...]:
    """Tasks of disjoint classes, in random order and of equal numbers of classes up to one (the split benchmarks, GLFC).

    Args:
      people: clients with all classes.
      tasks: how many tasks.
      cumulative: the test examples of a task are those of all classes so far, instead of its own classes.

    Raises:
      ValueError: no classes, or more tasks than classes.
    """
    classes, labels = people.counts.shape[1], people.train.examples.get("y")
    if not classes or labels.ndim != 1:
        raise ValueError("'class_incremental' needs a class per example; this source has none")
    if tasks > classes:
        raise ValueError(f"tasks={tasks} is not valid: there are {classes} classes, and each task needs at least one")
    parts = np.array_split(draw.rng(key, "sequence").permutation(classes), tasks)
    return tuple(_restricted(people, own, np.concatenate(parts[: t + 1]) if cumulative else own, t) for t,
                 own in enumerate(parts))


def domain_incremental(people: Population, key: Key, change: Literal["rotation", "blur", "background"] = "rotation", *,
                       groups: Count = 4) -> tuple[Population, ...]:
    """Tasks of the same classes in changing domains: in task t every client is in group t of the shift (rotated MNIST).

    Args:
      people: clients, not shifted.
      change: the shift.
      groups: how many tasks.
    """
    law = shift.SHIFTS[change](groups)
    tasks = (shift.shifted(people, law, key, np.full(people.clients, t)) for t in range(groups))
    return tuple(task._replace(manifest={**task.manifest, "task": t}) for t, task in enumerate(tasks))


SEQUENCES: dict[str, Callable[..., tuple[Population, ...]]] = {f.__name__: f for f in (class_incremental, domain_incremental)}


def _restricted(people: Population, trained: np.ndarray, tested: np.ndarray, task: int) -> Population:
    train, test = only(people.train, trained), only(people.test, tested)
    counts = class_counts(train.examples["y"], train.size, people.counts.shape[1])
    people = people._replace(train=train, test=test, counts=counts)
    return manifest.changed(people, trained, tested, task=task, classes_of_task=sorted(map(int, trained)))


def only(stream: Stream, classes: np.ndarray) -> Stream:
    """The stream without the examples of other classes."""
    kept = np.isin(stream.examples["y"], classes)
    examples = {field: array[kept] for field, array in stream.examples.items()}
    rows = np.arange(len(kept)) if stream.index is None else stream.index
    owner = np.repeat(np.arange(len(stream.size)), stream.size)[kept[rows]]
    size = np.bincount(owner, minlength=len(stream.size)).astype(np.int32)
    index = None if stream.index is None else (np.cumsum(kept) - 1)[rows[kept[rows]]].astype(np.int32)
    return Stream(examples, (np.cumsum(size) - size).astype(np.int32), size, index)
