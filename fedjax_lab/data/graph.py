"""Graphs over clients: each client holds a subgraph, padded to one shape, as a single example.

Such an example has "x" [n, F], "edges" int32 [e, 2] (from, to; local numbers; -1 is padding) and "y" int32 [n], -1 where a node's
label does not count: the train stream has the labels of the training nodes, the test stream those of the test nodes. Edges
between clients are lost, as in FedSage and FED-PUB.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated

import numpy as np

from fedjax_lab.data import draw, manifest, owners
from fedjax_lab.data.owners import Partition
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Key, Population, Stream


def community(nodes: int, edges: np.ndarray, key: Key, clients: int) -> Partition:
    """Disjoint subgraphs by community (FedSage, Zhang et al. 2021): Louvain communities, dealt so that sizes come out even.

    Communities larger than a client's even share are cut in breadth-first order; then the largest piece goes to the smallest
    client.
    """
    import networkx

    owners.check(nodes, clients)
    generator = draw.rng(key)
    graph = networkx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges.tolist())
    found = networkx.community.louvain_communities(graph, seed=int(generator.integers(2**31)))
    most = -(-nodes // clients)
    pieces = [order[i: i + most] for part in found for order in [_breadth_first(graph, part)] for i in range(0, len(order), most)]
    while len(pieces) < clients:
        pieces.sort(key=len)
        largest = pieces.pop()
        pieces += [largest[: len(largest) // 2], largest[len(largest) // 2:]]
    size, owner = np.zeros(clients, np.int64), np.zeros(nodes, np.int64)
    for piece in sorted(pieces, key=lambda p: (-len(p), p[0])):
        smallest = int(np.argmin(size))
        owner[piece] = smallest
        size[smallest] += len(piece)
    return owners.by_owner(owner, clients, generator)


def overlapping(nodes: int, edges: np.ndarray, key: Key, clients: int, copies: Count = 5,
                share: Annotated[float, Range(0, 1, "low")] = 0.5) -> Partition:
    """Overlapping subgraphs (FED-PUB, Baek et al. 2023): each community is given to several clients, each with a random share.

    Nodes are used by several clients or by none.

    Args:
      copies: clients per community.
      share: of the community's nodes that each of them holds, at least one.
    """
    generator = draw.rng(key, "overlapping")
    base = community(nodes, edges, key, -(-clients // copies))
    parts = []
    for i in range(clients):
        whole = base.index[base.offset[i // copies]: base.offset[i // copies] + base.size[i // copies]]
        parts.append(generator.permutation(whole)[: max(1, round(share * len(whole)))])
    return owners.packed(np.concatenate(parts), np.array([len(part) for part in parts]))


GRAPHS: dict[str, Callable[..., Partition]] = {"community": community, "overlapping": overlapping}


def build(origin: Source, owned: Partition, *, key: Key, client_test: float | None = None) -> Population:
    """The population of a graph source: one padded subgraph per client.

    The labels to learn and to test are those of the source's split, or with `client_test` those of each client's labeled nodes,
    that share for testing and the rest for training (FED-PUB splits so). A client without training labels has train.size 0, one
    without test labels test.size 0. The counts are those of the training nodes.

    Raises:
      ValueError: `client_test` is out of range.
    """
    rows = [owned.index[o: o + n] for o, n in zip(owned.offset, owned.size)]
    train, test = origin.train["train_mask"], origin.train["test_mask"]
    if client_test is not None:
        train, test = _local_split(origin.train["y"], rows, client_test, draw.rng(key, "client_test"))
    shared = subgraphs(origin.train["x"], origin.edges, rows)
    labels = [padded([np.where(mask[r], origin.train["y"][r], -1) for r in rows], -1) for mask in (train, test)]
    streams = [_stream({**shared, "y": y}) for y in labels]
    counts = np.stack([np.bincount(y[y >= 0], minlength=origin.classes) for y in labels[0]]).astype(np.float32)
    facts = manifest.facts(*streams, counts, owned.size)
    more = {"partition": owned.name, "client_test": client_test, "kept_edges": int((shared["edges"][:, :, 0] >= 0).sum()),
            "nodes": owned.size.tolist(), "sha256_partition": manifest.hashed(owned.index, owned.size, *labels)}
    return Population(*streams, counts, {**origin.manifest, **facts, **more}, origin.public)


def subgraphs(x: np.ndarray, edges: np.ndarray, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Induced subgraphs padded to the largest: x float32 [N, n, F] (0), edges int32 [N, e, 2] (-1)."""
    inner = []
    for r in rows:
        local = np.full(len(x), -1, np.int32)
        local[r] = np.arange(len(r))
        pairs = local[edges]
        inner.append(pairs[(pairs >= 0).all(1)])
    return {"x": padded([x[r].astype(np.float32) for r in rows], 0), "edges": padded(inner, -1)}


def padded(parts: list[np.ndarray], value: int) -> np.ndarray:
    """Arrays of different length stacked, at least one row each."""
    whole = np.full((len(parts), max(1, *map(len, parts)), *parts[0].shape[1:]), value, parts[0].dtype)
    for row, part in zip(whole, parts):
        row[: len(part)] = part
    return whole


def _stream(examples: Arrays) -> Stream:
    """One example per client, none where a client has no label."""
    size = (examples["y"] >= 0).any(1).astype(np.int32)
    return Stream({field: array[size > 0] for field, array in examples.items()}, (np.cumsum(size) - size).astype(np.int32), size)


def _local_split(y: np.ndarray, rows: list[np.ndarray], share: float, generator: np.random.Generator) -> tuple[np.ndarray,
                                                                                                               np.ndarray]:
    """Masks [M] of the training and the test nodes, `share` of each client's labeled ones; a node has one side in all clients."""
    if not 0 < share < 1:
        raise ValueError(f"client_test={share} is not valid; expected a share in (0, 1)")
    test, seen = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for r in rows:
        fresh = generator.permutation(r[(y[r] >= 0) & ~seen[r]])
        test[fresh[: round(share * len(fresh))]] = True
        seen[r] = True
    return ~test & (y >= 0), test


def _breadth_first(graph: object, part: set[int]) -> list[int]:
    """The nodes of a part, component by component, each in breadth-first order."""
    left, order = set(part), []
    for start in sorted(part):
        queue = deque([start] if start in left else [])
        left.discard(start)
        while queue:
            node = queue.popleft()
            order.append(node)
            fresh = [other for other in sorted(graph[node]) if other in left]
            left.difference_update(fresh)
            queue.extend(fresh)
    return order
