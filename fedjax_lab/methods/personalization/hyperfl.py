"""HyperFL: clients share what makes their models, and neither the models nor what they are made from.

Guo, Zeng, Chen, Zhang, Ren, Zhou, Qu, "A New Federated Learning Framework Against Gradient Inversion Attacks", AAAI 2025.

    (1)  theta_i = h(e_i; psi): u = relu(e_i W + b), and of every tensor below the head theta = u K + k;  psi = (W, b, all K and k)
    (2)  c_i <- c_i - head_lr grad_c F(theta_i, c_i; b)                      by SGD with momentum 0.5, head_epochs passes
    (3)  (psi_i, e_i) <- (psi_i, e_i) - lr grad F(h(e_i; psi_i), c_i; b)     each group's gradient cut at the length `limit`; psi_i from psi^t
    (4)  psi^{t+1} = sum_i n_i psi_i / sum_i n_i                             client i is evaluated with h(e_i; psi^{t+1}) and c_i

Keeps: neither e_i, c_i nor theta_i is in any message; equal e_i and psi make equal theta_i.
Reduces to: training a head alone where lr = 0.
Departs: the paper's weight decay is client_optimizer=momentum:momentum=0.5,weight_decay=5e-4, which would shrink e_i too. K is drawn so that
theta_i starts with the variances of the model's own initialization. As global model counts h of an embedding that the server drew, under
the head of the initialization, since there is none. The variant for pretrained backbones, which makes adapters, is not here.
"""
from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import Weighting, weigh
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms import statistics
from fedjax_lab.parts.transforms.split import cut
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Method, Result, Task, Tree

PAPER = "A New Federated Learning Framework Against Gradient Inversion Attacks"
ALONE = "what it sends are the parameters of a generator"


class Own(NamedTuple):
    """embedding: e [E].  head: {path: leaf}, c."""

    embedding: jax.Array
    head: Tree


class Server(NamedTuple):
    """psi: {"first": W and b, path of a tensor: K and k}.  sample: what the global model is made from."""

    psi: Tree
    sample: Own


@method(family="personalization", paper=PAPER, year=2025, stateful=True, lr=0.02, epochs=5, batch_size=50, client_optimizer="momentum:0.5",
        refuses={"server": ALONE})
def hyperfl(task: Task, work: Work, *, embedding: Count = 64, hidden: Count = 128, head_epochs: Annotated[int, Range(0)] = 1,
            head_lr: Positive = 0.1, limit: Positive = 50.0, head: str = "head", weighting: Weighting = "examples") -> Method:
    """Clients train a generator of models together; what it makes their models from, and their heads, they keep.

    Args:
      embedding: E, numbers that a client's model is made from.
      hidden: units of the generator.
      head_epochs: passes over a client's data for its head, before the generator trains.
      head_lr: rate of the head.
      limit: greatest length of the gradient in the generator, and of that in the embedding.
      head: a word in the path of the head's leaves.
      weighting: clients count by their examples, or all alike.
    """
    if statistics.present(task):
        raise ValueError(f"'hyperfl' needs a model without normalization statistics; task '{task.name}' has some: choose norm=group or none")
    halves = cut(task, lambda params: named(params, head))
    shapes = {path: leaf.shape for path, leaf in halves.part(halves.like, False).items()}

    def model(psi, e, head):
        u = jax.nn.relu(e @ psi["first"]["kernel"] + psi["first"]["bias"])
        made = {k: (u @ psi["made"][k]["kernel"] + psi["made"][k]["bias"]).reshape(shape) for k, shape in shapes.items()}  # (1)
        return halves.join(made, head)

    def within(make):
        """The gradient in what `make` makes a model from."""
        return gradient(task._replace(loss=lambda y, batch, key: task.loss(make(y), batch, key)))

    def fit(key, psi, own, data):
        body = halves.part(model(psi, own.embedding, own.head), False)
        plan = batches(keys.purpose(key, "head"), data, work._replace(epochs=head_epochs, local_steps=0))
        return descend(plan, own.head, within(lambda c: halves.join(body, c)), optax.sgd(head_lr, 0.5)).params  # (2)

    def local(key, message, own, data):
        psi = message["model"]
        head = fit(key, psi, own, data) if head_epochs else own.head

        def direction(key, y, batch):
            loss, v, _ = within(lambda y: model(y["psi"], y["e"], head))(key, y, batch)
            return loss, {k: tree.scale(jnp.minimum(1, limit / jnp.maximum(tree.norm(g), 1e-12)), g) for k, g in v.items()}, ()

        end = descend(batches(key, data, work), {"psi": psi, "e": own.embedding}, direction, work.optimizer)  # (3)
        return Result({"model": tree.sub(end.params["psi"], psi)}, weigh(weighting, data), Own(end.params["e"], head), metrics={"loss": end.loss})

    def init_client(key, params, facts):
        return Own(jax.random.normal(keys.purpose(key, "embedding"), (embedding,)), halves.part(params, True))

    def init_server(key, params, census):
        draw = keys.purpose(key, "generator")

        def layer(name, rows, columns, deviation):
            return {"kernel": deviation * jax.random.normal(keys.purpose(draw, name), (rows, columns)), "bias": jnp.zeros(columns)}

        body = halves.part(params, False)
        made = {k: layer(k, hidden, v.size, jnp.sqrt(2 * jnp.mean(v**2) / hidden)) for k, v in body.items()}
        return Server({"first": layer("first", embedding, hidden, embedding**-0.5), "made": made}, init_client(key, params, None))

    def serve(key, server, aggregate, cohort):
        return server._replace(psi=tree.add(server.psi, aggregate["model"]))  # (4)

    return Method(local, init_server=init_server, init_client=init_client, broadcast=lambda server, client, clock: {"model": server.psi}, serve=serve,
                  steps=work.steps, deploy=lambda server: model(server.psi, *server.sample),
                  personal=lambda key, server, own, data: model(server.psi, *own))
