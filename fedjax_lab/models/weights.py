"""Parameters in files: safetensors of this library's own, and of the public families under the names that those use.

    task = models.build("backbone", example, 2, family="bert", width=768, depth=12, heads=12, vocabulary=30522, length=512)
    task = weights.started(task, weights.read("bert-base"), fresh=("head",))            # or --init=file:bert-base,fresh=head

Own files name a leaf by its path. Foreign ones are told apart by a name that only they have, and translated by a table of patterns: a
layer's number is {i}, a weight that is stored out x in is transposed, and what a pattern gives "" for is no parameter. A CLIP file fills
the module CLIP.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.types import Key, Task, Tree

Tensors = Mapping[str, np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One row of a table: names like `pattern` become `paths`, one for each part that `change` leaves."""

    pattern: str
    paths: tuple[str, ...]
    change: Callable[[np.ndarray], Sequence[np.ndarray]]


def _same(x):
    return (x,)


def _turned(x):
    return (x.T,)


def _thirds(x):
    return np.split(x, 3, -1)


def _patch(x):
    """[D, C, p, p] of a convolution as [p p C, D], in the order of models.vit.patches."""
    return (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),)


def _row(pattern: str, path: str, change=_same) -> Row:
    return Row(pattern, (path,) if path else (), change)


def _dense(pattern: str, path: str, stored: Callable = _turned) -> list[Row]:
    return [_row(pattern + r"\.weight", path + "/kernel", stored), _row(pattern + r"\.bias", path + "/bias")]


def _norm(pattern: str, path: str) -> list[Row]:
    return [_row(pattern + r"\.(?:weight|gamma)", path + "/scale"), _row(pattern + r"\.(?:bias|beta)", path + "/bias")]


def _table(pattern: str) -> Row:
    return _row(pattern, "embed/embedding")


def _gpt2() -> list[Row]:
    layer, block = r"(?:transformer\.)?h\.(\d+)\.", "blocks_{i}/"
    split = Row(layer + r"attn\.c_attn\.(weight|bias)", tuple(block + f"{part}/{{leaf}}" for part in ("query", "key", "value")), _thirds)
    return [
        _table(r"(?:transformer\.)?wte\.weight"), _row(r"(?:transformer\.)?wpe\.weight", "positions"), split,
        *_norm(layer + "ln_1", block + "norm_0"), *_norm(layer + "ln_2", block + "norm_1"), *_norm(r"(?:transformer\.)?ln_f", "norm"),
        *_dense(layer + r"attn\.c_proj", block + "out", _same), *_dense(layer + r"mlp\.c_fc", block + "up", _same),
        *_dense(layer + r"mlp\.c_proj", block + "down", _same), _row(layer + r"attn\.(?:masked_)?bias", ""), _row(r"lm_head\.weight", ""),
    ]


