"""Checkpoints of a run, by orbax: written in the background, each whole or not at all, the last few kept.

A checkpoint is a folder named by its round. It holds trees of arrays in groups (`model`, `state`), each as its bytes in a row, and
notes (JSON) with their paths, shapes and checksums, so that damage is noticed. Arrays are whole, whatever mesh they come from, and
go to the mesh that asks. Client tables that live off the devices have files of their own in it (engine.tables).
"""
from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fedjax_lab.engine import mesh as meshes
from fedjax_lab.engine import tables
from fedjax_lab.types import Tree

PIECE = 2**28  # bytes that orbax writes as one


class Saved(NamedTuple):
    """What a checkpoint holds: notes, and per group the arrays by path."""

    notes: dict[str, Any]
    groups: dict[str, dict[str, np.ndarray]]


def manager(folder: epath.Path, keep: int) -> Any:
    """What `save` writes with, the `keep` last checkpoints kept; its `close` waits, and raises what went wrong in the background."""
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_format_fixed_length=8, cleanup_tmp_directories=True, create=False,
                                           multiprocessing_options=_first())
    return ocp.CheckpointManager(_absolute(folder), options=options)


def _absolute(path: epath.Path) -> epath.Path:
    return path if "://" in str(path) else path.resolve()


def _first() -> Any:
    """Process 0 reads and writes, and waits for no other."""
    import orbax.checkpoint as ocp

    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="first")


def save(manager: Any, clock: int, notes: Mapping[str, Any], **groups: Tree) -> None:
    """Writes trees of arrays in the background, client tables off the devices at once; all may change as soon as this returns."""
    import orbax.checkpoint as ocp

    items, about = {}, {}
    for name, tree in groups.items():
        away = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree, tables.is_rows) if tables.is_rows(x)}
        layout, data = _pack(jax.tree.map(lambda x: x._replace(rows=()) if tables.is_rows(x) else x, tree, is_leaf=tables.is_rows))
        about[name] = {"layout": layout, "sum": zlib.crc32(data), "tables": bool(away)}
        items |= {f"{name}_tables": _of_tables()(away)} if away else {}
        items[name] = ocp.args.StandardSave({f"{at:015d}": data[at:at + PIECE] for at in range(0, data.size, PIECE)})
    text = json.dumps({"groups": about, "notes": dict(notes)})
    items["notes"] = ocp.args.JsonSave({"text": text, "sum": zlib.crc32(text.encode())})
    manager.save(clock, args=ocp.args.Composite(**items), force=True)


@functools.cache
def _of_tables() -> type:
    """orbax's argument for client tables, which has it write their files."""
    import orbax.checkpoint as ocp

    class Handler(ocp.CheckpointHandler):
        def save(self, directory, args):
            tables.write(directory, args.found)

        def restore(self, directory, args=None):
            return tables.read(directory)

    @ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class Tables(ocp.args.CheckpointArgs):
        found: Mapping[str, tables.Rows]

    return Tables


def newest(folder: epath.Path, *groups: str) -> Saved | None:
    """The last checkpoint that is whole, with these groups; each one passed over is named in a warning."""
    for name in sorted((p.name for p in folder.iterdir()), reverse=True) if folder.exists() else ():
        if "orbax-checkpoint-tmp" in name:
            warnings.warn(f"{folder / name} is half-written and passed over", stacklevel=2)
        elif name.isdigit():
            try:
                return _read(folder / name, groups)
            except Exception as error:  # noqa: BLE001 (whatever orbax makes of broken files)
                why = (str(error) or type(error).__name__).split("\n")[0][:100]
                warnings.warn(f"{folder / name} is damaged and passed over ({why})", stacklevel=2)
    return None


def set_aside(folder: epath.Path, clock: int) -> None:
    """Checkpoints after this round, which were passed over, step out of the way of those to come."""
    for old in folder.iterdir() if folder.exists() else ():
        if old.name.isdigit() and int(old.name) > clock:
            aside = folder / f"{old.name}.damaged"
            aside.rmtree(missing_ok=True)
            old.rename(aside)


