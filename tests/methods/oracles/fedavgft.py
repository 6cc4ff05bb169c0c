"""FedAvg + fine-tuning: the server's path is FedAvg's; a client's own model is SGD from x on its training data."""
from __future__ import annotations

from oracles import fedavg


def run(problem, turns, **options):
    return fedavg.run(problem, turns, **options)


def personal(problem, x, client: int, *, lr: float, epochs: int):
    """The fine-tuned model with full batches, one step an epoch."""
    y = x
    for _ in range(epochs):
        y = y - lr * problem.gradient(y, problem.rows(client))
    return y
