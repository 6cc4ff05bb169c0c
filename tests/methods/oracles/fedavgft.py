"""FedAvg + fine-tuning: x goes FedAvg's way; a client's own model is SGD from x on its training data, at finetune_rate lr."""
from __future__ import annotations

from oracles import fedavg
from oracles._common import sgd


def run(problem, turns, *, lr, finetune_epochs=1, finetune_rate=1.0, evaluation=None, own=None, **options):
    history = fedavg.run(problem, turns, lr=lr, **options)
    for x in history:
        passes = [turn.again(epochs=finetune_epochs, local_steps=0) if finetune_epochs else [] for turn in evaluation]
        own.append([sgd(problem, x, batches, finetune_rate * lr) for batches in passes])
    return history
