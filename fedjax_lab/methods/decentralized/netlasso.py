"""Network lasso: nodes with models of their own, which neighbors pull together until whole clusters agree.

"Decentralised Traffic Incident Detection via Network Lasso", 2024; the solver is Hallac, Leskovec, Boyd, "Network Lasso", KDD 2015.

    (0)  min sum_i f_i(x_i) + lam sum_{edges} a_jk ||x_j - x_k||       the norm is not squared;  f_i = n_i F_i + (l2 / 2) ||x||^2
    (1)  x_i <- argmin f_i(x) + (rho / 2) sum_{j in N(i)} ||x - z_ij + u_ij||^2
    (2)  p = x_j + u_jk,  q = x_k + u_kj,  th = max(1 - lam a_jk / (rho ||p - q||), 1/2)      z_jk = th p + (1 - th) q
    (3)  u_jk <- u_jk + x_j - z_jk                                   u = 0 at the start

Keeps: u_jk + u_kj = 0 and ||u_jk|| <= lam a_jk / rho after (3).
Reduces to: every node alone with lam = 0; one model for the pooled examples with lam large.
Departs: positions, for a_jk = exp(-distance) and the graph knn, come from a file, since clients have none; edges weigh alike without. The
graph is an option, since it is no matter of mixing. Nodes send p over their edges, and (2), (3) of an iteration are done with the (1) of the
next. Newton's steps are exact for convex f_i, and for quadratic ones with newton_steps = 1; the hinge of a support vector machine is squared
(model svm), as the card allows, for Newton needs a slope. Iterations are rounds, with the residuals as metrics instead of a tolerance. A node
without examples is tied to nobody; its model is the median of its neighbors' by a_jk, the least sum of weighted distances. The server holds
what nodes and edges hold, and the mean model.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import weigh
from fedjax_lab.parts.edges.ties import Ties, ties
from fedjax_lab.parts.solvers.newton import median, newton
from fedjax_lab.parts.wires.plain import known, rows_there
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Range
from fedjax_lab.types import Method, Result, Stacked, Task, Tree

PAPER = "Decentralised Traffic Incident Detection via Network Lasso"
MOST = 2000  # parameters, of which a square matrix is solved at every node


class Lasso(NamedTuple):
    """params: the mean of the x_i.  x: [N, d].  sent, duals: [N, K, d], what nodes sent over their edges last, and u.  ties: the graph,
    without edges to nodes without examples.  members: bool [N], nodes with examples."""

    params: Tree
    x: jax.Array
    sent: jax.Array
    duals: jax.Array
    ties: Ties
    members: jax.Array


@method(family="decentralized", paper=PAPER, year=2024, everyone="which all solve their part at once", local_steps=1,
        refuses={"server": "it has none", "aggregator": "nothing is averaged"})
def netlasso(task: Task, work: Work, *, lam: NonNegative = 1.0, rho: Positive = 1.0, l2: NonNegative = 1e-3, graph: str = "ring",
             places: str | None = None, seed: Annotated[int, Range(0)] = 0, newton_steps: Count = 8) -> Method:
    """Convex models of nodes on a graph, exactly equal wherever that costs little.

    Args:
      lam: strength of an edge.
      rho: penalty of ADMM, which changes the way and not the goal.
      l2: weight decay of all entries alike.
      graph: as --graph names it, undirected and fixed.
      places: a text file with a line of numbers joined by commas for each client, its position: edges then weigh exp(-distance).
      seed: of a graph that is drawn.
      newton_steps: of every local problem, from the last solution.
    """

    def local(key, message, client, data):
        (x, q, u, there, a), shape = message["edges"], ravel_pytree(message["model"])[1]
        there, scale = there[:, None] & (data.size > 0), data.size.astype(x.dtype)
        p = x + u
        far = jnp.linalg.norm(p - q, axis=1, keepdims=True)
        th = jnp.maximum(1 - lam * a[:, None] / (rho * jnp.where(far > 0, far, 1)), 0.5)
        z = jnp.where(far > 0, th * p + (1 - th) * q, p)  # (2)
        u = jnp.where(there, p - z, 0)  # (3)
        target, whole = z - u, data.train.whole()

        def objective(y):
            own = scale * task.loss(shape(y), whole, key)[0] + l2 / 2 * jnp.sum(y**2)
            return own + rho / 2 * jnp.sum(jnp.where(there, (y - target) ** 2, 0))

        y = newton(objective, x, newton_steps)  # (1)
        told = {"loss": task.loss(shape(y), whole, key)[0], "residual": jnp.sqrt(jnp.sum(jnp.where(there, (x - z) ** 2, 0))), "moved": jnp.linalg.norm(y - x)}
        upload = {"model": shape(y - x), "edges": (jnp.where(there, y + u, 0), there[:, 0]), "duals": u}
        return Result(upload, weigh("uniform", data), metrics=told)

    def serve(key, server, aggregate, cohort):
        at = jnp.where(cohort.mask & (cohort.size > 0), cohort.ids, cohort.clients)
        change = jax.vmap(lambda change: ravel_pytree(change)[0])(aggregate["model"])
        x = server.x.at[at].add(change, mode="drop")
        sent, duals = (old.at[at].set(new, mode="drop") for old, new in ((server.sent, aggregate["edges"][0]), (server.duals, aggregate["duals"])))
        return server._replace(params=_mean(server.params, x, server.members), x=x, sent=sent, duals=duals)

    def init_server(key, params, census):
        flat = ravel_pytree(params)[0]
        if flat.size > MOST:
            raise ValueError(f"method 'netlasso' solves with a matrix of parameters by parameters: task '{task.name}' has {flat.size:,}, at most {MOST:,} fit")
        edges, members = ties(graph, census.clients, seed, places), jnp.asarray(np.asarray(census.size) > 0)
        edges = edges._replace(there=edges.there & members[edges.ids])
        rows = jnp.broadcast_to(flat, (*edges.ids.shape, flat.size))
        return Lasso(params, rows[:, 0], rows, 0 * rows, edges, members)

    def broadcast(server, client, clock):
        got = server.ties.heard(server.sent, client)
        return {"model": server.params, "edges": (server.x[client], got, server.duals[client], server.ties.there[client], server.ties.weight[client])}

    def personal(key, server, client, data):
        near = server.ties.weight[data.id] * server.ties.there[data.id]
        around = median(server.x[server.ties.ids[data.id]], near.astype(server.x.dtype))
        return ravel_pytree(server.params)[1](jnp.where(data.size > 0, server.x[data.id], around))

    stack = Stacked(lambda stack, weights, cohort: stack)
    nothing = {"model": known(), "duals": known()}
    return Method(local, init_server=init_server, broadcast=broadcast, serve=serve, aggregate=dict.fromkeys(("model", "edges", "duals"), stack),
                  up={**nothing, "edges": rows_there()}, down={"model": known(), "edges": known()}, steps=lambda size: jnp.minimum(size, 1),
                  deploy=lambda server: server.params, personal=personal)


def _mean(like: Tree, x: jax.Array, members: jax.Array) -> Tree:
    return ravel_pytree(like)[1](jnp.sum(jnp.where(members[:, None], x, 0), 0) / jnp.maximum(jnp.sum(members), 1))
