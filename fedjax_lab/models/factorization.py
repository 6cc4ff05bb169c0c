"""Matrix factorization for ratings."""
from __future__ import annotations

import jax
from flax import linen as nn


class MatrixFactorization(nn.Module):
    """rating = mean + bias_u + bias_i + <p_u, q_i> (Koren, Bell and Volinsky, 2009); pairs int32 [B, 2] (user, item) to [B].

    (users + items) (rank + 1) + 1 parameters: 1,051 for 10 users, 40 items and rank 20. The users' rows are the sub-tree
    "user", which a personal method keeps at home.
    """

    users: int
    items: int
    rank: int = 20

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        near_zero = nn.initializers.normal(0.1)
        user = nn.Embed(self.users, self.rank + 1, embedding_init=near_zero, name="user")(x[:, 0])
        item = nn.Embed(self.items, self.rank + 1, embedding_init=near_zero, name="item")(x[:, 1])
        mean = self.param("mean", nn.initializers.zeros, ())
        return mean + user[:, -1] + item[:, -1] + (user[:, :-1] * item[:, :-1]).sum(-1)