def _read(path: epath.Path, groups: tuple[str, ...]) -> Saved:
    import orbax.checkpoint as ocp

    wanted = ocp.args.Composite(notes=ocp.args.JsonRestore(), **{name: ocp.args.StandardRestore() for name in groups})
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=_first()))
    with ocp.Checkpointer(handler, multiprocessing_options=_first()) as checkpointer:
        found = checkpointer.restore(_absolute(path), args=wanted)
    text, found_groups = found["notes"]["text"], {}
    wrong = zlib.crc32(text.encode()) != found["notes"]["sum"]
    about = json.loads(text)
    for name in groups:
        data = np.concatenate([found[name][at] for at in sorted(found[name])])
        wrong |= zlib.crc32(data) != about["groups"][name]["sum"]
        found_groups[name] = _unpack(about["groups"][name]["layout"], data)
        if about["groups"][name].get("tables"):
            found_groups[name] |= tables.read(path / f"{name}_tables")
    if wrong:
        raise ValueError("its checksum is wrong")
    return Saved(about["notes"], found_groups)


def _pack(tree: Tree) -> tuple[list, np.ndarray]:
    """(path, dtype, shape) of each leaf, and the bytes of all; random keys as their words."""
    named = [(jax.tree_util.keystr(path), _words(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    data, at = np.empty(sum(leaf.nbytes for _, leaf in named), np.uint8), 0
    for _, leaf in named:
        data[at:at + leaf.nbytes] = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        at += leaf.nbytes
    return [(name, str(leaf.dtype), leaf.shape) for name, leaf in named], data


def _unpack(layout: list, data: np.ndarray) -> dict[str, np.ndarray]:
    found, at = {}, 0
    for name, dtype, shape in layout:
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(data, jnp.dtype(dtype), count, at).reshape(shape)
        at += found[name].nbytes
    return found


def place(found: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """The tree that `like` is, from arrays by path: where it has shapes, with their shardings if any; into its numpy arrays where it has those.

    Raises:
      ValueError: a path, shape or dtype is another.
    """
    def take(path, leaf, *rows):
        name, words = jax.tree_util.keystr(path), jax.eval_shape(_words, leaf)
        value, shape = found.get(name), (*rows, *words.shape[len(rows):])
        if value is None or (value.shape, value.dtype) != (shape, words.dtype):
            there = "nothing" if value is None else f"{value.dtype}{list(value.shape)}"
            raise ValueError(f"the checkpoint does not fit: {name} is {there}, expected {words.dtype}{list(shape)}")
        return value

    def put(path, leaf):
        if tables.is_rows(leaf):
            known, rows = ((*path, jax.tree_util.GetAttrKey(name)) for name in ("known", "rows"))
            leaf.known[...] = take(known, leaf.known)
            ids = np.flatnonzero(leaf.known)
            jax.tree_util.tree_map_with_path(lambda at, x: tables.fill(x, ids, take((*rows, *at), x, len(ids))), leaf.rows)
            return leaf
        value = take(path, leaf)
        if isinstance(leaf, np.ndarray):
            leaf[...] = value
            return leaf
        value = jax.random.wrap_key_data(value, impl=_generator(leaf)) if _is_key(leaf) else value
        sharding = getattr(leaf, "sharding", None)
        return jax.device_put(value) if sharding is None else meshes.place(value, sharding)

    return jax.tree_util.tree_map_with_path(put, like, is_leaf=tables.is_rows)


def nested(found: Mapping[str, np.ndarray]) -> Tree:
    """The tree of dictionaries and lists that paths name, from arrays by path.

    >>> nested({"['top'][0]['bias']": np.zeros(2), "['top'][1]['bias']": np.ones(1)})
    {'top': [{'bias': array([0., 0.])}, {'bias': array([1.])}]}
    """
    tree: dict[str | int, Any] = {}
    for name, value in found.items():
        *way, last = [word or int(number) for word, number in re.findall(r"\['([^']*)'\]|\[(\d+)\]", name)]
        functools.reduce(lambda at, step: at.setdefault(step, {}), way, tree)[last] = value

    def listed(at: Any) -> Any:
        if not isinstance(at, dict):
            return at
        return [listed(at[i]) for i in range(len(at))] if 0 in at else {k: listed(v) for k, v in at.items()}

    return listed(tree)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _generator(leaf: Any) -> str:
    names = []
    jax.eval_shape(lambda key: names.append(jax.random.key_impl(key)), leaf)
    return names[0]
