"""Task -> Task: low-rank adapters on a frozen model (LoRA, Hu et al., ICLR 2022).

    y = x (W + s (B A)^T) = x W + s (x A^T) B^T           W [in, out] frozen, A [r, in] random, B [out, r] zero at the start

Where the model multiplies by W in an nn.Dense, the second form is taken, which never makes a copy of W; any other matrix is replaced by
the sum. The parameters are {"params": what is trained, "frozen": {"base": the model, ..}}; "a" and "b" are {path: factor}, "whole" is
{path: leaf} of what is trained without factors. Normalization statistics stay as they are in the base.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_lab import keys
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.parts.wires.plain import plain
from fedjax_lab.types import Key, Task, Tree, Wire

Start = Literal["kaiming", "orthogonal"]
Factors = Mapping[str, jax.Array]
TABLES = ("embedding", "positions")  # matrices whose rows are looked up, not multiplied by


class Sites(NamedTuple):
    """What is adapted. matrices: {path: (in, out)};  whole: paths of the leaves that are trained as they are."""

    matrices: Mapping[str, tuple[int, int]]
    whole: tuple[str, ...]

    @property
    def sides(self) -> int:
        """Sum of in + out over the matrices: the numbers in adapters of rank one."""
        return sum(m + n for m, n in self.matrices.values())


def sites(task: Task, where: Sequence[str], whole: Sequence[str]) -> Sites:
    """The matrices with one of the words `where` in their path, all but tables where none is given, and the leaves with one of `whole`.

    Raises:
      ValueError: a word is in no path; the line names those that there are.
    """
    like = {path: leaf for path, leaf in paths(jax.eval_shape(task.init, jax.random.key(0))).items() if not path.startswith("stats/")}
    matrices = {path: leaf.shape for path, leaf in like.items() if leaf.ndim == 2}
    for option, words, found in (("where", where, matrices), ("whole", whole, like)):
        missing = [word for word in words if not any(word in path for path in found)]
        if missing:
            kind = "matrix" if option == "where" else "leaf"
            raise ValueError(f"option '{option}': '{missing[0]}' is in the path of no {kind}; there are {', '.join(found)}")
    kept = tuple(path for path in like if any(word in path for word in whole))
    chosen = {path: shape for path, shape in matrices.items() if path not in kept
              and (any(word in path for word in where) if where else path.rsplit("/", 1)[-1] not in TABLES)}
    if not chosen:
        raise ValueError(f"task '{task.name}' has no matrix to adapt; its leaves are {', '.join(like)}")
    return Sites(chosen, kept)


def fresh(key: Key, at: Sites, rank: int, start: Start) -> tuple[Factors, Factors]:
    """A, rows uniform in +-1 / sqrt(in) or orthonormal, and B = 0."""

    def row(path, width):
        mine = keys.purpose(key, path)
        if start == "orthogonal":
            return jax.random.orthogonal(mine, rank, (), None, width)
        return jax.random.uniform(mine, (rank, width), minval=-(width**-0.5), maxval=width**-0.5)

    a = {path: row(path, m) for path, (m, _) in at.matrices.items()}  # and zeros of each client's own: a constant is one for all devices
    return a, {path: jnp.zeros_like(jnp.broadcast_to(a[path][:, 0], (n, rank))) for path, (_, n) in at.matrices.items()}


def dealt(ranks: tuple[int, ...], client: jax.Array) -> jax.Array:
    """int32, shaped as client: the ranks dealt to the clients in turn by their ids."""
    return jnp.asarray(ranks, jnp.int32)[client % len(ranks)]


def rows() -> Wire:
    """Counts the rows of A and the columns of B, of {"a", "b", "whole"}, where either holds anything."""

    def bits(code):
        a, b = code["a"], code["b"]
        held = {path: jnp.sum(jnp.any(a[path] != 0, 1) | jnp.any(b[path] != 0, 0)) * (a[path].shape[1] + b[path].shape[0]) for path in a}
        return 32 * (sum(held.values()) + sum(x.size for x in code["whole"].values()))

    return plain(bits)


def leaves_of(params: Tree, at: Sites) -> Factors:
    """{path: leaf} of what is trained without factors."""
    leaves = paths(params)
    return {path: leaves[path] for path in at.whole}


def replaced(params: Tree, leaves: Factors) -> Tree:
    """params with other leaves at these paths."""
    return jax.tree.unflatten(jax.tree.structure(params), [leaves.get(path, leaf) for path, leaf in paths(params).items()])


def merged(base: Tree, a: Factors, b: Factors, scale: Any) -> Tree:
    """The base with W + s (B A)^T at every path of the factors."""
    leaves = paths(base)
    return replaced(base, {path: leaves[path] + scale * (b[path] @ a[path]).T for path in a})


def adapted(task: Task, at: Sites, *, rank: int, scale: Any, start: Start, fixed: Sequence[str] = ()) -> Task:
    """The task of adapters on its own initialization.

    Args:
      at: what is adapted;  rank: r;  scale: s;  start: of A.
      fixed: which of "a" and "b" are never trained.
    """

    def init(key):
        base = task.init(key)
        a, b = fresh(keys.purpose(key, "adapters"), at, rank, start)
        parts = {"a": a, "b": b, "whole": leaves_of(base, at)}
        return {"params": {k: v for k, v in parts.items() if k not in fixed}, "frozen": {"base": base, **{k: parts[k] for k in fixed}}}

    return over(task, scale)._replace(init=init)


def over(task: Task, scale: Any) -> Task:
    """The task on {"params", "frozen"} of adapters; without an init of its own."""
    task = statistics.frozen(task) if statistics.present(task) else task

    def on(function):
        def call(params, *args, **more):
            return _called(function, {**params["frozen"], **params["params"]}, scale, args, more)

        return None if function is None else call

    def loss(params, batch, key):
        value, aux = on(task.loss)(params, batch, key)
        return value, aux._replace(stats=())

    return task._replace(apply=on(task.apply), loss=loss, features=on(task.features), head=on(task.head))


def _called(function: Callable, parts: Mapping[str, Tree], scale: Any, args: tuple, more: Mapping[str, Any]) -> Any:
    """function(model, *args, **more) of the adapted model."""
    base, a, b = replaced(parts["base"], parts["whole"]), parts["a"], parts["b"]
    seen: set[str] = set()

    def note(path, x, y):
        seen.add(path)
        return y

    def add(path, x, y):
        return y + scale * ((x @ a[path].T) @ b[path].T)

    with nn.intercept_methods(_at_products(a, note)):
        jax.eval_shape(lambda: function(base, *args, **more))
    other = [path for path in a if path not in seen]
    base = merged(base, {path: a[path] for path in other}, b, scale)
    with nn.intercept_methods(_at_products(seen, add)):
        return function(base, *args, **more)


def _at_products(known: Any, change: Callable) -> Callable:
    """What flax calls around every method: y becomes change(path of the kernel, x, y) in each nn.Dense whose kernel is known."""
    names = {path.removeprefix("params/"): path for path in known}

    def around(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(context.module, nn.Dense):
            return y
        path = names.get("/".join((*context.module.path, "kernel")))
        return y if path is None else change(path, args[0], y)

    return around
