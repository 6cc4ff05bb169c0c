"""Split learning of parties with different features: each computes up to a cut, the server goes on from there and sends gradients back.

Vepakomma, Gupta, Swedish, Raskar, "Split learning for health: Distributed deep learning without sharing raw patient data", 2018.

    (1)  H_k = f_k(x_k)                                                   on one batch of aligned examples, up from every party k
    (2)  L = mean CE(f_c([H_1 .. H_P]), y),   f_c <- f_c - lr grad L,   g_k = dL / dH_k                     down to party k
    (3)  f_k <- f_k - lr (df_k / d params)^T g_k

Keeps: what is not in a batch does not move anything; a party that is absent gives zeros and stays as it was.
Reduces to: training of the joint network f_c([f_1(x_1) .. f_P(x_P)]) on the same batches, to rounding.
Departs: a round is one batch, in the order of reshuffled epochs that all follow from one key. The identity of examples is taken as matched.
f_k is what the task's head reads, of one architecture for all parties; f_c is dense layers with ReLUs between them. With local_steps > 1 a
party repeats (3) with the g_k it got. Everybody's optimizer is client_optimizer, which remembers from round to round. The other form,
clients with examples of their own who take turns with one lower part, is that of SplitFed and not here.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, loop
from fedjax_lab.parts import proxy, vertical
from fedjax_lab.parts.aggregators.together import together
from fedjax_lab.parts.wires.plain import known, rows_there
from fedjax_lab.registry import method
from fedjax_lab.spec import Count
from fedjax_lab.types import Key, Method, Result, Task, Tree


class Learner(NamedTuple):
    """params, and the memory of their optimizer."""

    params: Tree
    memory: Tree


class Server(NamedTuple):
    """parties: a Learner [P, ...], which the parties hold;  top: f_c;  cut: [P, B, d], the g_k;  there: bool [B], which rows are examples;
    loss: L;  order: of the batches."""

    parties: Learner
    top: Learner
    cut: jax.Array
    there: jax.Array
    loss: jax.Array
    order: Key


@method(family="modalities", paper="Split learning for health: Distributed deep learning without sharing raw patient data", year=2018,
        local_steps=1, schedule="vertical", refuses=vertical.REFUSES)
def splitnn(task: Task, work: Work, *, top: tuple[Count, ...] | None = (128,)) -> Method:
    """Parties with features of the same examples train one network that is cut between them and the server.

    Args:
      top: widths of the server's hidden layers, none for a linear one.
    """
    vertical.demand("splitnn", task)
    first = (work.at(0) if work.decays else work).optimizer  # whose memory has the structure that it has in later rounds

    def mine(message, data):
        """The party's steps with one batch, and its activations there as a function of its parameters."""
        plan = batches(message["order"], data, work, vertical.aligned(data.train, len(data.public["y"])))
        batch, noise = plan.at(data.clock), keys.for_client(jax.random.fold_in(plan.key, data.clock), data.id)
        return plan._replace(at=lambda t: batch), lambda params: jnp.where(batch["mask"][:, None], task.features(params, batch, noise), 0)

    def forward(key, message, row, data):
        plan, encode = mine(message, data)
        return Result({"cut": (encode(message["party"].params), plan.at(0)["mask"])}, 1.0)  # (1)

    def learn(key, server, aggregate, cohort):
        stack = aggregate["cut"]
        h = vertical.placed(jnp.zeros_like(server.cut), stack._replace(uploads=stack.uploads[0]), cohort)
        batch = batches(server.order, proxy.Proxy(proxy.view(cohort.public)), work).at(cohort.clock)
        value, (slope, cut) = jax.value_and_grad(lambda layers, h: vertical.loss(task, layers, h, batch), (0, 1))(server.top.params, h)
        after = server._replace(top=stepped(server.top, slope), cut=cut, there=batch["mask"], loss=value)  # (2)
        return tree.select(stack.empty, server, after)

    def backward(key, message, row, data):
        plan, encode = mine(message, data)

        def step(t, key, batch, party):
            return stepped(party, jax.vjp(encode, party.params)[1](message["cut"][0])[0])  # (3)

        return Result({"party": loop(plan, message["party"], step)}, 1.0, metrics={"loss": message["loss"]})

    def stepped(learner, slope):
        update, memory = work.optimizer.update(slope, learner.memory, learner.params)
        return Learner(optax.apply_updates(learner.params, update), memory)

    def init_server(key, params, census):
        count = vertical.demand_parties("splitnn", task, census)
        parties = vertical.encoders(keys.purpose(key, "parties"), task, census)
        layers = vertical.top(keys.purpose(key, "top"), task, params, census, top or ())
        rows = count if work.batch_size == "full" else min(work.batch_size, count)
        cut = jnp.zeros((census.clients, rows, layers[0]["kernel"].shape[0] // census.clients))
        learners = Learner(parties, jax.vmap(first.init)(parties)), Learner(layers, first.init(layers))
        return Server(*learners, cut, jnp.zeros(rows, bool), jnp.zeros(()), keys.purpose(key, "batches"))

    def shown(server, client):
        return {"party": jax.tree.map(lambda x: x[client], server.parties), "order": server.order}

    def send_back(server, client, clock):
        return {**shown(server, client), "cut": (server.cut[client], server.there), "loss": server.loss}

    def kept(key, server, aggregate, cohort):
        return server._replace(parties=vertical.placed(server.parties, aggregate["party"], cohort))

    told = {"party": known(), "order": known(), "loss": known()}
    base = Method(init_server=init_server, steps=work.steps, task=vertical.joint(task),
                  deploy=lambda server: {"parties": server.parties.params, "top": server.top.params})
    up = base.phase(local=forward, broadcast=lambda server, client, clock: shown(server, client), serve=learn, aggregate={"cut": together()},
                    up={"cut": rows_there()}, down=told)
    down = base.phase(local=backward, broadcast=send_back, serve=kept, aggregate={"party": together()}, up={"party": known()},
                      down={**told, "cut": rows_there()})
    return base._replace(phases=(up, down))
