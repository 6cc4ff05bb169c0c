"""FLTrust: the server trains on a small clean set of its own, and trusts a client as far as it goes the same way.

Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, Algorithm 2.

    (1)  D_i = y_i - w, D_0 likewise         y_i by the client's local training, y_0 by the same on the public examples
    (2)  TS_i = relu( cos(D_i, D_0) )
    (3)  w <- w + server_lr sum_i TS_i (||D_0|| / ||D_i||) D_i / sum_i TS_i

Keeps: no client moves w by more than ||D_0||; a change scaled by any c > 0 counts the same; one with the opposite sign does not count.
Reduces to: training on the public examples alone where all clients' changes are D_0.
Departs: clients count by trust alone, as in the paper, whatever their size. Where nobody is trusted the model stays.
"""
from __future__ import annotations

import jax.numpy as jnp

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import proxy
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.clients import local_sgd
from fedjax_lab.parts.gram import norms, products
from fedjax_lab.registry import method
from fedjax_lab.spec import Positive
from fedjax_lab.types import Method, Task

TRUST = "its trust is the rule"
TINY = 1e-12


@method(family="trust", paper="FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", year=2021, refuses={"aggregator": TRUST})
def fltrust(task: Task, work: Work, *, server_lr: Positive = 1.0) -> Method:
    """The server trains on public examples too, and weighs clients by the cosine of their change with its own.

    Args:
      server_lr: step along the trusted mean.
    """

    def serve(key, w, aggregate, cohort):
        stack = aggregate["model"]
        plan = batches(keys.purpose(key, "root"), proxy.Proxy(proxy.view(cohort.public)), work)
        own = tree.sub(descend(plan, w, gradient(task), work.optimizer).params, w)  # (1)
        length, lengths = tree.norm(own), jnp.maximum(norms(stack.uploads), TINY)
        trust = jnp.maximum(products(stack.uploads, own) / (lengths * jnp.maximum(length, TINY)), 0) * (stack.weights > 0)  # (2)
        by = trust * length / lengths / jnp.maximum(jnp.sum(trust), TINY)
        return tree.add(w, tree.scale(server_lr, stack.mixed(by)))  # (3)

    def init_server(key, params, census):
        proxy.demanded("fltrust", census)
        return params

    return Method(local_sgd(task, work), init_server=init_server, serve=serve, aggregate={"model": together()}, steps=work.steps)
