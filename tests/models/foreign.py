"""Tiny models of the public families as plain numpy: random tensors under the families' own names, and their forward pass."""
from __future__ import annotations

import math

import numpy as np

D, H, L, V, T, HIDDEN = 12, 3, 2, 17, 7, 20
rng = np.random.default_rng(0)


def draw(*shape):
    return (0.3 * rng.normal(size=shape)).astype(np.float32)


def dense(name, n_in, n_out, bias=True):
    return {f"{name}.weight": draw(n_out, n_in)} | ({f"{name}.bias": draw(n_out)} if bias else {})


def norm(name, bias=True, old=False):
    scale, shift = ("gamma", "beta") if old else ("weight", "bias")
    return {f"{name}.{scale}": 1 + draw(D)} | ({f"{name}.{shift}": draw(D)} if bias else {})


def linear(t, name, x):
    return x @ t[name + ".weight"].T + t.get(name + ".bias", 0.0)


def layer_norm(t, name, x, eps, old=False):
    scale, shift = ("gamma", "beta") if old else ("weight", "bias")
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * t[f"{name}.{scale}"] + t[f"{name}.{shift}"]


def rms_norm(t, name, x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * t[name + ".weight"]


def attend(q, k, v, causal, keep=None):
    """One head at a time, one query at a time. q [B, T, D], k and v [B, T, heads of their own times side]."""
    side, out = D // H, np.zeros_like(q)
    group = H // (k.shape[-1] // side)
    for b in range(len(q)):
        for h in range(H):
            mine, theirs = slice(h * side, (h + 1) * side), slice(h // group * side, (h // group + 1) * side)
            for i in range(q.shape[1]):
                seen = [j for j in range(q.shape[1]) if (not causal or j <= i) and (keep is None or keep[b, j])]
                s = np.array([q[b, i, mine] @ k[b, j, theirs] / math.sqrt(side) for j in seen])
                w = np.exp(s - s.max())
                out[b, i, mine] = (w / w.sum()) @ v[b, seen, theirs]
    return out


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick(x):
    return x / (1 + np.exp(-1.702 * x))


def gpt2(prefix=""):
    t = {"wte.weight": draw(V, D), "wpe.weight": draw(T, D), **norm("ln_f")}
    for i in range(L):
        h = f"h.{i}."
        t |= norm(h + "ln_1") | norm(h + "ln_2") | {h + "attn.bias": np.tri(T, dtype=np.float32)[None, None], h + "attn.masked_bias": draw()}
        for name, (m, n) in {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D), "mlp.c_proj": (4 * D, D)}.items():
            t |= {f"{h}{name}.weight": draw(m, n), f"{h}{name}.bias": draw(n)}
    return {prefix + k: v for k, v in t.items()} | ({"lm_head.weight": t["wte.weight"]} if prefix else {})


def gpt2_logits(t, x):
    t = {k.removeprefix("transformer."): v for k, v in t.items()}
    z = t["wte.weight"][x] + t["wpe.weight"][: x.shape[1]]
    for i in range(L):
        h = f"h.{i}."
        y = layer_norm(t, h + "ln_1", z, 1e-5) @ t[h + "attn.c_attn.weight"] + t[h + "attn.c_attn.bias"]
        z = z + attend(*np.split(y, 3, -1), True) @ t[h + "attn.c_proj.weight"] + t[h + "attn.c_proj.bias"]
        y = gelu_tanh(layer_norm(t, h + "ln_2", z, 1e-5) @ t[h + "mlp.c_fc.weight"] + t[h + "mlp.c_fc.bias"])
        z = z + y @ t[h + "mlp.c_proj.weight"] + t[h + "mlp.c_proj.bias"]
    return layer_norm(t, "ln_f", z, 1e-5) @ t["wte.weight"].T


def llama():
    shared = D // H
    t = {"model.embed_tokens.weight": draw(V, D), "lm_head.weight": draw(V, D), **norm("model.norm", False)}
    for i in range(L):
        h = f"model.layers.{i}."
        t |= norm(h + "input_layernorm", False) | norm(h + "post_attention_layernorm", False) | {h + "self_attn.rotary_emb.inv_freq": draw(2)}
        for name, n in {"q": D, "k": shared, "v": shared, "o": D}.items():
            t |= dense(f"{h}self_attn.{name}_proj", D, n, False)
        t |= dense(h + "mlp.gate_proj", D, HIDDEN, False) | dense(h + "mlp.up_proj", D, HIDDEN, False) | dense(h + "mlp.down_proj", HIDDEN, D, False)
    return t


def rotate(x, theta=10000.0):
    """Each head's numbers i and i + side / 2 as a complex number, turned by its position."""
    side = D // H
    out = x.copy()
    for start in range(0, x.shape[-1], side):
        for i in range(side // 2):
            a, b = start + i, start + i + side // 2
            z = (x[..., a] + 1j * x[..., b]) * np.exp(1j * np.arange(x.shape[1]) * theta ** (-2 * i / side))
            out[..., a], out[..., b] = z.real, z.imag
    return out


def llama_logits(t, x):
    z = t["model.embed_tokens.weight"][x]
    for i in range(L):
        h = f"model.layers.{i}."
        y = rms_norm(t, h + "input_layernorm", z, 1e-6)
        q, k, v = (linear(t, f"{h}self_attn.{name}_proj", y) for name in "qkv")
        z = z + linear(t, h + "self_attn.o_proj", attend(rotate(q), rotate(k), v, True))
        y = rms_norm(t, h + "post_attention_layernorm", z, 1e-6)
        gate = linear(t, h + "mlp.gate_proj", y)
        z = z + linear(t, h + "mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(t, h + "mlp.up_proj", y))
    return linear(t, "lm_head", rms_norm(t, "model.norm", z, 1e-6))


def bert(prefix="bert.", old=False):
    t = {"embeddings.word_embeddings.weight": draw(V, D), "embeddings.position_embeddings.weight": draw(T, D),
         "embeddings.token_type_embeddings.weight": draw(2, D), "embeddings.position_ids": np.arange(T)[None], **norm("embeddings.LayerNorm", old=old)}
    for i in range(L):
        h = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            t |= dense(f"{h}attention.self.{name}", D, D)
        t |= dense(h + "attention.output.dense", D, D) | norm(h + "attention.output.LayerNorm", old=old)
        t |= dense(h + "intermediate.dense", D, HIDDEN) | dense(h + "output.dense", HIDDEN, D) | norm(h + "output.LayerNorm", old=old)
    t |= dense("pooler.dense", D, D)
    return {prefix + k: v for k, v in t.items()} | {"cls.predictions.bias": draw(V)} | dense("classifier", D, 4)


def bert_logits(t, x, old=False):
    t = {k.removeprefix("bert."): v for k, v in t.items()}
    table = t["embeddings.word_embeddings.weight"][x] + t["embeddings.position_embeddings.weight"][: x.shape[1]]
    z = layer_norm(t, "embeddings.LayerNorm", table + t["embeddings.token_type_embeddings.weight"][0], 1e-12, old)
    for i in range(L):
        h = f"encoder.layer.{i}."
        q, k, v = (linear(t, f"{h}attention.self.{name}", z) for name in ("query", "key", "value"))
        z = layer_norm(t, h + "attention.output.LayerNorm", z + linear(t, h + "attention.output.dense", attend(q, k, v, False, x != 0)), 1e-12, old)
        y = linear(t, h + "output.dense", gelu(linear(t, h + "intermediate.dense", z)))
        z = layer_norm(t, h + "output.LayerNorm", z + y, 1e-12, old)
    return linear(t, "classifier", np.tanh(linear(t, "pooler.dense", z[:, 0])))


SIDE, CHANNELS, P = 8, 3, 4


def convolved(weight, x):
    """Patches of images [B, H, W, C] by a strided convolution [D, C, p, p], in row-major order."""
    out = []
    for top in range(0, x.shape[1], P):
        for left in range(0, x.shape[2], P):
            out.append(np.einsum("bhwc,dchw->bd", x[:, top:top + P, left:left + P], weight))
    return np.stack(out, 1)


def vit(prefix="vit."):
    t = {"embeddings.cls_token": draw(1, 1, D), "embeddings.position_embeddings": draw(1, 5, D),
         "embeddings.patch_embeddings.projection.weight": draw(D, CHANNELS, P, P), "embeddings.patch_embeddings.projection.bias": draw(D),
         **norm("layernorm"), **dense("pooler.dense", D, D)}
    for i in range(L):
        h = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            t |= dense(f"{h}attention.attention.{name}", D, D)
        t |= dense(h + "attention.output.dense", D, D) | dense(h + "intermediate.dense", D, HIDDEN) | dense(h + "output.dense", HIDDEN, D)
        t |= norm(h + "layernorm_before") | norm(h + "layernorm_after")
    return {prefix + k: v for k, v in t.items()} | dense("classifier", D, 4)


def vit_logits(t, x):
    t = {k.removeprefix("vit."): v for k, v in t.items()}
    z = convolved(t["embeddings.patch_embeddings.projection.weight"], x) + t["embeddings.patch_embeddings.projection.bias"]
    z = np.concatenate([np.repeat(t["embeddings.cls_token"], len(x), 0), z], 1) + t["embeddings.position_embeddings"]
    for i in range(L):
        h = f"encoder.layer.{i}."
        y = layer_norm(t, h + "layernorm_before", z, 1e-12)
        q, k, v = (linear(t, f"{h}attention.attention.{name}", y) for name in ("query", "key", "value"))
        z = z + linear(t, h + "attention.output.dense", attend(q, k, v, False))
        z = z + linear(t, h + "output.dense", gelu(linear(t, h + "intermediate.dense", layer_norm(t, h + "layernorm_after", z, 1e-12))))
    return linear(t, "classifier", layer_norm(t, "layernorm", z, 1e-12)[:, 0])


def clip():
    t = {"logit_scale": np.float32(2.0) + draw(), "text_model.embeddings.token_embedding.weight": draw(V, D),
         "text_model.embeddings.position_embedding.weight": draw(T, D), "text_model.embeddings.position_ids": np.arange(T)[None],
         "vision_model.embeddings.class_embedding": draw(D), "vision_model.embeddings.patch_embedding.weight": draw(D, CHANNELS, P, P),
         "vision_model.embeddings.position_embedding.weight": draw(5, D), "vision_model.embeddings.position_ids": np.arange(5)[None],
         **norm("vision_model.pre_layrnorm"), **norm("vision_model.post_layernorm"), **norm("text_model.final_layer_norm"),
         **dense("visual_projection", D, 6, False), **dense("text_projection", D, 6, False)}
    for tower in ("text", "vision"):
        for i in range(L):
            h = f"{tower}_model.encoder.layers.{i}."
            for name in ("q", "k", "v", "out"):
                t |= dense(f"{h}self_attn.{name}_proj", D, D)
            t |= dense(h + "mlp.fc1", D, HIDDEN) | dense(h + "mlp.fc2", HIDDEN, D) | norm(h + "layer_norm1") | norm(h + "layer_norm2")
    return t


def _tower(t, tower, z, causal):
    for i in range(L):
        h = f"{tower}_model.encoder.layers.{i}."
        y = layer_norm(t, h + "layer_norm1", z, 1e-5)
        z = z + linear(t, h + "self_attn.out_proj", attend(*(linear(t, f"{h}self_attn.{name}_proj", y) for name in "qkv"), causal))
        z = z + linear(t, h + "mlp.fc2", quick(linear(t, h + "mlp.fc1", layer_norm(t, h + "layer_norm2", z, 1e-5))))
    return z


def clip_logits(t, x, text):
    z = convolved(t["vision_model.embeddings.patch_embedding.weight"], x)
    z = np.concatenate([np.tile(t["vision_model.embeddings.class_embedding"], (len(x), 1, 1)), z], 1) + t["vision_model.embeddings.position_embedding.weight"]
    image = _tower(t, "vision", layer_norm(t, "vision_model.pre_layrnorm", z, 1e-5), False)[:, 0]
    image = linear(t, "visual_projection", layer_norm(t, "vision_model.post_layernorm", image, 1e-5))
    z = t["text_model.embeddings.token_embedding.weight"][text] + t["text_model.embeddings.position_embedding.weight"][: text.shape[1]]
    words = layer_norm(t, "text_model.final_layer_norm", _tower(t, "text", z, True), 1e-5)[np.arange(len(text)), text.argmax(1)]
    words = linear(t, "text_projection", words)
    image, words = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, words))
    return np.exp(t["logit_scale"]) * image @ words.T
