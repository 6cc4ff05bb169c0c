"""What lives on the edges of a graph: at each end a row per neighbor, and what one end sends the other gets."""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab.parts.mixing import places, text


class Ties(NamedTuple):
    """ids: int32 [N, K], the neighbors of every node;  back: int32 [N, K], the place of the node among its neighbor's;  there: bool [N, K],
    False beyond the node's degree;  weight: float32 [N, K], of the edge, the same at both ends."""

    ids: jax.Array
    back: jax.Array
    there: jax.Array
    weight: jax.Array

    def heard(self, sent: jax.Array, node: jax.Array) -> jax.Array:
        """[K, ...] what a node gets from its neighbors, of [N, K, ...] what all nodes have for theirs."""
        return sent[self.ids[node], self.back[node]]


def ties(graph: str, nodes: int, seed: int, file: str | None = None) -> Ties:
    """The edges of a graph that a text names, as in --graph.

    Args:
      file: of positions, see places.positions: an edge weighs exp(-distance) of its ends; 1 where None.

    Raises:
      ValueError: an unknown graph, or one that is directed or another one in every round, or a file without the positions, in one line.
    """
    topology = text.from_text(graph, nodes, seed)
    links = topology.arrays
    if topology.directed or not hasattr(links, "ids") or np.ndim(links.ids) != 2:
        raise ValueError(f"--graph={graph}: what lives on edges needs an undirected graph that stays the same; ring, torus and others are")
    ids, there = np.asarray(links.ids), np.asarray(links.weight) > 0
    place = {(i, j): k for i in range(nodes) for k, j in enumerate(ids[i]) if there[i, k]}
    back = np.array([[place.get((j, i), 0) for j in row] for i, row in enumerate(ids.tolist())], np.int32)
    weight = np.ones(ids.shape)
    if file is not None:
        weight = np.exp(-np.take_along_axis(places.distances(places.positions(file, nodes)), ids, 1))
    return Ties(jnp.asarray(ids), jnp.asarray(back), jnp.asarray(there), jnp.asarray(weight, jnp.float32))
