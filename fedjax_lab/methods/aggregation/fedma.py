"""FedMA: clients' hidden units are matched before they are averaged, layer by layer.

Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched Averaging", ICLR 2020; with `retrain` = false PFNM,
Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019.

    (1)  y_j <- y_j - lr grad F_j(y_j; b)               from a network of its own, of `share` of the width
    (2)  v_jl = [incoming weights, bias] of unit l of layer n; the atom i of a unit is found, client by client and then in `sweeps`, by
         the assignment that maximizes  sum (v / s + G_i)^2 / (1 / s + P_i) - G_i^2 / P_i + log(min(c_i, 10) / (J - c_i)),  or for new
         atoms  sum (v / s + m / s0)^2 / (1 / s + 1 / s0) - m^2 / s0 - 2 log r + 2 log(gamma / J)
    (3)  G_i = m / s0 + sum v / s,  P_i = 1 / s0 + c_i / s,  s = sigma, s0 = sigma0;  layer n has the units G_i / P_i
    (4)  y_j takes layer n; what layer n + 1 got from unit l comes from its atom; (1) with layers up to n frozen, then (2) for n + 1
    (5)  the last layer, trained with last_rate lr for last_times as long:  sum_j n_jc y_jc / sum_j n_jc for every class c
    (6)  the next round starts with every client's own atoms, as many as it had units

Keeps: units in another order at a client change nothing.
Reduces to: layer-wise averaging with match_by = place; the client's own network for one client, up to the factor 1 / (1 + sigma / sigma0).
Departs: the network that is deployed has the task's width, which bounds the atoms; what is not used of it is zero, and is not sent. This
needs activations that are zero at zero. Clients that are not in a round have no part in its network. LSTMs are left out. A round has as
many exchanges as the model has layers; clients are matched in the order of their ids.
"""
from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts import chains, split
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.leaves import paths
from fedjax_lab.parts.solvers.matching import Prior, matched
from fedjax_lab.parts.wires.plain import nonzero
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree

MATCHED = "units are matched before they are averaged"


class Server(NamedTuple):
    """params;  place: of every hidden layer, int32 [N, own], the atoms of each client's units, -1 for who was never heard."""

    params: Tree
    place: tuple[jax.Array, ...]


@method(family="aggregation", paper="Federated Learning with Matched Averaging", year=2020, stateful=True, lr=0.01, client_optimizer="momentum:0.9",
        refuses={"aggregator": MATCHED, "server": MATCHED, "wire_up": MATCHED, "wire_down": MATCHED})
