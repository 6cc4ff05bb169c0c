"""Claims of the decentralized family, with the margins of their cards."""
from __future__ import annotations

import numpy as np

from experiments.claims.personalization import OWN, pooled
from experiments.claims.records import Claim, Margin, Scenario, Side, final
from experiments.claims.scenarios import Clients
from fedjax_lab import models
from fedjax_lab.models.linear import LogisticRegression
from fedjax_lab.types import Population, Stream

CONSENSUS = final("consensus_distance", "consensus distance after the last round", higher=False)
NODES = final("personal_client_test_accuracy_mean", "mean over the nodes of their models' accuracy on the central test set, %", higher=True, scale=100)
RATES = {"lr": (0.0316, 0.1, 0.316)}


def alike(make: Clients) -> Clients:
    """The same clients, each tested on the whole central test set."""

    def tested():
        task, people = make()
        count, n = len(people.test.examples["y"]), people.clients
        where = people.test._replace(offset=np.zeros(n, np.int32), size=np.full(n, count, np.int32), index=np.arange(count, dtype=np.int32))
        return task, people._replace(test=where)

    return tested


def peers(rounds: int, nodes: int, partition: str, train: int, graph: str | None = None, attack: str | None = None, **options) -> Scenario:
    """MNIST pooled to 14x14, an MLP 196-64-32-10."""
    more = {name: value for name, value in (("graph", graph), ("attack", attack)) if value}
    told = ", ".join(["", *(f"{name} {value}" for name, value in more.items())])
    text = f"MNIST 14x14, {train:,} examples, MLP 196-64-32-10, {partition}, {nodes} nodes{told}, {rounds} rounds"
    return Scenario(text, {"rounds": rounds, "eval_every": rounds, **more}, options, alike(pooled(partition, train, 500, nodes)))


def step_by_step() -> list[Claim]:
    """The nodes stay the closer together the larger the spectral gap."""
    ordinary = peers(150, 16, "dirichlet:0.3", 3000, batch_size=20)

    def on(graph: str) -> Side:
        return Side("dpsgd", {"lr": 0.1}, {}, {"graph": graph})

    return [Claim("dpsgd/exponential", on("exponential"), on("ring"), ordinary, CONSENSUS, Margin("times", 1)),
            Claim("dpsgd/full", on("full"), on("exponential"), ordinary, CONSENSUS, Margin("times", 1))]


def sharpness() -> list[Claim]:
    ring = peers(60, 16, "dirichlet:0.3", 4000, "ring", local_steps=10, batch_size=32)._replace(reduced="a CNN")
    sam, mgs = (Side(name, {"lr": 0.05}, {}) for name in ("dfedsam", "dfedsam-mgs"))
    return [Claim("dfedsam/ring", Side("dfedsam", {}, {**RATES, "rho": (0.002, 0.01, 0.05)}), Side("dfedavgm", {}, RATES), ring, NODES, Margin("plus", 1)),
            Claim("dfedsam-mgs/consensus", mgs, sam, ring, CONSENSUS, Margin("times", 1 / 0.3))]


def robust() -> list[Claim]:
    def under(attack: str) -> Scenario:
        return peers(150, 11, "dirichlet:1", 4000, "full", attack)

    monna, plain, hasty = (Side("monna", {"lr": 0.75, **own}, {}) for own in ({"share": 0.18}, {"share": 0.0}, {"share": 0.18, "beta": 0.0}))
    falling, little = under("ipm:0.18,scale=10"), under("alie:0.18")
    weak = ("For 2 of 11, z of ALIE is 0.14, so that forged models are hardly away from the honest mean, where the paper searches for the worst length; "
            "and a momentum of 0.99 has grown to 1 - 0.99^150 = 78 % of its length only at the end of these rounds.")
    return [Claim("monna/ipm", monna, plain, falling, NODES, Margin("plus", 20)),
            Claim("monna/alie", monna, hasty, little, NODES, Margin("plus", 5), note=weak)]


def sensors(clusters: int = 3, nodes: int = 10, dim: int = 10, train: int = 15, test: int = 200) -> Clients:
    """Nodes of three clusters, in their order; a cluster has one direction that decides the label, but for noise."""

    def make():
        rng, n = np.random.default_rng(0), clusters * nodes
        truth = np.repeat(rng.normal(size=(clusters, dim)), nodes, 0)

        def stream(count: int) -> Stream:
            x = rng.normal(size=(n, count, dim))
            y = np.einsum("ncd,nd->nc", x, truth) + 0.5 * rng.normal(size=(n, count)) > 0
            examples = {"x": x.reshape(-1, dim).astype(np.float32), "y": y.ravel().astype(np.int32)}
            return Stream(examples, (count * np.arange(n)).astype(np.int32), np.full(n, count, np.int32))

        own = stream(train)
        counts = np.stack([np.bincount(y, minlength=2) for y in own.examples["y"].reshape(n, train)]).astype(np.float32)
        example = {**{k: v[:1] for k, v in own.examples.items()}, "mask": np.ones(1, bool)}
        return models.classification("sensors", LogisticRegression(2), example), Population(own, stream(test), counts)

    return make


def clusters() -> list[Claim]:
    where = Scenario("3 clusters of 10 nodes, 15 examples of 10 numbers each, logistic regression", {"cohort": 30, "rounds": 200, "eval_every": 200},
                     {}, sensors(), reduced="Adult by occupation")
    lasso = Side("netlasso", {"graph": "watts-strogatz:4,p=0.1"}, {"lam": (0.316, 1.0, 3.16)})
    plain = {"local_steps": 5, "batch_size": "full"}
    return [Claim("netlasso/local", lasso, Side("local", plain, RATES), where, OWN, Margin("plus", 3)),
            Claim("netlasso/global", lasso, Side("fedavg", plain, RATES), where, OWN, Margin("plus", 3))]


CLAIMS = (*step_by_step(), *sharpness(), *robust(), *clusters())
