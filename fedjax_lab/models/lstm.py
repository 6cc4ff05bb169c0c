"""Character LSTM (Hochreiter and Schmidhuber, 1997), as in the FedAvg paper's Shakespeare task."""
from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_lab.models.conv import alike


def _states(z: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Hidden states [T, B, H] of the projected inputs z [T, B, 4H] (gates i, f, g, o) and the recurrent kernel [H, 4H]."""

    def step(carry, projected):
        h, c = carry
        i, f, g, o = jnp.split(projected + h @ recurrent, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = 0 * z[0, :, :recurrent.shape[0]]  # varies over a mesh as z does
    return jax.lax.scan(step, (zero, zero), z)[1]


@jax.custom_jvp
def recur(z: jax.Array, recurrent: jax.Array) -> jax.Array:
    """`_states` with a cheaper gradient: that of the kernel is one product over all steps, not a sum carried through the loop."""
    return _states(z, recurrent)


@recur.defjvp
def _recur_jvp(primals, tangents):
    """The tangent is the transpose of the gradient wanted, as in `conv`."""
    z, recurrent = primals
    states, pull = jax.vjp(lambda z: _states(z, recurrent), z)
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])

    def gradients(g):
        (dz,) = pull(g)
        return dz, jnp.einsum("tbh,tbg->hg", before, dz)

    return states, jax.linear_transpose(gradients, states)(tangents)[0]


def _gate_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Zero, and one for the forget gate (Jozefowicz et al., ICML 2015)."""
    quarter = shape[0] // 4
    return jnp.zeros(shape, dtype).at[quarter:2 * quarter].set(1)


class LSTM(nn.Module):
    """LSTM layer [B, T, I] -> [B, T, width]: 4 * width * (I + width + 1) parameters."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        z = nn.Dense(4 * self.width, bias_init=_gate_bias, name="input")(x)
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.width, 4 * self.width))
        return recur(*alike(z.swapaxes(0, 1), recurrent)).swapaxes(0, 1)


class CharLSTM(nn.Module):
    """Next-character model: embedding 8, two LSTM layers of 256, logits at every position (McMahan et al., AISTATS 2017).

    int32 characters [B, T] to logits [B, T, classes]. With 90 characters: 820,522 parameters. `vocabulary` is the number of input
    characters, by default that of classes.
    """

    classes: int = 90
    vocabulary: int | None = None
    embedding: int = 8
    widths: tuple[int, ...] = (256, 256)

    def setup(self) -> None:
        self.embed = nn.Embed(self.vocabulary or self.classes, self.embedding)
        self.layers = [LSTM(width) for width in self.widths]
        self.head = nn.Dense(self.classes)

    def features(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
