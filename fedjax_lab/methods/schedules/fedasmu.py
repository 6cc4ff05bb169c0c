"""FedASMU: how much an upload counts is learned, and so is how much of the newest model a client takes over in mid-training.

Liu et al., "FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-Aware Model Update", AAAI 2024.

    (1)  y <- y - lr grad F_i(y; b)                    from y = w_o; at the client's slot, between two steps, it asks for the newest model w_g
    (2)  phi = gamma_i / sqrt(g) (1 - upsilon_i / sqrt(g - o + 1)),   beta = mu_b phi / (1 + mu_b phi),   y <- (1 - beta) y + beta w_g  if g > o
    (3)  xi = lambda_i / (sqrt(t) (t - o + 1)^sigma_i) + iota_i,   alpha = mu_a xi / (1 + mu_a xi),   w_t = (1 - alpha) w_{t-1} + alpha y_i
    (4)  c <- c - control_lr h dalpha/dxi dxi/dc            h = <grad F_i(w_t; b), y_i - w_{t-1}>, for c = lambda_i, sigma_i, iota_i
    (5)  c <- c - control_lr h dbeta/dphi dphi/dc           h = <grad F_i(y; b), w_g - y> after (2), on its next batch, for gamma_i, upsilon_i
    (6)  slots: see parts.requests, with F(y; b) before (2) minus after it as the reward of asking

Keeps: 0 <= alpha, beta < 1; with all y_i equal to w nothing moves.
Reduces to: FedAsync (mixing, rho = 0, constant) with alpha = mu_a iota / (1 + mu_a iota), where lam = gamma = control_lr = 0.
Departs: models are numbered by the update that they lead to, so that a fresh one has t - o + 1 = 1; lambda, sigma, iota, gamma stay at least 0
and upsilon in [0, 1], where phi needs no clipping. The server's first slot comes from a softmax over slots, trained as the paper's LSTM is.
For (4) a client is sent w_t, which is counted; w_{t-1} follows from w_t, y_i and alpha. Where an update consumes several uploads, w moves
by the mean of their steps, as in FedAsync. Who starts when, and who is too old, is the schedule's.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, rules, tree
from fedjax_lab.local import Work, batches, gradient, loop, with_stats
from fedjax_lab.parts import requests
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.once import unchanged
from fedjax_lab.parts.oracles.directions import gradient_at
from fedjax_lab.parts.states import stateful
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.parts.wires.plain import known
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, NonNegative, Positive, Share
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-Aware Model Update"


class Server(NamedTuple):
    """params: w_t.  before: w_{t-1}.  policy: float32 [L], the theta of parts.requests."""

    params: Tree
    before: Tree
    policy: jax.Array


class Client(NamedTuple):
    """controls: [lambda, sigma, iota] and [gamma, upsilon], float32;  habit: of asking."""

    upload: jax.Array
    merge: jax.Array
    habit: requests.Habit


def mixed(share, mu):
    """mu x / (1 + mu x)."""
    return mu * share / (1 + mu * share)


def alpha_of(controls, t, age, mu):
    lam, sigma, iota = controls
    return mixed(lam / (jnp.sqrt(t) * age**sigma) + iota, mu)  # (3)


def beta_of(controls, g, age, mu):
    gamma, upsilon = controls
    return mixed(gamma / jnp.sqrt(g) * (1 - upsilon / jnp.sqrt(age)), mu)  # (2)


@method(family="schedules", paper=PAPER, year=2024, stateful=True, schedule="triggered", local_steps=10,
        refuses={"server": "how far the server moves is the method"})
def fedasmu(task: Task, work: Work, *, lam: NonNegative = 1.0, sigma: NonNegative = 0.5, iota: NonNegative = 0.0, gamma: NonNegative = 1.0,
            upsilon: Share = 0.5, mu_a: Positive = 1.0, mu_b: Positive = 1.0, control_lr: NonNegative = 1e-2, slots: Count = 9,
            slot_lr: NonNegative = 0.1, discount: Share = 0.9, epsilon: Share = 0.1) -> Method:
    """Weights of uploads, shares of the newest model and moments of asking for it, all learned for every client.

    Args:
      lam: first lambda, how much an upload counts.
      sigma: first sigma, how fast that falls with its age.
      iota: first iota, what remains of it for ever.
      gamma: first gamma, how much of the newest model is taken over.
      upsilon: first upsilon, how much less of one that is hardly newer.
      mu_a: scale of xi.
      mu_b: scale of phi.
      control_lr: step of these five.
      slots: moments in a training, evenly spread, of which one is for asking; it is made of at least one more step.
      slot_lr: step of the values of slots, and of the policy that proposes the first.
      discount: of the value of the next slot.
      epsilon: probability of trying any neighboring slot.
    """

    def local(key, message, client, data):
        x, plan = message["model"], batches(key, data, work)
        choice = requests.choose(keys.purpose(key, "slots"), client.habit, message["policy"], epsilon)
        ask = (choice.slot + 1) * plan.steps // (slots + 1)
        fresh = data.download(ask)
        new, g, age = fresh.message["model"], fresh.clock + 1.0, fresh.clock - data.clock + 1.0
        newer = fresh.clock > data.clock
        beta = jnp.where(newer, beta_of(client.merge, g, age, mu_b), 0)

        def step(t, key, batch, carry):
            y, state, total, asked = carry
            here, apart = t == ask, tree.sub(new, y)
            merged = tree.axpy(jnp.where(here, beta, 0), apart, y)  # (2)
            loss, grad, stats = gradient(task)(key, merged, batch)
            asked = tree.select(here, (y, loss, optax.tree.vdot(grad, apart)), asked)
            update, state = work.optimizer.update(grad, state, merged)
            return with_stats(optax.apply_updates(merged, update), stats), state, total + loss, asked  # (1)

        zero = 0 * jnp.sum(plan.steps, dtype=jnp.float32)
        y, _, total, (before, after, h) = loop(plan, (x, work.optimizer.init(x), zero, (x, zero, zero)), step)
        was = task.loss(before, plan.at(ask), jax.random.fold_in(plan.key, ask))[0]
        reward = jnp.where(newer, was - after, 0)  # (6)
        slope = jnp.where(newer, h, 0) * jax.grad(beta_of)(client.merge, g, age, mu_b)
        row = client._replace(merge=jnp.clip(client.merge - control_lr * slope, 0, jnp.array([jnp.inf, 1])),  # (5)
                              habit=requests.rewarded(client.habit, choice, reward, slot_lr, discount))
        when = data.clock + data.staleness + 1.0, data.staleness + 1.0
        found = weighted({"model": tree.sub(y, x), "start": x}, alpha_of(client.upload, *when, mu_a) * weigh("uniform", data), client=row,
                         keep=(y, when), metrics={"loss": total / jnp.maximum(plan.steps, 1)})
        hint = requests.hint(client.habit, choice, reward, message["policy"])
        return found._replace(upload={**found.upload, "policy": hint}, weight={**found.weight, "policy": jnp.float32(1)})

    def serve(key, server, aggregate, cohort):
        alpha = shared(aggregate, heard(cohort))
        params = jax.tree.map(lambda w, v, u: w + alpha * ((v - w) + u), server.params, aggregate["start"], aggregate["model"])  # (3)
        return Server(params, server.params, server.policy + slot_lr * aggregate["policy"])

    def learn(key, message, client, data):
        y, when = data.keep
        plan = batches(key, data, work)
        h = optax.tree.vdot(gradient_at(task, message["model"], plan.key, plan.at(jnp.int32(0))), tree.sub(y, message["before"]))
        upload = jnp.maximum(client.upload - control_lr * h * jax.grad(alpha_of)(client.upload, *when, mu_a), 0)  # (4)
        return Result({"h": h}, weigh("uniform", data), client._replace(upload=upload))

    def row(params):
        return Client(jnp.stack([jnp.float32(c) for c in (lam, sigma, iota)]), jnp.stack([jnp.float32(c) for c in (gamma, upsilon)]),
                      requests.habit(slots))

    first = summed(local, "start")
    base = stateful(local, serve, lambda params, census: Server(params, params, jnp.zeros(slots)), row, ("policy",), steps=work.steps,
                    up=first.up, aggregate={**first.aggregate, "policy": rules.total()}, downloads=True)
    again = base.phase(local=learn, broadcast=lambda server, client, clock: {"model": server.params, "before": server.before}, up={}, aggregate={},
                       down={"before": known()}, serve=unchanged, now=True)
    return base._replace(phases=(base.phase(), again))
