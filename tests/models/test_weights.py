"""Weights from files: each family's logits are those of a forward pass in plain numpy from the tensors under their own names."""
from __future__ import annotations

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fedjax_lab import models
from fedjax_lab.models import weights
from fedjax_lab.models.backbone import CLIP, Backbone

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import foreign

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
rng = np.random.default_rng(1)
TEXT = rng.integers(1, foreign.V, (2, foreign.T)).astype(np.int32)
PADDED = np.where(np.arange(foreign.T) < [[foreign.T], [4]], TEXT, 0)
IMAGES = rng.normal(size=(2, foreign.SIDE, foreign.SIDE, foreign.CHANNELS)).astype(np.float32)
SIZES = {"width": foreign.D, "depth": foreign.L, "heads": foreign.H, "length": foreign.T}
NEXT = {**SIZES, "vocabulary": foreign.V}
CASES = {
    "gpt2": (foreign.gpt2, foreign.gpt2_logits, TEXT, foreign.V, {"family": "gpt2", **SIZES}),
    "gpt2-prefixed": (lambda: foreign.gpt2("transformer."), foreign.gpt2_logits, TEXT, foreign.V, {"family": "gpt2", **SIZES}),
    "llama": (foreign.llama, foreign.llama_logits, TEXT, foreign.V, {"family": "llama", "kv_heads": 1, "hidden": foreign.HIDDEN, **SIZES}),
    "bert": (foreign.bert, foreign.bert_logits, PADDED, 4, {"family": "bert", "hidden": foreign.HIDDEN, "padding": 0, **NEXT}),
    "bert-bare": (lambda: foreign.bert("", True), lambda t, x: foreign.bert_logits(t, x, True), TEXT, 4,
                  {"family": "bert", "hidden": foreign.HIDDEN, **NEXT}),
    "vit": (foreign.vit, foreign.vit_logits, IMAGES, 4, {"family": "vit", "hidden": foreign.HIDDEN, "patch": foreign.P, **SIZES}),
}


def example(x, classes):
    y = np.zeros((len(x), *x.shape[1:]) if classes == foreign.V else len(x), np.int32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.ones(len(x), bool)}


def task_of(name, **changes):
    _, _, x, classes, options = CASES[name]
    return models.build("backbone", example(x, classes), classes, **{**options, **changes})


def file_of(name, folder):
    tensors = CASES[name][0]() if name in CASES else foreign.clip()
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors", tensors


@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_file_are_those_of_numpy(name, tmp_path):
    path, tensors = file_of(name, tmp_path)
    task = weights.started(task_of(name), weights.read(path))
    params = jit(task.init)(jax.random.key(0))
    expected = CASES[name][1](tensors, CASES[name][2])
    assert np.abs(expected).max() > 0.1 and weights.family_of(tensors) == name.split("-")[0]
    np.testing.assert_allclose(jit(task.apply)(params, example(CASES[name][2], CASES[name][3])), expected, rtol=1e-4, atol=1e-4)


def test_logits_of_a_clip_file_are_those_of_numpy(tmp_path):
    """From a folder with its tensors in two files."""
    _, tensors = file_of("clip", tmp_path)
    (tmp_path / "clip.safetensors").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({k: np.asarray(tensors[k], order="C") for k in part}, tmp_path / f"model-{i}-of-2.safetensors")
    sizes = {**SIZES, "family": "clip", "hidden": foreign.HIDDEN, "classes": 6}
    module = CLIP(Backbone(**sizes, patch=foreign.P), Backbone(**sizes, vocabulary=foreign.V))
    texts = np.where(np.arange(foreign.T) == 4, foreign.V - 1, np.minimum(TEXT, foreign.V - 2))
    like = jax.eval_shape(module.init, jax.random.key(0), IMAGES, texts)["params"]
    filled = weights.filled(like, weights.read(tmp_path))
    params = jax.tree.unflatten(jax.tree.structure(like), [filled[path] for path in weights._paths(like)])
    np.testing.assert_allclose(jit(module.apply)({"params": params}, IMAGES, texts), foreign.clip_logits(tensors, IMAGES, texts), rtol=1e-4, atol=1e-4)


def test_pooling_and_a_fresh_head(tmp_path):
    """A text model says classes from a position that is named; what the file lacks is drawn from the key, the rest is the file's."""
    path, tensors = file_of("gpt2", tmp_path)
    classes = {"vocabulary": foreign.V, "pool": "last", "padding": 0}
    base = models.build("backbone", example(PADDED, 3), 3, **{**CASES["gpt2"][4], **classes})
    task = weights.started(base, weights.read(path), fresh=("head",))
    one, two = map(jit(task.init), map(jax.random.key, (0, 1)))
    assert np.abs(one["head"]["kernel"] - two["head"]["kernel"]).max() > 0.01
    np.testing.assert_array_equal(one["embed"]["embedding"], tensors["wte.weight"])
    at = {"x": jnp.asarray(PADDED)}
    whole = jit(task.features)(one, at)
    short = jit(task.features)(one, {"x": jnp.asarray(PADDED[1:, :4])})
    np.testing.assert_allclose(whole[1:], short, rtol=1e-4, atol=1e-5)  # padding changes nothing
    np.testing.assert_allclose(jit(task.head)(one, whole), jit(task.apply)(one, at), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_file_of_ones_own_keeps_every_bit(dtype, tmp_path):
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), jit(task_of("gpt2").init)(jax.random.key(3)))
    weights.write(tmp_path / "deep" / "own.safetensors", params)
    found = weights.read(tmp_path / "deep" / "own.safetensors")
    for path, leaf in weights._paths(params).items():
        assert found[path].dtype == dtype and (found[path] == leaf).all()
    again = jit(weights.started(task_of("gpt2"), found).init)(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)), again, params)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["own.safetensors"] and weights.family_of(found) is None


def refused(name, change, message, **changes):
    tensors = CASES[name][0]()
    change(tensors)
    with pytest.raises(ValueError, match=message) as error:
        weights.started(task_of(name, **changes), tensors)
    assert "\n" not in str(error.value)


def test_refusals(tmp_path):
    refused("bert", lambda t: t.pop("bert.pooler.dense.bias"), r"no tensor for pooler/bias; fresh= names leaves that shall be drawn")
    refused("gpt2", lambda t: t.update({"h.0.attn.extra": foreign.draw(2)}), r"no leaf of the model for h\.0\.attn\.extra; it has blocks_0/")
    refused("llama", lambda t: None, r"'blocks_0/key/kernel' has shape \[12, 4\] in the file and \[12, 12\] in the model", kv_heads=3)
    refused("gpt2", lambda t: None, r"no leaf of the model for blocks_1/.* and \d more; it has", depth=1)
    refused("vit", lambda t: t.update({"vit.embeddings.patch_embeddings.projection.weight": foreign.draw(3, 3)}),
            r"'vit\.embeddings\.patch_embeddings\.projection\.weight' has shape \[3, 3\], which is not that of a vit file")
    with pytest.raises(ValueError, match="weights '.*nowhere' not found: expected a .safetensors file, or a folder with some"):
        weights.read(tmp_path / "nowhere")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match=r"bad\.safetensors' cannot be read"):
        weights.read(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").unlink()
    for part in "ab":
        save_file({"x": np.ones(2, np.float32)}, tmp_path / f"{part}.safetensors")
    with pytest.raises(ValueError, match="'x' is in more than one file"):
        weights.read(tmp_path)
    with pytest.raises(ValueError, match="the text has 7 positions, length is 5"):
        jax.eval_shape(task_of("gpt2", length=5).init, jax.random.key(0))
