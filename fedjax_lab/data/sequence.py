"""Task sequences for continual learning: one population per task, over the same clients, and what they are as a single one.

A client without examples of a task has size zero in that task's population.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from fedjax_lab.data import draw, manifest, shift
from fedjax_lab.data.population import class_counts
from fedjax_lab.spec import Count
from fedjax_lab.types import Key, Population, Stages, Stream


def class_incremental(people: Population, key: Key, tasks: Count = 5, *, cumulative: bool = True, rounds: Count = 10) -> tuple[Population, ...]:
    """Tasks of disjoint classes, in random order and of equal numbers of classes up to one (the split benchmarks, GLFC).

    Args:
      people: clients with all classes.
      tasks: how many tasks.
      cumulative: the test examples of a task are those of all classes so far, instead of its own classes.
      rounds: how many a task takes.

    Raises:
      ValueError: no classes, or more tasks than classes.
    """
    classes, labels = people.counts.shape[1], people.train.examples.get("y")
    if not classes or labels.ndim != 1:
        raise ValueError("'class_incremental' needs a class per example; this source has none")
    if tasks > classes:
        raise ValueError(f"tasks={tasks} is not valid: there are {classes} classes, and each task needs at least one")
    parts = np.array_split(draw.rng(key, "sequence").permutation(classes), tasks)
    found = (_restricted(people, own, np.concatenate(parts[: t + 1]) if cumulative else own, t) for t, own in enumerate(parts))
    return tuple(task._replace(manifest={**task.manifest, "rounds": rounds, "cumulative": cumulative}) for task in found)


def domain_incremental(people: Population, key: Key, change: Literal["rotation", "blur", "background", "permuted"] = "rotation", *,
                       groups: Count = 4, rounds: Count = 10) -> tuple[Population, ...]:
    """Tasks of the same classes in changing domains: in task t every client is in group t of the shift (rotated or permuted MNIST).

    Args:
      people: clients, not shifted.
      change: the shift.
      groups: how many tasks.
      rounds: how many a task takes.
    """
    law = shift.SHIFTS[change](groups)
    tasks = (shift.shifted(people, law, key, np.full(people.clients, t)) for t in range(groups))
    return tuple(task._replace(manifest={**task.manifest, "task": t, "rounds": rounds, "cumulative": False}) for t, task in enumerate(tasks))


def joined(tasks: tuple[Population, ...]) -> Population:
    """The tasks as a single population whose training examples change with the rounds; every example says of which "task" it is.

    Its test examples are those of all tasks, or of the last one where that has those before it.
    """
    cumulative, rounds = (tasks[0].manifest[name] for name in ("cumulative", "rounds"))
    train, size = _side_by_side([task.train for task in tasks])
    test, _ = _side_by_side([task.test for task in tasks[-1 if cumulative else 0 :]], len(tasks) - 1 if cumulative else 0)
    offset = (np.cumsum(size.T) - size.T.ravel()).reshape(size.T.shape).T.astype(np.int32)
    counts = np.stack([task.counts for task in tasks])
    facts = {k: v for k, v in tasks[0].manifest.items() if k not in ("task", "classes_of_task")}
    people = Population(train, test, counts.sum(0), facts, tasks[0].public, Stages(np.int32(rounds), offset, size, counts))
    return manifest.changed(people, *train.examples.values(), train.index, tasks=len(tasks))


def _side_by_side(streams: list[Stream], first: int = 0) -> tuple[Stream, np.ndarray]:
    """The streams of tasks first, first + 1, .. as one, a client's examples by task, and how many of each [T, N]."""
    examples, rows, base = {}, [], 0
    for stream in streams:
        total = int(stream.size.sum())
        at = np.repeat(stream.offset - (np.cumsum(stream.size) - stream.size), stream.size) + np.arange(total)
        rows.append(base + (at if stream.index is None else np.asarray(stream.index)[at]))
        base += len(next(iter(stream.examples.values())))
    for field in streams[0].examples:
        examples[field] = np.concatenate([stream.examples[field] for stream in streams])
    lengths = [len(next(iter(stream.examples.values()))) for stream in streams]
    examples["task"] = np.repeat(np.arange(first, first + len(streams)), lengths).astype(np.int32)
    size = np.stack([stream.size for stream in streams]).astype(np.int32)
    owner = np.concatenate([np.repeat(np.arange(size.shape[1]), each) for each in size])
    index = np.concatenate(rows)[np.argsort(owner, kind="stable")].astype(np.int32)
    whole = size.sum(0).astype(np.int32)
    return Stream(examples, (np.cumsum(whole) - whole).astype(np.int32), whole, index), size


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
