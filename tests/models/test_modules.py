"""Every registered model: size, one client against stacked clients, and what it claims to compute."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_lab import models
from fedjax_lab.models.lstm import LSTM, _gate_bias, _states, recur
from fedjax_lab.models.resnet import NORMS, RELU_GAIN
from fedjax_lab.models.vit import patches

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of the time here
TEXT, GRAPH = {"charlstm", "transformer"}, {"gcn", "sage"}
SIZES = [  # what the docstrings say
    ("logreg", (28, 28, 1), 10, {}, 7_850), ("svm", (28, 28, 1), 10, {}, 7_850), ("linreg", (13,), 1, {}, 14), ("mlp", (8, 8, 1), 10, {"widths": (32, 16)}, 2_778),
    ("2nn", (28, 28, 1), 10, {}, 199_210), ("cnn", (28, 28, 1), 10, {}, 1_663_370), ("lenet5", (28, 28, 1), 10, {}, 61_706),
    ("lenet5", (32, 32, 1), 10, {}, 61_706), ("lenet5", (32, 32, 3), 10, {}, 62_006), ("gncnn", (32, 32, 3), 10, {}, 188_970),
    *(("resnet8", (32, 32, 3), 10, {"norm": norm}, 77_706 if norm == "none" else 78_042) for norm in NORMS),
    *(("resnet18", (32, 32, 3), 10, {"norm": norm}, 11_169_162 if norm == "none" else 11_173_962) for norm in NORMS),
    ("charlstm", (80,), 90, {}, 820_522), ("transformer", (128,), 65, {}, 216_641), ("vit", (32, 32, 3), 10, {}, 208_074),
    ("backbone", (28, 28, 1), 10, {"family": "vit"}, 205_066),
    ("gcn", (5, 1433), 7, {}, 23_063), ("sage", (5, 1433), 7, {}, 46_103), ("mf", (2,), 1, {"users": 10, "items": 40}, 1_051),
]
SMALL = [  # quick to compile, every code path
    ("logreg", (5,), 3, {}), ("svm", (5,), 3, {}), ("linreg", (4,), 1, {}), ("mlp", (4, 4), 3, {"widths": (6,)}), ("2nn", (5,), 3, {"widths": (4, 4)}),
    ("cnn", (8, 8, 1), 3, {"widths": (2, 3), "hidden": 5}), ("lenet5", (12, 12, 1), 3, {}),
    ("gncnn", (8, 8, 3), 3, {"widths": (4, 4), "hidden": 5, "groups": 2}),
    ("resnet8", (4, 4, 3), 3, {"norm": "batch", "blocks": (1, 1), "width": 4, "lowering": "xla"}),
    ("resnet8", (4, 4, 3), 3, {"norm": "weight_standardized", "blocks": (1,), "width": 4, "lowering": "xla"}),
    ("charlstm", (6,), 7, {"widths": (5, 4), "embedding": 3}), ("transformer", (6,), 7, {"width": 8, "depth": 1, "heads": 2}),
    ("transformer", (6,), 3, {"vocabulary": 7, "width": 8, "depth": 1, "heads": 2, "dropout": 0.1}),
    ("vit", (8, 8, 1), 3, {"width": 8, "depth": 1, "heads": 2}), ("backbone", (8, 8, 1), 3, {"family": "vit", "width": 8, "depth": 1, "heads": 2}),
    ("gcn", (6, 4), 3, {"widths": (5,)}), ("sage", (6, 4), 3, {"widths": (5,)}),
    ("mf", (2,), 1, {"users": 4, "items": 4, "rank": 3}),
]


def a_batch(name, shape, classes, options, size=4, seed=0):
    draw = np.random.default_rng(seed)
    whole = name in TEXT or name == "mf"
    x = draw.integers(1, 4, (size, *shape)) if whole else draw.normal(size=(size, *shape))
    labels = shape if name in TEXT and "vocabulary" not in options else shape[:1] if name in GRAPH else ()
    y = draw.normal(size=size) if name in ("linreg", "mf") else draw.integers(0, classes, (size, *labels))
    batch = {"x": jnp.asarray(x, jnp.int32 if whole else jnp.float32), "y": jnp.asarray(y, jnp.float32 if y.dtype.kind == "f" else jnp.int32),
             "mask": jnp.arange(size) < size - 1}
    return batch | ({"edges": jnp.asarray(draw.integers(-1, 6, (size, 9, 2)), jnp.int32)} if name in GRAPH else {})


def named(rows):
    return [f"{row[0]}-{row[3].get('norm', len(row[3]))}" for row in rows]


@pytest.mark.parametrize("name, shape, classes, options, count", SIZES, ids=named(SIZES))
def test_parameter_count(name, shape, classes, options, count):
    task = models.build(name, a_batch(name, shape, classes, options), classes, **options)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(params["params"] if "stats" in params else params)) == count
    assert ("stats" in params) == (options.get("norm") == "batch")


@pytest.mark.parametrize("name, shape, classes, options, count", SIZES, ids=named(SIZES))
def test_the_docstring_says_the_count(name, shape, classes, options, count):
    text = type(models.MODELS[name](shape, classes, **options)).__doc__
    assert f"{count:,}" in text or (name == "mlp" and "the sum of (in + 1) * out over the layers" in text)


def block(d):
    return 12 * d * d + 13 * d


@pytest.mark.parametrize("module, shape, count", [  # the docstrings' formulas, where they differ from what SIZES has
    (models.MLP((7, 5), 3), (4,), 5 * 7 + 8 * 5 + 6 * 3), (models.LogisticRegression(3), (4, 2), 8 * 3 + 3), (LSTM(6), (5, 3), 4 * 6 * (3 + 6 + 1)),
    (models.Conv(6, (2, 3)), (8, 8, 5), 2 * 3 * 5 * 6 + 6), (models.Conv(6, (2, 3), standardized=True), (8, 8, 5), 2 * 3 * 5 * 6 + 6 + 6),
    (models.Transformer(3, vocabulary=11, width=8, depth=2, heads=2, length=9), "text", (11 + 9 + 2) * 8 + 2 * block(8) + 9 * 3),
    (models.ViT(5, patch=2, width=8, depth=3, heads=2), (6, 4, 3), (4 * 3 + 1) * 8 + (6 + 2) * 8 + 3 * block(8) + 2 * 8 + 9 * 5),
    (models.GCN(3, (7,)), "graph", 6 * 7 + 8 * 3), (models.GraphSAGE(3, (7,)), "graph", 11 * 7 + 15 * 3),
    (models.MatrixFactorization(4, 5, 3), "pairs", 9 * 4 + 1),
], ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "")
def test_the_docstrings_formulas(module, shape, count):
    whole = {"text": (6,), "pairs": (2,)}.get(shape)
    inputs = [jnp.zeros((1, *(whole or ((2, 5) if shape == "graph" else shape))), jnp.int32 if whole else jnp.float32)]
    inputs += [jnp.zeros((1, 4, 2), jnp.int32)] if shape == "graph" else []
    assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *inputs))) == count


@pytest.mark.parametrize("name, shape, classes, options", SMALL, ids=named(SMALL))
def test_head_and_body_are_apart_by_path(name, shape, classes, options):
    """Features need nothing of the sub-tree "head", and the head nothing else."""
    batch = a_batch(name, shape, classes, options)
    task = models.build(name, batch, classes, **options)
    params = jax.eval_shape(task.init, jax.random.key(0))
    if name == "mf":
        assert task.features is task.head is None and {"user", "item"} < set(params)
        return
    layers = params.get("params", params)
    body, head = ({k: v for k, v in layers.items() if (k == "head") == wanted} for wanted in (False, True))
    whole = [{"params": part, "stats": params["stats"]} if "stats" in params else part for part in (body, head)]
    z = jax.eval_shape(task.features, whole[0], batch)
    outputs = jax.eval_shape(task.head, whole[1], z)
    assert outputs == jax.eval_shape(task.apply, params, batch) and z.shape[-1] * classes + classes == sum(a.size for a in jax.tree.leaves(head))


def test_every_model_is_here():
    assert {row[0] for row in SIZES} == set(models.MODELS) == {row[0] for row in SMALL} | {"resnet18"}


@pytest.mark.parametrize("name, shape, classes, options", [
    pytest.param(*row, marks=[pytest.mark.full] if row[0] in ("charlstm", "resnet8") else []) for row in SMALL], ids=named(SMALL))
def test_stacked_clients_equal_clients_one_at_a_time(name, shape, classes, options):
    batch = a_batch(name, shape, classes, options)
    task = models.build(name, batch, classes, **options)
    keys = jax.random.split(jax.random.key(0), 3)
    draw = np.random.default_rng(0)
    stack = jax.tree.map(lambda a: np.abs(draw.normal(0.1, 0.3, a.shape)).astype(a.dtype), jax.eval_shape(jax.vmap(task.init), keys))

    def forward(params, key):
        outputs = task.apply(params, batch)
        split = task.head(params, task.features(params, batch)) if task.features else outputs
        return outputs, split, task.loss(params, batch, key), task.metrics(outputs, batch)

    def both(params, key):
        return forward(params, key), jax.grad(lambda p: task.loss(p, batch, key)[0])(params)

    own_derivative = name in ("cnn", "charlstm")
    (stacked, gradient), alone = jit(jax.vmap(both))(stack, keys), jit(both if own_derivative else forward)
    for i in range(3):
        single = alone(jax.tree.map(lambda a, i=i: a[i], stack), keys[i])
        for a, b in zip(jax.tree.leaves((stacked, gradient) if own_derivative else stacked), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-3, atol=2e-4)
    outputs, split, (loss, _), metrics = stacked
    np.testing.assert_allclose(split, outputs, rtol=1e-4, atol=1e-5)
    assert np.isfinite(loss).all() and np.ptp(loss) > 0
    assert metrics["loss"].shape == (3, 4) and ("accuracy" in metrics) == (name not in ("linreg", "mf"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient.get("params", gradient)):
        if "'key'" not in str(path) or "bias" not in str(path):  # a bias of the keys shifts all scores alike, softmax cannot see it
            assert np.isfinite(leaf).all() and (leaf != 0).any(), path


def lstm_loops(x, params):
    """One layer, gates i, f, g, o, as in the textbook."""
    kernel, bias, recurrent = (np.asarray(a, np.float64) for a in (params["input"]["kernel"], params["input"]["bias"], params["recurrent"]))
    h = c = np.zeros((x.shape[0], recurrent.shape[0]))
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + bias + h @ recurrent, 4, 1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        states.append(h)
    return np.stack(states, 1)


def test_lstm_value_and_derivatives():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    layer = LSTM(4)
    apply, variables = run(layer, x)
    params = variables["params"]
    np.testing.assert_array_equal(_gate_bias(None, (8,)), [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(apply(variables, x), lstm_loops(np.asarray(x), params), rtol=1e-4, atol=1e-5)
    z, w = jax.random.normal(jax.random.key(2), (5, 2, 16)), params["recurrent"]

    @jit
    def derive(z, w):
        def both(f):
            gradient = jax.grad(lambda *a: (jnp.sin(f(*a)) ** 2).sum(), (0, 1))
            return gradient(z, w), jax.jvp(gradient, (z, w), (z, w))[1]
        return both(recur), both(_states)

    for a, b in zip(*map(jax.tree.leaves, derive(z, w))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def run(module, *inputs):
    """The compiled function, and variables drawn in numpy."""
    draw, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jit(module.apply), jax.tree.map(lambda a: draw.normal(0.1, 0.3, a.shape).astype(a.dtype), shapes)


def test_causal_transformer_sees_the_past_only():
    x = jnp.array([[1, 2, 3, 4, 5, 6]])
    apply, variables = run(models.Transformer(9, width=8, depth=2, heads=2), x)
    moved = np.abs(apply(variables, x.at[0, 3].set(8)) - apply(variables, x)).max(2)[0]
    assert (moved[:3] == 0).all() and (moved[3:] > 1e-6).all()


def test_classifying_transformer_ignores_padding():
    x = jnp.array([[1, 2, 3, 0, 0, 0]])
    apply, variables = run(models.Transformer(3, vocabulary=9, causal=False, width=8, depth=2, heads=2, length=8), x)
    np.testing.assert_allclose(apply(variables, x[:, :3]), apply(variables, x), rtol=1e-4, atol=1e-5)
    assert np.abs(apply(variables, x.at[0, 3].set(1)) - apply(variables, x)).max() > 1e-4
    with pytest.raises(ValueError, match="the text has 9 positions, length is 8"):
        apply(variables, jnp.zeros((1, 9), jnp.int32))


@pytest.mark.parametrize("module, x, more", [
    ("transformer", jnp.zeros((1, 6), jnp.int32), set()), ("vit", jnp.zeros((1, 8, 8, 1)), {"patch"})])
def test_dense_hook_makes_every_product(module, x, more):
    """With a factory of low-rank layers no other kernel is left."""

    class LowRank(nn.Module):
        features: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features, name="base")(nn.Dense(1, use_bias=False, name="down")(x))

    task = models.build(module, {"x": x, "y": jnp.zeros(1, jnp.int32)}, 3, width=8, depth=1, heads=2, dense=LowRank)
    params = jax.eval_shape(task.init, jax.random.key(0))
    kernels = [[k.key for k in path] for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert {path[-2] for path in kernels} == {"base", "down"}
    assert {path[-3] for path in kernels} == {"query", "key", "value", "out", "up", "down", "head"} | more


def test_attention_in_numpy():
    from fedjax_lab.models.transformer import Attention
    x = jax.random.normal(jax.random.key(0), (1, 4, 6))
    apply, variables = run(Attention(2, nn.Dense), x)
    p = variables["params"]
    q, k, v = (np.asarray(x[0]) @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    heads = []
    for at in (slice(0, 3), slice(3, 6)):
        scores = np.exp(q[:, at] @ k[:, at].T / np.sqrt(3))
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, at])
    want = np.concatenate(heads, 1) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(apply(variables, x)[0], want, rtol=1e-4, atol=1e-5)


def test_patches_are_row_major():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = patches(x, 2)
    assert found.shape == (2, 6, 12)
    for i in range(6):
        row, column = 2 * (i // 3), 2 * (i % 3)
        np.testing.assert_array_equal(found[1, i], x[1, row:row + 2, column:column + 2].ravel())
    with pytest.raises(ValueError, match="patch 5 does not divide images of 4x6"):
        patches(x, 5)


EDGES = np.array([[0, 1], [1, 0], [1, 2], [2, 1], [-1, -1], [3, -1]])  # a path 0 - 1 - 2, node 3 alone, two rows of padding


def adjacency():
    a = np.zeros((4, 4))
    for sender, receiver in EDGES[:4]:
        a[receiver, sender] = 1
    return a


def test_graph_convolution_in_numpy():
    x = jax.random.normal(jax.random.key(0), (1, 4, 5))
    edges = jnp.asarray(EDGES)[None]
    apply, variables = run(models.GCN(3, (6,)), x, edges)
    p = variables["params"]
    loops = adjacency() + np.eye(4)
    s = loops / np.sqrt(np.outer(loops.sum(0), loops.sum(0)))
    hidden = np.maximum(s @ np.asarray(x[0]) @ p["body_0"]["kernel"] + p["bias_0"], 0)
    want = s @ hidden @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(apply(variables, x, edges)[0], want, rtol=1e-4, atol=1e-5)


def test_graph_sage_in_numpy():
    x = jax.random.normal(jax.random.key(0), (1, 4, 5))
    edges = jnp.asarray(EDGES)[None]
    apply, variables = run(models.GraphSAGE(3, (6,)), x, edges)
    p = variables["params"]
    mean = adjacency() / np.maximum(adjacency().sum(1, keepdims=True), 1)
    hidden = np.maximum(np.asarray(x[0]) @ p["own_0"]["kernel"] + p["own_0"]["bias"] + mean @ np.asarray(x[0]) @ p["neighbors_0"]["kernel"], 0)
    want = np.concatenate([hidden, mean @ hidden], 1) @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(apply(variables, x, edges)[0], want, rtol=1e-4, atol=1e-5)


def test_factorization_in_numpy():
    pairs = jnp.array([[0, 2], [3, 1]])
    apply, variables = run(models.MatrixFactorization(4, 5, 3), pairs)
    p = variables["params"]
    user, item = (np.asarray(p[n]["embedding"]) for n in ("user", "item"))
    want = [p["mean"] + user[u, 3] + item[i, 3] + user[u, :3] @ item[i, :3] for u, i in np.asarray(pairs)]
    np.testing.assert_allclose(apply(variables, pairs), want, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_what_normalization_mixes_and_forgets(norm):
    """Only batch statistics mix examples; all but "none" make the output blind to the scale of a kernel."""
    x = 3 * jax.random.normal(jax.random.key(0), (3, 4, 4, 3))
    module = models.ResNet(3, (1,), 4, norm=norm, groups=2, lowering="xla")

    @jit
    def outputs(key):
        variables = module.init(key, x)
        params = variables["params"]
        larger = params | {"stem": params["stem"] | {"kernel": 5 * params["stem"]["kernel"]}}

        def train(x, params=params):
            return module.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])[0]

        return train(x), train(x[:1]), train(x, larger)

    together, alone, scaled = outputs(jax.random.key(1))
    assert np.allclose(together[0], alone[0], rtol=1e-3, atol=1e-4) == (norm != "batch")
    assert np.allclose(together, scaled, rtol=1e-3, atol=1e-3) == (norm != "none")


def test_relu_gain_keeps_the_variance():
    z = jax.random.normal(jax.random.key(0), (100_000,))
    np.testing.assert_allclose((jax.nn.relu(z) * RELU_GAIN).var(), 1, rtol=0.02)


def test_resnet_and_lenet_errors():
    x = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(ValueError, match="norm 'instance' is not one of batch, group, layer, none, weight_standardized"):
        models.ResNet(3, norm="instance").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="images are 8x8, with padding SAME at least 12x12"):
        models.LeNet5().init(jax.random.key(0), x)
