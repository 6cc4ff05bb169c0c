"""Convolution lowerings and pooling against loops in numpy and against jax's own derivatives."""
from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax_lab.models.conv import LOWERINGS, Conv, choose, conv, max_pool, standardize

NAMES = LOWERINGS[1:]
CASES = [((1, 1), "SAME"), ((1, 1), "VALID"), ((2, 2), "SAME"), ((2, 3), "VALID"), ((1, 1), ((2, 0), (1, 3))), ((3, 2), ((0, 2), (1, 1)))]


def arrays(*shapes, seed=0):
    draw = np.random.default_rng(seed).normal
    return [jnp.asarray(draw(size=shape), jnp.float32) for shape in shapes]


def loops(x, kernel, strides, pads):
    """The definition, one output at a time."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    h, w, _, out = kernel.shape
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], (h, w), strides))
    y = np.zeros((x.shape[0], rows, columns, out))
    for i, j in itertools.product(range(rows), range(columns)):
        window = x[:, i * strides[0]:i * strides[0] + h, j * strides[1]:j * strides[1] + w]
        y[:, i, j] = np.tensordot(window, kernel, 3)
    return y


def jax_own(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("strides, padding", CASES)
def test_values_and_gradients(strides, padding):
    x, kernel = arrays((2, 8, 7, 3), (3, 2, 3, 4))
    pads = lax.padtype_to_pads((8, 7), (3, 2), strides, padding) if isinstance(padding, str) else padding

    @jax.jit
    def derive(x, kernel):
        def one(f):
            y, pull = jax.vjp(f, x, kernel)
            return y, *pull(jnp.sin(3 * y))
        return one(lambda *a: jax_own(*a, strides, padding)), *(one(lambda *a, n=n: conv(*a, strides, padding, n)) for n in NAMES)

    theirs, *ours = derive(x, kernel)
    for mine in ours:
        np.testing.assert_allclose(mine[0], loops(x, kernel, strides, pads), rtol=1e-4, atol=1e-5)
        for a, b in zip(mine[1:], theirs[1:]):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_second_derivatives_forward_over_reverse_and_twice_reverse():
    x, kernel, v = arrays((2, 6, 6, 2), (3, 2, 2, 2), (3, 2, 2, 2))

    @jax.jit
    def products(kernel, v):
        def both(f):
            gradient = jax.grad(lambda k: (jnp.sin(f(x, k, (2, 2), "SAME")) ** 2).sum())
            return jax.jvp(gradient, (kernel,), (v,))[1], jax.grad(lambda k: (gradient(k) * v).sum())(kernel)
        return both(jax_own), *(both(lambda *a, n=n: conv(*a, n)) for n in NAMES)

    (want, _), *ours = products(kernel, v)
    assert float(jnp.abs(want).max()) > 0.1
    for product in sum(ours, ()):
        np.testing.assert_allclose(product, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_their_own_under_vmap_and_scan(name):
    """Three clients, four SGD steps in a scan under jit: stacked equals one at a time."""
    x, kernels = arrays((3, 2, 6, 6, 2), (3, 3, 2, 2, 4))

    def train(kernel, x):
        def step(k, _):
            return k - 0.01 * jax.grad(lambda k: (conv(x, k, lowering=name) ** 2).mean())(k), None
        return lax.scan(step, kernel, length=4)[0]

    stacked, alone = jax.jit(jax.vmap(train))(kernels, x), jax.jit(train)
    for i in range(3):
        np.testing.assert_allclose(stacked[i], alone(kernels[i], x[i]), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(stacked - kernels).max()) > 1e-4


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_every_convolution_of_a_canonical_gradient_has_the_fast_layout():
    x, kernel = arrays((2, 6, 6, 2), (3, 3, 2, 4))

    def layouts(name):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x, k: (conv(x, k, lowering=name) ** 2).sum(), (0, 1)))(x, kernel)
        found = [e.params["dimension_numbers"] for e in equations(jaxpr.jaxpr) if e.primitive.name == "conv_general_dilated"]
        return [(d.lhs_spec, d.rhs_spec, d.out_spec) for d in found]

    fast = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    assert layouts("canonical") == [fast] * 3
    assert set(layouts("xla")) != {fast}
    assert layouts("patches") == []


@pytest.mark.parametrize("varying", ["x", "kernel"])
def test_gradient_inside_shard_map_where_one_operand_is_replicated(varying):
    mesh = jax.make_mesh((1,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded, whole = jax.sharding.PartitionSpec("clients"), jax.sharding.PartitionSpec()
    x, kernel = arrays((2, 6, 6, 3), (3, 3, 3, 4))

    def gradients(x, kernel):
        return jax.grad(lambda *a: (conv(*a, lowering="canonical") ** 2).sum(), (0, 1))(x, kernel)

    specs = (sharded, whole) if varying == "x" else (whole, sharded)
    mapped = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs))(x, kernel)
    for a, b in zip(mapped, jax.jit(gradients)(x, kernel)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_choice_and_errors():
    assert choose("cpu", (5, 5), (1, 1)) == "canonical"
    assert choose("cpu", (3, 3), (2, 2)) == choose("cpu", (1, 1), (1, 1)) == "patches"
    assert choose("gpu", (5, 5), (1, 1)) == "xla"
    x, kernel = arrays((1, 4, 4, 1), (3, 3, 1, 1))
    with pytest.raises(ValueError, match="lowering 'fast' is not one of auto, xla, canonical, patches"):
        conv(x, kernel, lowering="fast")
    with pytest.raises(ValueError, match="padding 'CIRCULAR' is not one of SAME, VALID"):
        conv(x, kernel, padding="CIRCULAR")


def test_operands_of_two_types_are_promoted():
    x, kernel = arrays((1, 4, 4, 2), (3, 3, 2, 2))
    assert conv(x.astype(jnp.bfloat16), kernel).dtype == jnp.float32


def test_layer_has_the_parameters_and_the_function_of_flax():
    (x,) = arrays((2, 9, 9, 3))
    theirs = nn.Conv(4, (5, 3), (2, 1), padding="SAME")
    variables = jax.tree.map(lambda a: a + 0.1, jax.jit(theirs.init)(jax.random.key(0), x))
    for name in LOWERINGS[:3]:
        mine = Conv(4, (5, 3), (2, 1), lowering=name)
        np.testing.assert_allclose(jax.jit(mine.apply)(variables, x), theirs.apply(variables, x), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(jax.eval_shape(mine.init, jax.random.key(0), x)) == jax.tree.structure(variables)


def test_standardized_kernel():
    (kernel,) = arrays((3, 3, 4, 5))
    flat = standardize(kernel).reshape(-1, 5)
    np.testing.assert_allclose(flat.sum(0), 0, atol=1e-5)
    np.testing.assert_allclose((flat ** 2).sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(standardize(3 * kernel + 2), standardize(kernel), atol=1e-5)
    layer = Conv(5, standardized=True, use_bias=False)
    variables = {"params": {"kernel": kernel, "gain": jnp.arange(5.0)}}
    (x,) = arrays((1, 6, 6, 4))
    np.testing.assert_allclose(layer.apply(variables, x), conv(x, standardize(kernel)) * jnp.arange(5.0), rtol=1e-4, atol=1e-5)


def pool_loops(x, g, window):
    """Values, and the gradient to the first largest element of each window; rows and columns left over belong to no window."""
    y, dx, (h, w) = np.zeros(g.shape), np.zeros(x.shape), window
    for b, i, j, c in np.ndindex(*g.shape):
        block = x[b, i * h:(i + 1) * h, j * w:(j + 1) * w, c]
        row, column = np.unravel_index(block.argmax(), block.shape)
        y[b, i, j, c], dx[b, i * h + row, j * w + column, c] = block.max(), g[b, i, j, c]
    return y, dx


@pytest.mark.parametrize("window, size", [((2, 2), (6, 8)), ((2, 2), (7, 5)), ((3, 2), (9, 9)), ((1, 3), (2, 4))])
def test_pool_against_loops_with_many_ties(window, size):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, *size, 3)), jnp.float32)
    (g,) = arrays((2, size[0] // window[0], size[1] // window[1], 3))
    y, dx = pool_and_gradient(max_pool, x, g, window)
    want, gradient = pool_loops(np.asarray(x), np.asarray(g), window)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(dx, gradient, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def pool_and_gradient(pool, x, g, *how):
    y, pull = jax.vjp(lambda x: pool(x, *how), x)
    return y, pull(jnp.broadcast_to(g, y.shape))[0]


@pytest.mark.parametrize("window, strides, padding", [
    ((2, 2), (2, 2), "SAME"), ((3, 3), (3, 3), "SAME"), ((3, 3), (3, 3), "VALID"), ((2, 2), (1, 1), "SAME"), ((2, 2), (2, 1), "VALID")])
def test_pool_agrees_with_flax(window, strides, padding):
    x, g = arrays((2, 7, 8, 3), (3,))
    for a, b in zip(*(pool_and_gradient(pool, x, g, window, strides, padding) for pool in (max_pool, nn.max_pool))):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_pool_forward_mode_infinities_and_nan():
    x, dx, g = arrays((1, 4, 4, 2), (1, 4, 4, 2), (1, 2, 2, 2))
    tangent = jax.jit(lambda x, dx: jax.jvp(max_pool, (x,), (dx,))[1])(x, dx)
    np.testing.assert_allclose((tangent * g).sum(), (pool_and_gradient(max_pool, x, g, (2, 2))[1] * dx).sum(), rtol=1e-5)
    bottom = jnp.full((1, 2, 2, 1), -jnp.inf)
    np.testing.assert_array_equal(pool_and_gradient(max_pool, bottom, 1.0, (2, 2))[1].ravel(), [1, 0, 0, 0])
    assert np.isnan(jax.jit(max_pool)(bottom.at[0, 1, 0, 0].set(jnp.nan))).all()
