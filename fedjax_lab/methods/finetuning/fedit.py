"""FedIT and FFA-LoRA: averages of low-rank adapters on a frozen model.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Chen, "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024.
Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024.

    (1)  W_i = W + s (B_i A_i)^T at every adapted matrix, s = alpha / r;  A random, B = 0 at the start        parts/transforms/lowrank.py
    (2)  (A_i, B_i) by local training from (A, B), from fresh optimizer state
    (3)  A <- sum_i n_i A_i / sum_i n_i,  B <- sum_i n_i B_i / sum_i n_i
    (4)  FFA-LoRA: A is drawn once from a seed that all share and stays as it is; (2) and (3) of B alone

Keeps: the base; a message has r (in + out) numbers per matrix, FFA-LoRA's r out. FFA-LoRA's A, and mean(B) A = mean(B A).
Reduces to: local LoRA with one client; FedAvg of the leaves named by `whole`, for them. FedIT's mean(B) mean(A) is not mean(B A).
Departs: adapts every matrix by default, where FedIT's script has the query alone (--set=where=query), and has no dropout before A. What
counts of a text is the data's affair: labels below zero do not.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting
from fedjax_lab.parts.transforms.base import averaged
from fedjax_lab.parts.transforms.lowrank import Start, adapted, sites
from fedjax_lab.registry import method
from fedjax_lab.spec import Count, Positive
from fedjax_lab.types import Method, Task

FEDIT = "Towards Building the Federated GPT: Federated Instruction Tuning"
FFALORA = "Improving LoRA in Privacy-preserving Federated Learning"


@method(family="finetuning", paper=FEDIT, year=2024, lr=3e-4, epochs=10, batch_size=64, client_optimizer="adamw")
def fedit(task: Task, work: Work, *, rank: Count = 16, scale: Positive = 1.0, where: tuple[str, ...] = (), whole: tuple[str, ...] = (),
          start: Start = "kaiming", weighting: Weighting = "examples") -> Method:
    """FedAvg of low-rank adapters on a frozen model.

    Args:
      rank: r of the adapters.
      scale: s = alpha / r.
      where: words, one of which is in the path of an adapted matrix; all matrices but tables of embeddings where none is given.
      whole: words, one of which is in the path of a leaf that is trained as it is, such as a new head.
      start: A's rows, kaiming (uniform within 1 / sqrt(in)) or orthogonal.
      weighting: clients count by their examples, or all alike.
    """
    model = adapted(task, sites(task, where, whole), rank=rank, scale=scale, start=start)  # (1)
    return averaged(model, work, weighting)  # (2), (3)


@method(family="finetuning", paper=FFALORA, year=2024, lr=1e-3, epochs=10, batch_size=64, client_optimizer="adamw")
def ffalora(task: Task, work: Work, *, rank: Count = 16, scale: Positive = 1.0, where: tuple[str, ...] = (), whole: tuple[str, ...] = (),
            start: Start = "kaiming", weighting: Weighting = "examples") -> Method:
    """FedAvg of the second factors of low-rank adapters whose first ones are random and stay.

    Args:
      rank: r of the adapters.
      scale: s = alpha / r; what it does, a rate does too.
      where: words, one of which is in the path of an adapted matrix; all matrices but tables of embeddings where none is given.
      whole: words, one of which is in the path of a leaf that is trained as it is, such as a new head.
      start: A's rows, kaiming (uniform within 1 / sqrt(in)) or orthogonal.
      weighting: clients count by their examples, or all alike.
    """
    model = adapted(task, sites(task, where, whole), rank=rank, scale=scale, start=start, fixed=("a",))  # (4)
    return averaged(model, work, weighting)
