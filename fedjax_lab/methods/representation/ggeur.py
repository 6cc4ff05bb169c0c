"""GGEUR: clients generate features in the directions in which a class varies over all clients.

Ma, Dai, Huang, Chen, "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning", CVPR 2025.

    (1)  n_kc, mu_kc, S_kc      number, mean and covariance of client k's features of class c, sent once
    (2)  mu_c = sum_k n_kc mu_kc / N_c,   Sigma_c = sum_k n_kc (S_kc + (mu_kc - mu_c)(mu_kc - mu_c)^T) / N_c
    (3)  z' = z + sum_m e_m s_m xi_m      e_m ~ N(0, 1), s_m = sqrt(lam_m), (lam_m, xi_m) the eigenpairs of Sigma_c
    (4)  one domain: z' around own examples, in turn, until every class that the client has counts T
    (5)  domains: `near` of z' around own examples and `around` at the mean of every other client that has the class, of which so many
         are drawn that the class counts T with the client's own examples
    (6)  y <- y - lr grad CE(y; z, z'),   x <- x + sum_k n'_k (y_k - x) / sum_k n'_k      the head; the body below it is frozen

Keeps: (2) is what one would get from all examples in one place, however they are dealt.
Reduces to: FedAvg of the head with T = 1, where (4) has nothing to fill.
Departs: all clients guide Sigma_c, where the published code takes those with 80% of a class. In (5) every client is a domain. What is
generated is the same in all rounds and is made anew for each batch, from the client's key; e is drawn in turned axes, which changes
nothing of its law. `stretch` is the published code's scaling of the ten smallest eigenvalues by 5 .. 1, which were to be the largest.
The ledger's operations are those for own examples.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend
from fedjax_lab.parts import augmented, examples, heads, split
from fedjax_lab.parts.aggregators import moments
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import Weighting
from fedjax_lab.parts.once import once, tell
from fedjax_lab.parts.wires.plain import known, rows_unless_zero
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Range
from fedjax_lab.types import Method, Result, Task, Tree

STRETCHED = 10  # eigenvalues
PAPER = "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning"


class Server(NamedTuple):
    """params;  seed: of what is generated;  roots [C, F, F];  means [N, C, F] and numbers [N, C] of the clients, [1, ..] where not needed."""

    params: Tree
    seed: jax.Array
    roots: jax.Array
    means: jax.Array
    numbers: jax.Array


def root(cov: jax.Array, scale: str, stretch: str) -> jax.Array:
    """sum_m s_m xi_m xi_m^T [F, F] of a covariance."""
    lam, xi = jnp.linalg.eigh(cov)
    factor = np.append(np.linspace(5, 1, STRETCHED), np.ones(len(lam)))[: len(lam)].astype(np.float32)
    lam = jnp.maximum({"none": lam, "smallest": lam * factor, "largest": lam * factor[::-1]}[stretch], 0)
    return xi * (jnp.sqrt(lam) if scale == "sqrt" else lam) @ xi.T  # (3)


@method(family="representation", paper=PAPER, year=2025)
def ggeur(task: Task, work: Work, *, target: Count = 500, around: Annotated[int, Range(0)] = 0, near: Count = 500,
          scale: Literal["sqrt", "eigenvalue"] = "sqrt", stretch: Literal["none", "largest", "smallest"] = "none", head: str = "head",
          weighting: Weighting = "examples") -> Method:
    """FedAvg of a classifier on frozen features, with generated features that vary as a class does over all clients.

    Args:
      target: T, features of a class that generated ones fill it up to.
      around: generated features around every other client's class mean; 0 where all clients are of one domain.
      near: generated features around own examples, where around is above 0.
      scale: what a direction is multiplied by, the root of its eigenvalue or the eigenvalue.
      stretch: which ten eigenvalues are multiplied by 5 to 1.
      head: a word in the path of the leaves that are the classifier, one of them the matrix [features, classes].
      weighting: clients count by their examples, generated ones among them, or all alike.
    """
    top, plan = heads.linear("ggeur", task, head), augmented.Plan(target, near, around)

    def survey(key, message, client, data):
        batch = data.train.whole()
        found = moments.of(task.features(message["model"], batch), batch["y"], batch["mask"], top.classes)  # (1)
        return Result({"moments": found, **({"own": found} if around else {})}, 1.0, client)

    def pool(key, server, aggregate, cohort):
        def first():
            roots = jax.vmap(lambda cov: root(cov, scale, stretch))(aggregate["moments"].cov)  # (2)
            if not around:
                return server._replace(roots=roots)
            own = aggregate["own"].uploads
            at = jnp.where(cohort.mask, cohort.ids, cohort.clients)
            means, numbers = (old.at[at].set(new, mode="drop") for old, new in ((server.means, own.mean), (server.numbers, own.number)))
            return server._replace(roots=roots, means=means, numbers=numbers)

        return jax.lax.cond(cohort.clock == 0, first, lambda: server)

    def local(key, message, client, data):
        x, body = message["model"], message["body"]
        mine = keys.for_client(jax.random.wrap_key_data(message["seed"]), data.id)
        view = augmented.augmented(data.train, lambda batch: task.features(top.halves.join(body, x), batch), mine, plan, message["roots"],
                                   message["means"], message["numbers"], data.id)  # (4), (5)
        loss = examples.direction(lambda y, batch: task.metrics(task.head(top.halves.join(body, y), batch["z"]), batch)["loss"])
        end = descend(batches(key, data, work, view), x, loss, work.optimizer)  # (6)
        weight = view.size if weighting == "examples" else view.size > 0
        return Result({"model": tree.sub(end.params, x)}, weight.astype(jnp.float32), client, metrics={"loss": end.loss})

    def serve(key, server, aggregate, cohort):
        head = tree.add(top.halves.part(server.params, True), aggregate["model"])
        return server._replace(params=top.halves.join(top.halves.part(server.params, False), head))

    def init_server(key, params, census):
        split.demand_classes("ggeur", task, census)
        roots, many = jnp.zeros((top.classes, top.features, top.features)), census.clients if around else 1
        return Server(params, jax.random.key_data(key), roots, *(jnp.zeros((many, *shape)) for shape in (roots.shape[:2], roots.shape[:1])))

    def broadcast(server, client, clock):
        halves = {name: top.halves.part(server.params, name == "model") for name in ("model", "body")}
        return {**halves, **{name: getattr(server, name) for name in ("seed", "roots", "means", "numbers")}}

    base = Method(local, init_server, broadcast=broadcast, serve=serve, down={f: known() for f in ("body", "seed", "roots", "means", "numbers")},
                  deploy=lambda server: server.params, steps=work.steps)
    rules = {"moments": moments.pooled(), "own": together()}
    surveyed = once(base, survey, serve=pool, aggregate=rules, up={"moments": rows_unless_zero(), "own": known()}, down={"model": known()})
    return base._replace(phases=(surveyed, tell(base, "roots", *(("means",) if around else ())), base.phase()))
