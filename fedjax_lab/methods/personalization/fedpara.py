"""FedPara and pFedPara: large tensors as Hadamard products of low-rank ones.

Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR 2022.

    (1)  W = (X1 Y1^T) * (X2 Y2^T) for every matrix and kernel                 parts/transforms/factored.py
    (2)  y <- y - lr grad F(W(y); b)                                           y the factors, from those received
    (3)  x^{t+1} = sum_i n_i y_i / sum_i n_i                                   the mean of factors, not of W
    (4)  pFedPara: W = (X1 Y1^T) * (X2 Y2^T + 1);  X1, Y1 as in (3), X2, Y2 stay with their client, which is evaluated with its own

Keeps: messages hold factors alone, 2 R (m + n) numbers for m n; pFedPara's hold half of them.
Reduces to: FedAvg where no tensor is factored; W = X1 Y1^T in pFedPara with X2 = 0.
Departs: without the optional tanh of a half. The paper lowers its rate, --set=lr_decay=0.992. form=low_rank is what it compares with.
start=matched draws factors so that W has the variance that the model asks for, where the paper's start makes it larger.
"""
from __future__ import annotations

from fedjax_lab.local import Work
from fedjax_lab.parts.clients import Weighting, local_sgd
from fedjax_lab.parts.leaves import named
from fedjax_lab.parts.transforms.factored import Form, Start, factored
from fedjax_lab.parts.transforms.split import cut, split
from fedjax_lab.registry import method
from fedjax_lab.spec import Share
from fedjax_lab.types import Method, Task

PAPER = "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning"


@method(family="personalization", paper=PAPER, year=2022)
def fedpara(task: Task, work: Work, *, share: Share = 0.1, form: Form = "hadamard", start: Start = "he", ordinary: str = "head",
            weighting: Weighting = "examples") -> Method:
    """FedAvg of the factors whose Hadamard products are the model's matrices and kernels.

    Args:
      share: of the way from the least rank, whose products may have full rank, to the one that saves nothing.
      form: hadamard; shifted, which adds one to the second half; or low_rank with as many numbers.
      start: variance of the factors: he has 2 / (entries of a row), matched that of the model's own tensors for their product.
      ordinary: a word in the path of the tensors that are not factored.
      weighting: clients count by their examples, or all alike.
    """
    smaller = factored(task, share, form=form, start=start, ordinary=ordinary)  # (1)
    return Method(local_sgd(smaller, work, weighting), steps=work.steps, task=smaller)  # (2), (3)


@method(family="personalization", paper=PAPER, year=2022, stateful=True)
def pfedpara(task: Task, work: Work, *, share: Share = 0.5, start: Start = "he", ordinary: str = "head", weighting: Weighting = "examples") -> Method:
    """FedPara of which the second half of every product is each client's own.

    Args:
      share: of the way from the least rank, whose products may have full rank, to the one that saves nothing.
      start: variance of the factors: he has 2 / (entries of a row), matched that of the model's own tensors for their product.
      ordinary: a word in the path of the tensors that are not factored.
      weighting: clients count by their examples, or all alike.
    """
    smaller = factored(task, share, form="shifted", start=start, ordinary=ordinary)
    whole = Method(local_sgd(smaller, work, weighting), steps=work.steps, task=smaller)
    return split(whole, cut(smaller, lambda params: named(params, "/two/")))  # (4)
