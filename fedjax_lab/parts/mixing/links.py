"""Gossip matrices: from a graph to weights, from weights to neighbor lists, and how fast they mix."""
from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fedjax_lab.types import Links, Topology

DENSE = 512  # nodes up to which the gap is read off all singular values


def metropolis(neighbors: list[list[int]]) -> Links:
    """W_ij = 1 / (1 + max(deg_i, deg_j)) for neighbors, the rest on the diagonal: symmetric, and rows sum to one (Boyd, Diaconis, Xiao 2004)."""
    degree = np.array([len(own) for own in neighbors])
    return listed([[(j, 1 / (1 + max(degree[i], degree[j]))) for j in own] for i, own in enumerate(neighbors)])


def split(senders: list[list[int]], receivers: list[list[int]]) -> Links:
    """W_ij = 1 / (1 + how many j sends to): every node splits what it has evenly, so columns sum to one."""
    share = np.array([1 / (1 + len(to)) for to in receivers])
    return listed([[(j, share[j]) for j in own] for own in senders], share)


def listed(rows: list[list[tuple[int, float]]], own: np.ndarray | None = None) -> Links:
    """Neighbor lists padded to the longest, from each node's (neighbor, weight); the diagonal is what is missing to one, unless given."""
    width = max(1, max(map(len, rows)))
    ids, weight = np.tile(np.arange(len(rows), dtype=np.int32)[:, None], width), np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        for k, (j, w) in enumerate(sorted(row)):
            ids[i, k], weight[i, k] = j, w
    own = 1 - weight.sum(1) if own is None else own
    return Links(ids, weight.astype(np.float32), own.astype(np.float32))


def circulant(nodes: int, offsets: Iterable[int], weight: float) -> Links:
    """Node i hears i - o of every offset o, each with this weight, itself with the rest."""
    offsets = np.array(list(offsets), int)
    ids = (np.arange(nodes)[:, None] - offsets) % nodes
    return Links(ids.astype(np.int32), np.full(ids.shape, weight, np.float32), np.full(nodes, 1 - weight * len(offsets), np.float32))


def paired(partner: np.ndarray) -> Links:
    """Every node shares half and half with its partner."""
    half = np.full(len(partner), 0.5, np.float32)
    return Links(partner.astype(np.int32)[:, None], half[:, None], half)


def dense(links: Links) -> np.ndarray:
    """W, float64 [N, N]."""
    n = len(links.own)
    w = np.zeros((n, n))
    np.add.at(w, (np.arange(n)[:, None], np.asarray(links.ids)), np.asarray(links.weight, np.float64))
    return w + np.diag(np.asarray(links.own, np.float64))


def gap(links: Links, directed: bool = False) -> float:
    """1 - the norm of W - 11^T / N, by which a step at least shrinks the distance to the mean; 1 - |lambda_2| where W is symmetric, and
    of a directed graph."""
    n = len(links.own)
    if n <= DENSE:
        w = dense(links)
        return float(1 - (np.sort(np.abs(np.linalg.eigvals(w)))[-2] if directed else np.linalg.norm(w - 1 / n, 2)))
    from scipy.sparse import linalg

    w, start = sparse(links), np.random.default_rng(0).normal(size=n)
    if directed:
        return float(1 - np.sort(np.abs(linalg.eigs(w, 2, v0=start, return_eigenvectors=False)))[0])
    square = linalg.LinearOperator((n, n), lambda x: w.T @ (w @ (x.ravel() - x.mean())), dtype=np.float64)
    return float(1 - np.sqrt(linalg.eigsh(square, 1, v0=start, tol=1e-9, return_eigenvectors=False)[0]))


def sparse(links: Links) -> Any:
    """W as a scipy matrix."""
    from scipy.sparse import coo_array

    n, width = links.ids.shape
    at = np.concatenate([np.repeat(np.arange(n), width), np.arange(n)]), np.concatenate([np.ravel(links.ids), np.arange(n)])
    return coo_array((np.concatenate([np.ravel(links.weight), links.own]).astype(np.float64), at), (n, n)).tocsr()


def fixed(name: str, links: Links, directed: bool = False) -> Topology:
    """The same graph in every round."""
    rate = gap(links, directed)
    return Topology(name, len(links.own), links.ids.shape[1], lambda arrays, key, clock: arrays, links, rate, directed)


def periodic(name: str, links: list[Links]) -> Topology:
    """One graph after the other, of equal degree, from the beginning again after the last. Its gap is that of a period, per step."""
    n = len(links[0].own)
    period = functools.reduce(lambda x, link: dense(link) @ x, links, np.eye(n))
    rate = 1 - np.linalg.norm(period - 1 / n, 2) ** (1 / len(links))
    stack = jax.tree.map(lambda *x: np.stack(x), *links)

    def at(arrays, key, clock):
        return jax.tree.map(lambda x: x[clock % len(links)], arrays)

    return Topology(name, n, links[0].ids.shape[1], at, stack, float(rate))