def fedma(task: Task, work: Work, *, gamma: Positive = 7.0, gamma_later: Positive = 5.0, sigma: Positive = 1.0, sigma0: Positive = 1.0,
          prior_bias: float = 0.1, share: Annotated[float, Range(0, 1, "low")] = 0.5, sweeps: Annotated[int, Range(0)] = 5,
          match_by: Literal["posterior", "place"] = "posterior", retrain: bool = True, last_rate: Positive = 0.1, last_times: Count = 3,
          head: str = "head") -> Method:
    """Layer by layer, clients' units are matched, averaged and frozen, and the layers above are trained again.

    Args:
      gamma: how readily units become new ones, in the first round.
      gamma_later: the same, in later rounds.
      sigma: variance of clients' units around a global one.
      sigma0: variance of global units.
      prior_bias: mean of global units' biases.
      share: of the task's hidden units, what a client's own network has.
      sweeps: how often every client is matched anew.
      match_by: the most likely assignment, or the same place in every network.
      retrain: whether clients train the layers that are left after each match.
      last_rate: of the last layer's training, as a multiple of lr.
      last_times: its passes, as a multiple of the others'.
      head: a word in the path of the last layer.
    """
    layers = chains.chain("fedma", task, head)
    like, last = jax.eval_shape(task.init, jax.random.key(0)), len(layers) - 1
    own = [max(1, round(share * layer.outputs)) for layer in layers[:last]]
    slow = work._replace(epochs=last_times * work.epochs, local_steps=last_times * work.local_steps,
                         optimizer=optax.chain(work.optimizer, optax.scale(last_rate)))

    def whole(flat):
        return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in paths(like)])

    def trained(key, y, data, n):  # (1), (4)
        free = {path for layer in layers[n:] for path in layer.leaves(y)}

        def direction(key, y, batch):
            loss, v, stats = gradient(task)(key, whole(y), batch)
            return loss, {path: g * (path in free) for path, g in paths(v).items()}, stats

        end = descend(batches(key, data, slow if n == last else work), y, direction, work.optimizer if n < last else slow.optimizer)
        return {path: end.params[path] if path in free else leaf for path, leaf in y.items()}, {"loss": end.loss}

    def exchange(n):
        layer = layers[n]

        def broadcast(server, client, clock):
            flat, place = paths(server.params), [p[client] for p in server.place]
            if n:
                return {"layer": layers[n - 1].leaves(flat), "place": place[n - 1]}
            there = place[0][0] >= 0
            start = jax.tree.map(lambda x: jnp.where(there, x, 0), chains.narrowed(flat, layers, place))  # (6)
            return {"start": start, "there": there}

        def local(key, message, row, data):
            if n:
                y = chains.rewired({**data.keep, **message["layer"]}, layer, message["place"])  # (4)
            else:
                y = tree.select(message["there"], message["start"], row)
            y, metrics = trained(key, y, data, n) if retrain or not n else (y, {})
            if n < last:
                return Result({"units": layer.units(y)[: own[n]]}, jnp.float32(data.size > 0), row, y, metrics)
            return Result({"last": layer.leaves(y)}, {"last": {path: data.counts for path in layer.leaves(y)}}, row, y, metrics)  # (5)

        def match(key, server, aggregate, cohort):
            stack, flat = aggregate["units"], paths(server.params)
            there = stack.weights > 0
            if match_by == "place":
                atoms = jnp.zeros((layer.outputs, stack.uploads.shape[2])).at[: own[n]].set(stack.mixed(there / jnp.maximum(jnp.sum(there), 1)))
                place = jnp.broadcast_to(jnp.arange(own[n], dtype=jnp.int32), stack.uploads.shape[:2])
            else:
                mean = jnp.zeros(stack.uploads.shape[2]).at[layer.places * layer.inputs :].set(prior_bias)
                prior = Prior(jnp.where(cohort.clock == 0, gamma, gamma_later), sigma, sigma0, mean)
                atoms, place = matched(stack.uploads, there, cohort.ids, layer.outputs, prior, sweeps)  # (2), (3)
            at = jnp.where(there, cohort.ids, cohort.clients)
            places = [p.at[at].set(place, mode="drop") if k == n else p for k, p in enumerate(server.place)]
            return tree.select(stack.empty, server, Server(whole({**flat, **layer.made(atoms, flat)}), tuple(places)))

        def average(key, server, aggregate, cohort):
            flat, known = paths(server.params), jnp.sum(cohort.counts, 0) > 0
            new = {path: jnp.where(known, mean, flat[path]) for path, mean in aggregate["last"].items()}
            return server._replace(params=whole({**flat, **new}))

        return Method(local, broadcast=broadcast, serve=match if n < last else average, aggregate={"units": together()},
                      up={"units": nonzero(), "last": nonzero()}, down={"start": nonzero(), "layer": nonzero()}).phase()

    def init_server(key, params, census):
        split.demand_classes("fedma", task, census)
        chains.in_order("fedma", task, layers, params, census)
        return Server(params, tuple(jnp.full((census.clients, count), -1, jnp.int32) for count in own))

    def init_client(key, params, facts):
        return chains.narrowed(paths(task.init(key)), layers, [jnp.arange(count) for count in own])

    return Method(init_server=init_server, init_client=init_client, phases=tuple(map(exchange, range(len(layers)))),
                  deploy=lambda server: server.params, steps=work.steps)