def _llama() -> list[Row]:
    layer, block = r"model\.layers\.(\d+)\.", "blocks_{i}/"
    products = {"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
                "self_attn.o_proj": "out", "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
    return [
        _table(r"model\.embed_tokens\.weight"), _row(r"model\.norm\.weight", "norm/scale"), *_dense("lm_head", "head"),
        *(row for name, path in products.items() for row in _dense(layer + re.escape(name), block + path)),
        _row(layer + r"input_layernorm\.weight", block + "norm_0/scale"), _row(layer + r"post_attention_layernorm\.weight", block + "norm_1/scale"),
        _row(r".*rotary_emb\.inv_freq", ""),
    ]


def _bert() -> list[Row]:
    start, layer, block = r"(?:bert\.)?", r"(?:bert\.)?encoder\.layer\.(\d+)\.", "blocks_{i}/"
    products = {"attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
                "attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down"}
    return [
        _table(start + r"embeddings\.word_embeddings\.weight"), _row(start + r"embeddings\.position_embeddings\.weight", "positions"),
        _row(start + r"embeddings\.token_type_embeddings\.weight", "types"), *_norm(start + r"embeddings\.LayerNorm", "norm_first"),
        *(row for name, path in products.items() for row in _dense(layer + re.escape(name), block + path)),
        *_norm(layer + r"attention\.output\.LayerNorm", block + "norm_0"), *_norm(layer + r"output\.LayerNorm", block + "norm_1"),
        *_dense(start + r"pooler\.dense", "pooler"), *_dense("classifier", "head"), _row(start + r"embeddings\.position_ids", ""), _row(r"cls\..*", ""),
    ]


def _vit() -> list[Row]:
    start, layer, block = r"(?:vit\.)?", r"(?:vit\.)?encoder\.layer\.(\d+)\.", "blocks_{i}/"
    products = {"attention.attention.query": "query", "attention.attention.key": "key", "attention.attention.value": "value",
                "attention.output.dense": "out", "intermediate.dense": "up", "output.dense": "down"}
    return [
        _row(start + r"embeddings\.cls_token", "token"), _row(start + r"embeddings\.position_embeddings", "positions", lambda x: (x[0],)),
        *_dense(start + r"embeddings\.patch_embeddings\.projection", "patch", _patch),
        *(row for name, path in products.items() for row in _dense(layer + re.escape(name), block + path)),
        *_norm(layer + "layernorm_before", block + "norm_0"), *_norm(layer + "layernorm_after", block + "norm_1"), *_norm(start + "layernorm", "norm"),
        *_dense("classifier", "head"), _row(start + r"pooler\..*", ""),
    ]


def _clip() -> list[Row]:
    rows = [_row("logit_scale", "logit_scale"), *_dense("visual_projection", "vision/head"), *_dense("text_projection", "text/head"),
            _row(r"(?:text|vision)_model\.embeddings\.position_ids", ""), _row(r"text_model\.embeddings\.token_embedding\.weight", "text/embed/embedding"),
            _row(r"vision_model\.embeddings\.class_embedding", "vision/token", lambda x: (x[None, None],)),
            *_dense(r"vision_model\.embeddings\.patch_embedding", "vision/patch", _patch),
            *_norm(r"vision_model\.pre_layrnorm", "vision/norm_first"), *_norm(r"vision_model\.post_layernorm", "vision/norm"),
            *_norm(r"text_model\.final_layer_norm", "text/norm")]
    for tower in ("text", "vision"):
        layer, block = rf"{tower}_model\.encoder\.layers\.(\d+)\.", f"{tower}/blocks_{{i}}/"
        products = {"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
                    "self_attn.out_proj": "out", "mlp.fc1": "up", "mlp.fc2": "down"}
        rows += [_row(rf"{tower}_model\.embeddings\.position_embedding\.weight", f"{tower}/positions"),
                 *(row for name, path in products.items() for row in _dense(layer + re.escape(name), block + path)),
                 *_norm(layer + "layer_norm1", block + "norm_0"), *_norm(layer + "layer_norm2", block + "norm_1")]
    return rows


FAMILIES: dict[str, tuple[str, Callable[[], list[Row]]]] = {  # a name that only this family has, and its table
    "gpt2": (r"(?:transformer\.)?wte\.weight", _gpt2), "llama": (r"model\.embed_tokens\.weight", _llama),
    "bert": (r"(?:bert\.)?embeddings\.word_embeddings\.weight", _bert), "clip": ("logit_scale", _clip),
    "vit": (r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight", _vit),
}


def read(path: Any) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of all in a folder, by name.

    Raises:
      ValueError: there is none, a file is damaged, or two have one name.
    """
    from pathlib import Path

    import safetensors
    import safetensors.numpy

    place = Path(path).expanduser()
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] * place.is_file()
    if not files:
        raise ValueError(f"weights '{path}' not found: expected a .safetensors file, or a folder with some")
    found: dict[str, np.ndarray] = {}
    for file in files:
        try:
            tensors = safetensors.numpy.load_file(file)
        except safetensors.SafetensorError as error:
            raise ValueError(f"weights '{file}' cannot be read: {error}") from None
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise ValueError(f"weights '{path}': '{twice[0]}' is in more than one file")
        found |= tensors
    return found


def write(path: Any, params: Tree) -> None:
    """params in a file of this library's own, whole or not at all."""
    import os
    from pathlib import Path

    import safetensors.numpy

    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.{os.getpid()}")
    safetensors.numpy.save_file({name: np.asarray(leaf, order="C") for name, leaf in _paths(params).items()}, part)
    os.replace(part, place)


def family_of(tensors: Tensors) -> str | None:
    """Whose names these are; None for this library's own."""
    return next((name for name, (mark, _) in FAMILIES.items() if any(re.fullmatch(mark, one) for one in tensors)), None)


def translated(tensors: Tensors) -> dict[str, np.ndarray]:
    """{path of a leaf: array} of foreign tensors; those that no pattern knows keep their names.

    Raises:
      ValueError: a tensor has another number of axes than its pattern expects.
    """
    family = family_of(tensors)
    rows = FAMILIES[family][1]() if family else []
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        row, match = next(((row, m) for row in rows if (m := re.fullmatch(row.pattern, name))), (None, None))
        if row is None:
            found[name] = tensor
        elif row.paths:
            number, kind = ([*match.groups(), "", ""])[:2]
            try:
                parts = row.change(np.asarray(tensor))
            except (ValueError, IndexError):
                raise ValueError(f"weights: '{name}' has shape {list(tensor.shape)}, which is not that of a {family} file") from None
            leaf = "kernel" if kind == "weight" else "bias"
            found |= {path.format(i=number, leaf=leaf): part for path, part in zip(row.paths, parts, strict=True)}
    if "types" in found:  # texts of one sentence: all tokens are of the first type
        found["positions"] = found["positions"] + found.pop("types")[0]
    return found


def filled(like: Tree, tensors: Tensors, fresh: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """{path: array in the leaf's dtype} of all leaves of `like` but those with a word of `fresh` in their path.

    Args:
      like: parameters, or their shapes;  tensors: of a file, its own or foreign names;  fresh: words for leaves that are not taken.

    Raises:
      ValueError: leaves that no tensor fills, tensors that fill no leaf, or other shapes; the line names them.
    """
    leaves, found = _paths(like), translated(tensors)
    wanted = {path: leaf for path, leaf in leaves.items() if not any(word in path for word in fresh)}
    found = {path: x for path, x in found.items() if path in wanted or not any(word in path for word in fresh)}
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise ValueError(f"weights: no tensor for {_some(missing)}; fresh= names leaves that shall be drawn")
    if unexpected:
        raise ValueError(f"weights: no leaf of the model for {_some(unexpected)}; it has {_some(sorted(leaves))}")
    for path, leaf in wanted.items():
        if found[path].shape != leaf.shape:
            raise ValueError(f"weights: '{path}' has shape {list(found[path].shape)} in the file and {list(leaf.shape)} in the model")
    return {path: np.asarray(found[path]).astype(leaf.dtype) for path, leaf in wanted.items()}


def started(task: Task, tensors: Tensors, fresh: Sequence[str] = ()) -> Task:
    """The task that starts from these tensors, and draws the leaves with a word of `fresh` in their path.

    Raises:
      ValueError: see `filled`.
    """
    given = filled(jax.eval_shape(task.init, jax.random.key(0)), tensors, fresh)

    def init(key: Key) -> Tree:
        drawn = task.init(key)
        return jax.tree.unflatten(jax.tree.structure(drawn), [jnp.asarray(given.get(path, leaf)) for path, leaf in _paths(drawn).items()])

    return task._replace(init=init)


def _paths(tree: Tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
