"""Shifts: groups of clients whose inputs look different, or who mean different things by the same label.

A shift has some groups and a change of the examples for each; group 0 is left as it is. Clients are dealt to the groups at random
and evenly. The central test set becomes the union of its versions, and every client's test examples those of its own group.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from fedjax_lab.data import draw, manifest
from fedjax_lab.data.population import class_counts
from fedjax_lab.data.source import Arrays
from fedjax_lab.spec import Count, Positive
from fedjax_lab.types import Key, Population, Stream


class Shift(NamedTuple):
    """groups: how many;  change: (arrays, group 1 .. groups-1, generator, classes) -> arrays of the same shapes."""

    groups: int
    change: Callable[[Arrays, int, np.random.Generator, int], Arrays]


def rotation(groups: Count = 4) -> Shift:
    """Images turned by 360 degrees * group / groups (Ghosh et al. 2020, IFCA, has 4 and 2 groups). Quarter turns are exact.

    Args:
      groups: number of angles.
    """
    def change(x: np.ndarray, group: int, generator: np.random.Generator) -> np.ndarray:
        from scipy import ndimage

        quarters, rest = divmod(4 * group, groups)
        if not rest:
            return np.rot90(x, quarters, (1, 2))
        return ndimage.rotate(x, 360 * group / groups, (1, 2), reshape=False, order=1, mode="nearest")

    return Shift(groups, _images("rotation", change))


def inversion() -> Shift:
    """Two groups, the second with colors inverted: 1 - x."""
    return Shift(2, _images("inversion", lambda x, group, generator: 1 - x))


def blur(groups: Count = 3, *, sigma: Positive = 1.0) -> Shift:
    """Gaussian blur of width sigma * group.

    Args:
      groups: number of widths.
      sigma: width of the first blurred group, in pixels.
    """
    def change(x: np.ndarray, group: int, generator: np.random.Generator) -> np.ndarray:
        from scipy import ndimage

        return ndimage.gaussian_filter(x, (0, sigma * group, sigma * group, 0), mode="nearest")

    return Shift(groups, _images("blur", change))


def background(groups: Count = 2, *, sigma: Positive = 2.0) -> Shift:
    """Images blended with a random smooth background, |x - b|, as MNIST-M does with photos (Ganin et al. 2016).

    Args:
      groups: number of groups; a background of group g has g times the first one's amplitude / (groups - 1).
      sigma: smoothness of the background, in pixels.
    """
    def change(x: np.ndarray, group: int, generator: np.random.Generator) -> np.ndarray:
        from scipy import ndimage

        noise = ndimage.gaussian_filter(generator.normal(size=x.shape).astype(np.float32), (0, sigma, sigma, 0), mode="wrap")
        noise = 0.5 + 0.25 * noise / noise.std()
        return np.abs(x - group / (groups - 1) * np.clip(noise, 0, 1))

    return Shift(groups, _images("background", change))


def permuted(groups: Count = 4) -> Shift:
    """Images whose pixels are in another random order, one per group and always the same (permuted MNIST, Goodfellow et al. 2014).

    Args:
      groups: number of orders, the natural one among them.
    """
    def change(x: np.ndarray, group: int, generator: np.random.Generator) -> np.ndarray:
        count, height, width, channels = x.shape
        order = np.random.default_rng([group]).permutation(height * width)
        return x.reshape(count, height * width, channels)[:, order].reshape(x.shape)

    return Shift(groups, _images("permuted", change))


def concept(groups: Count = 2, *, law: Literal["random", "cycle"] = "random", seed: int = 0) -> Shift:
    """Concept shift: the same inputs, other labels, by one permutation of the classes per group (Sattler et al. 2021, CFL).

    Args:
      groups: number of concepts.
      law: random permutations, or cycle: y + group modulo C, which differs from group to group in every class.
      seed: of the random permutations.
    """
    def change(arrays: Arrays, group: int, generator: np.random.Generator, classes: int) -> Arrays:
        y = arrays.get("y")
        if y is None or y.dtype != np.int32 or y.ndim != 1:
            raise ValueError("shift 'concept' needs classes; this source has none")
        return {**arrays, "y": permutation(group, classes, law, seed)[y]}

    return Shift(groups, change)


def permutation(group: int, classes: int, law: str = "random", seed: int = 0) -> np.ndarray:
    """What each class [C] is called in a group of `concept`; int32."""
    names = np.arange(classes, dtype=np.int32)
    if group == 0:
        return names
    return np.roll(names, -group) if law == "cycle" else np.random.default_rng([seed, group]).permutation(names)


SHIFTS: dict[str, Callable[..., Shift]] = {f.__name__: f for f in (rotation, inversion, blur, background, permuted, concept)}


def groups(key: Key, clients: int, count: int) -> np.ndarray:
    """The group int32 [N] of each client: random, sizes differ by at most one."""
    return (draw.rng(key, "groups").permutation(clients) % count).astype(np.int32)


def shifted(people: Population, shift: Shift, key: Key, group: np.ndarray | None = None) -> Population:
    """The population after a shift.

    Args:
      people: as `population.build` makes it.
      shift: what happens to whom.
      key: for the groups and the change.
      group: [N], given instead of drawn.
    """
    group = groups(key, people.clients, shift.groups) if group is None else np.asarray(group)
    generator, classes = draw.rng(key, "shift"), people.counts.shape[1]
    train, test = _packed(people.train, group, shift, generator, classes), people.test
    if test.index is None:
        test = _packed(test, group, shift, generator, classes)
    else:
        whole = len(next(iter(test.examples.values())))
        versions = [_changed(test.examples, g, shift, generator, classes) for g in range(shift.groups)]
        examples = {field: np.concatenate([v[field] for v in versions]) for field in test.examples}
        test = test._replace(examples=examples, index=test.index + np.repeat(group * whole, test.size).astype(np.int32))
    counts = class_counts(train.examples.get("y"), train.size, classes)
    people = people._replace(train=train, test=test, counts=counts)
    return manifest.changed(people, *train.examples.values(), *test.examples.values(), group,
                            group_sizes=np.bincount(group, minlength=shift.groups).tolist())


def _packed(stream: Stream, group: np.ndarray, shift: Shift, generator: np.random.Generator, classes: int) -> Stream:
    """A stream without index, each row changed by its client's group."""
    mine = np.repeat(group, stream.size)
    examples = {field: array.copy() for field, array in stream.examples.items()}
    for g in range(1, shift.groups):
        part = {field: array[mine == g] for field, array in stream.examples.items()}
        for field, array in _changed(part, g, shift, generator, classes).items():
            examples[field][mine == g] = array
    return stream._replace(examples=examples)


def _changed(arrays: Arrays, group: int, shift: Shift, generator: np.random.Generator, classes: int) -> Arrays:
    if group == 0 or not len(next(iter(arrays.values()))):
        return arrays
    return shift.change(arrays, group, generator, classes)


def _images(name: str, change: Callable[[np.ndarray, int, np.random.Generator], np.ndarray]) -> Callable[..., Arrays]:
    def whole(arrays: Arrays, group: int, generator: np.random.Generator, classes: int) -> Arrays:
        x = arrays.get("x")
        if x is None or x.ndim != 4 or x.dtype != np.float32:
            raise ValueError(f"shift '{name}' needs images, float32 [M, H, W, channels]; this source has none")
        return {**arrays, "x": change(x, group, generator).astype(np.float32)}

    return whole
