"""Graphs: who talks to whom, from a flag such as --graph=random-regular:4.

A factory takes the number of nodes and a seed for what is drawn once. Links of equal weight 1 / (1 + degree) where all nodes have as many
neighbors, which is what Metropolis-Hastings gives there too; Metropolis-Hastings weights elsewhere.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys
from fedjax_lab.parts.mixing import links as lists
from fedjax_lab.parts.mixing import places
from fedjax_lab.registry import part
from fedjax_lab.spec import Count, Share
from fedjax_lab.types import Links, Topology

DPSGD = "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent"
EXPONENTIAL = "Exponential Graph is Provably Efficient for Decentralized Deep Training"
DFEDSAM = "Improving the Model Consistency of Decentralized Federated Learning"


@part(kind="graph", family="graphs", paper=DPSGD, year=2017)
def ring(nodes: int, seed: int) -> Topology:
    """Two neighbors each, in a circle."""
    return _regular("ring", nodes, _offsets(nodes, 1, nodes - 1))


@part(kind="graph", family="graphs", paper=DPSGD, year=2017)
def full(nodes: int, seed: int) -> Topology:
    """Everybody hears everybody: a step is the mean."""
    return _regular("full", nodes, range(1, nodes))


@part(kind="graph", family="graphs", paper=EXPONENTIAL, year=2021)
def exponential(nodes: int, seed: int) -> Topology:
    """Neighbors at the distances 1, 2, 4, .. on a circle, both ways."""
    reach = [2**k for k in range((nodes - 1).bit_length())]
    return _regular("exponential", nodes, _offsets(nodes, *reach, *(-o for o in reach)))


@part(kind="graph", family="graphs", paper=EXPONENTIAL, year=2021)
def one_peer(nodes: int, seed: int) -> Topology:
    """Every node has one neighbor, on the hypercube along another axis in every round: k rounds give 2^k nodes the mean exactly."""
    if nodes < 2 or nodes & (nodes - 1):
        raise ValueError(f"{nodes} nodes are no hypercube; choose a power of two")
    return lists.periodic("one-peer", [lists.paired(np.arange(nodes) ^ 2**k) for k in range(nodes.bit_length() - 1)])


@part(kind="graph", family="graphs", paper=DFEDSAM, year=2023)
def torus(nodes: int, seed: int, *, rows: Count | None = None) -> Topology:
    """Four neighbors each, on a grid whose edges are joined.

    Args:
      rows: of the grid; by default the most that give at least as many columns.
    """
    rows = rows or max(r for r in range(1, math.isqrt(nodes) + 1) if nodes % r == 0)
    if nodes % rows or min(rows, nodes // rows) < 2:
        raise ValueError(f"{nodes} nodes are no grid of {rows} rows of at least two columns; choose rows that divide the nodes, from 2")
    return _of_networkx("torus", nodes, lambda nx: nx.grid_2d_graph(rows, nodes // rows, periodic=True))


@part(kind="graph", family="graphs", paper="On Random Graphs I", year=1959)
def erdos(nodes: int, seed: int, *, p: Share = 0.3, directed: bool = False) -> Topology:
    """Every pair is linked with the same probability, drawn once.

    Args:
      p: of a link.
      directed: links of both ways are drawn apart; nodes then split what they have among those that hear them (push-sum).
    """
    if not directed:
        return _of_networkx("erdos", nodes, lambda nx: nx.gnp_random_graph(nodes, p, seed))
    import networkx as nx

    graph = nx.gnp_random_graph(nodes, p, seed, directed=True)
    if not nx.is_strongly_connected(graph):
        raise ValueError(_apart(nx.number_strongly_connected_components(graph), nodes))
    return lists.fixed("erdos", lists.split([list(graph.pred[i]) for i in graph], [list(graph.succ[i]) for i in graph]), directed=True)


@part(kind="graph", family="graphs", paper="Collective dynamics of small-world networks", year=1998)
def watts_strogatz(nodes: int, seed: int, *, k: Count = 4, p: Share = 0.1) -> Topology:
    """A circle of near neighbors, of whose links some lead anywhere, drawn once.

    Args:
      k: neighbors each before links are moved.
      p: the probability that a link is moved.
    """
    if not 2 <= k < nodes:
        raise ValueError(f"k={k} of {nodes} nodes; choose 2..{nodes - 1}")
    return _of_networkx("watts-strogatz", nodes, lambda nx: nx.watts_strogatz_graph(nodes, k, p, seed))


@part(kind="graph", family="graphs", paper="Decentralised Traffic Incident Detection via Network Lasso", year=2024)
def knn(nodes: int, seed: int, *, k: Count = 5, file: str) -> Topology:
    """Nodes are linked to those nearest to them.

    Args:
      k: how many; a node has more neighbors where it is among the nearest of others.
      file: a text file with a line of numbers joined by commas for each node, its position.
    """
    if not k < nodes:
        raise ValueError(f"k={k} of {nodes} nodes; choose 1..{nodes - 1}")
    near = places.nearest(places.positions(file, nodes), k)
    return _of_networkx("knn", nodes, lambda nx: nx.from_dict_of_lists(dict(enumerate(near))))


@part(kind="graph", family="graphs", paper="Generating random regular graphs quickly", year=1999)
def random_regular(nodes: int, seed: int, *, degree: Count = 4) -> Topology:
    """As many neighbors for every node, at random, drawn once.

    Args:
      degree: how many.
    """
    if degree >= nodes or degree * nodes % 2:
        raise ValueError(f"no graph of {nodes} nodes has degree {degree}; choose 1..{nodes - 1}, and an even one where the nodes are odd")
    return _of_networkx("random-regular", nodes, lambda nx: nx.random_regular_graph(degree, nodes, seed))


@part(kind="graph", family="graphs", paper=DFEDSAM, year=2023)
def random(nodes: int, seed: int, *, degree: Count = 10) -> Topology:
    """About as many neighbors for every node, at random, drawn anew in every round: random circles through all nodes, and pairs where it is odd.

    Args:
      degree: how many, links that are drawn twice counted twice.
    """
    if not degree < nodes:
        raise ValueError(f"degree={degree} of {nodes} nodes; choose 1..{nodes - 1}")
    return Topology("random", nodes, degree, lambda arrays, key, clock: _drawn(key, nodes, degree), (), _mean_gap(nodes, degree))


def _drawn(key: jax.Array, nodes: int, degree: int) -> Links:
    place = jnp.arange(nodes, dtype=jnp.int32)
    heard = []
    for c in range(-(-degree // 2)):
        order = keys.shuffle(jax.random.fold_in(key, c), place, nodes)
        at = jnp.zeros(nodes, jnp.int32).at[order].set(place)
        if 2 * c + 1 == degree:
            other = at ^ 1  # the last of an odd number of nodes stays alone
            heard.append(order[jnp.where(other < nodes, other, at)])
        else:
            heard += [order[(at + 1) % nodes], order[(at - 1) % nodes]]
    ids, share = jnp.stack(heard, 1), jnp.float32(1 / (1 + degree))
    alike = ids[:, :, None] == ids[:, None, :]
    first = jnp.argmax(alike, 2) == jnp.arange(degree)  # a link drawn twice is one of twice the weight
    weight = jnp.where(first & (ids != place[:, None]), share * alike.sum(2), 0)
    return Links(jnp.where(weight > 0, ids, place[:, None]), weight, 1 - weight.sum(1))


def _mean_gap(nodes: int, degree: int) -> float:
    """1 - sqrt(a) where E W^T W = a I + b 11^T, which a law of graphs that knows no node from another has: a from E ||W||^2."""
    pairs = nodes * (nodes - 1)
    p = np.array([2 / (nodes - 1)] * (degree // 2) + [(nodes - nodes % 2) / pairs] * (degree % 2))
    off = pairs * (p.sum() ** 2 + (p * (1 - p)).sum())
    own = nodes + (3 if degree % 2 and nodes % 2 else 0)  # of the node without a partner
    return float(1 - np.sqrt(((off + own) / (1 + degree) ** 2 - 1) / (nodes - 1)))


def _offsets(nodes: int, *offsets: int) -> list[int]:
    """Distinct distances on a circle, without 0."""
    return sorted({o % nodes for o in offsets} - {0})


def _regular(name: str, nodes: int, offsets: Any) -> Topology:
    offsets = list(offsets)
    return lists.fixed(name, lists.circulant(nodes, offsets, 1 / (1 + len(offsets))))


def _of_networkx(name: str, nodes: int, make: Callable) -> Topology:
    import networkx as nx

    graph = nx.convert_node_labels_to_integers(make(nx), ordering="sorted")
    if not nx.is_connected(graph):
        raise ValueError(_apart(nx.number_connected_components(graph), nodes))
    return lists.fixed(name, lists.metropolis([[j for j in graph[i] if j != i] for i in graph]))


def _apart(parts: int, nodes: int) -> str:
    return f"the graph of {nodes} nodes falls into {parts} parts; choose more links, or another --data_seed"
