"""FedBuff: uploads come one by one, and a buffer of them makes an update.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, Algorithm 1.

    (1)  u_i = y_i - w^v         y_i by local SGD from w^v, sent after v updates
    (2)  B <- B + s(n - v) u_i    n updates when the upload comes; s polynomial with a = 1/2 is 1 / sqrt(1 + n - v)
    (3)  m <- beta m + B / Z      w <- w + server_lr m           when Z uploads are in the buffer, which is then emptied

Keeps: B is divided by the number of uploads, not by the sum of their weights: an update of stale uploads is a short one.
Reduces to: FedAvg (uniform) with beta = 0, server_lr = 1, equal delays and Z clients in training; FedAsync (delta) with alpha = 1,
rho = 0 and Z = 1.
Departs: u is the change, minus the card's D. Z is the schedule's (buffered:Z); of Z uploads those without examples do not count.
"""
from __future__ import annotations

from fedjax_lab import tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.parts.clients import heard, weigh
from fedjax_lab.parts.moving import stepped
from fedjax_lab.parts.servers.optimizers import momentum
from fedjax_lab.parts.staleness import Staleness, worth
from fedjax_lab.parts.summed import shared, summed, weighted
from fedjax_lab.parts.transforms.served import served
from fedjax_lab.registry import method
from fedjax_lab.spec import NonNegative, Positive, Share
from fedjax_lab.types import Method, Task

PAPER = "Federated Learning with Buffered Asynchronous Aggregation"


@method(family="schedules", paper=PAPER, year=2022, schedule="buffered:10", refuses={"server": "its server step is the method"})
def fedbuff(task: Task, work: Work, *, server_lr: Positive = 0.1, beta: Share = 0.9, staleness: Staleness = "polynomial", a: NonNegative = 0.5,
            b: NonNegative = 4.0) -> Method:
    """A buffer of asynchronous uploads makes an update, with momentum at the server.

    Args:
      server_lr: step of the server along its momentum, which is up to 1 / (1 - beta) times the mean change.
      beta: share of the old momentum that stays.
      staleness: how an upload's worth falls with the updates since its start.
      a: how fast; 0.5 in the paper.
      b: up to how many updates hinge counts in full.
    """

    def local(key, message, client, data):
        x = message["model"]
        y = descend(batches(key, data, work), x, gradient(task), work.optimizer)  # (1)
        s = worth(staleness, data.staleness, a, b) * weigh("uniform", data)
        return weighted({"model": tree.sub(y.params, x)}, s, metrics={"loss": y.loss})

    def serve(key, w, aggregate, cohort):
        return stepped(shared(aggregate, heard(cohort)), aggregate["model"], w)  # (2)

    return served(summed(local, serve=serve, steps=work.steps), momentum(lr=server_lr, beta=beta))  # (3)
