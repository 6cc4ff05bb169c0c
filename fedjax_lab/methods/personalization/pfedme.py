"""pFedMe: personal models as Moreau envelopes of the clients' losses.

Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, Algorithm 1.

    (1)  theta <- theta - personal_lr [grad F_i(theta; b) + lam (theta - w_i) + mu theta]     inner times on one batch, theta from x^t on
    (2)  w_i <- w_i - lr lam (w_i - theta)                                                    after each batch; w_i from x^t on
    (3)  x^{t+1} = (1 - beta) x^t + beta sum_i n_i w_i / sum_i n_i                            client i is evaluated with its last theta

Keeps: lam (w - theta) is the gradient of the envelope min_theta F_i(theta) + (lam / 2) ||theta - w||^2 where (1) has converged.
Reduces to: with one batch, lr lam = 1 and beta = 1 to the mean of the clients' theta.
Departs: theta goes on from batch to batch, as in the authors' code, and starts each round at x^t. The weights are the code's; the paper
counts all alike (weighting = uniform). Normalization statistics go with theta.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, gradient, loop, with_stats
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.moving import moving, stepped
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive
from fedjax_lab.types import Method, Result, Task

PAPER = "Personalized Federated Learning with Moreau Envelopes"


@method(family="personalization", paper=PAPER, year=2020, stateful=True, plain_sgd="the steps of both models are its own",
        lr=0.01, local_steps=20, batch_size=20)
def pfedme(task: Task, work: Work, *, lam: Positive = 15.0, personal_lr: Positive = 0.05, inner: Count = 5, beta: Positive = 1.0,
           mu: NonNegative = 0.001, weighting: Weighting = "examples") -> Method:
    """Clients solve for personal models near the shared one, which follows them.

    Args:
      lam: pull between a client's two models; 15 to 30. Stable where personal_lr (lam + curvature) < 2 and lr lam <= 1.
      personal_lr: step of the personal model; lr is that of the shared one's local copy.
      inner: steps of the personal model on each batch.
      beta: share of the clients' mean in the server's next model; above 1 it is overshot.
      mu: weight decay of the personal model.
      weighting: clients count by their examples, or all alike.
    """
    slope = gradient(task)

    def local(key, message, client, data):
        x, plan = message["model"], batches(key, data, work)

        def step(t, key, batch, carry):
            w, theta, total = carry

            def solve(k, found):
                theta, _ = found
                loss, g, stats = slope(jax.random.fold_in(key, k), theta, batch)
                v = jax.tree.map(lambda g, d, x: g + lam * d + mu * x, g, moving(tree.sub(theta, w)), moving(theta))
                return with_stats(tree.axpy(-personal_lr, v, theta), stats), loss

            theta, loss = jax.lax.fori_loop(0, inner, solve, (theta, 0 * total))  # (1)
            apart = tree.sub(w, theta)
            w = jax.tree.map(lambda moves, w, d: w - work.lr * lam * d if moves else w - d, tree.trainable(w), w, apart)  # (2)
            return w, theta, total + loss

        zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
        w, theta, total = loop(plan, (x, x, zero), step)
        theta = tree.select(plan.steps > 0, theta, client)
        return Result({"model": tree.sub(w, x)}, weigh(weighting, data), theta, metrics={"loss": total / jnp.maximum(plan.steps, 1)})

    def serve(key, x, aggregate, cohort):
        return stepped(beta, aggregate["model"], x)  # (3)

    return Method(local, init_client=lambda key, params, facts: params, serve=serve, steps=work.steps,
                  personal=lambda key, server, theta, data: theta)
