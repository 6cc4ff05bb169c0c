"""Claims of the representation family, with the margins of their cards."""
from __future__ import annotations

import numpy as np

from experiments.claims.aggregation import embedded
from experiments.claims.personalization import OWN, RATES, p20
from experiments.claims.records import ACCURACY, TUNED, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import digits
from fedjax_lab.data import sources


def one_class(rounds: int = 150) -> Scenario:
    """UCI digits, ten clients with one digit each, a network without biases."""
    return Scenario(f"UCI digits, MLP 64-128-64-10 without biases, ten clients with one digit each, 10 of 10 clients, 10 local steps, {rounds} rounds",
                    {"task": "digits_mlp:widths=128/64,bias=false", "partition": "pathological:1", "clients": 10, "cohort": 10, "rounds": rounds,
                     "eval_every": rounds}, {"local_steps": 10, "batch_size": 32})


def skewed(rounds: int = 40) -> Scenario:
    """UCI digits, ten clients, Dirichlet(0.1)."""
    return digits(rounds, cohort=10, clients=10, options={"epochs": 2, "batch_size": 32}, every=rounds)


def principal(x: np.ndarray) -> np.ndarray:
    """The first 32 principal components of MNIST's pixels, found on its training set, in units of the first one's deviation."""
    pixels = np.asarray(sources.load("mnist").train["x"])[::10].reshape(-1, 784).astype(np.float64)
    pixels = (pixels / 255 - 0.13) / 0.31 if pixels.max() > 1 else (pixels - 0.13) / 0.31
    lam, xi = np.linalg.eigh(np.cov(pixels.T))
    return (x - pixels.mean(0)) @ xi[:, ::-1][:, :32] / lam[-1] ** 0.5


def generated() -> list[Claim]:
    text = "MNIST, 2,000 examples, their first 32 principal components, a linear classifier, dirichlet(0.05), 10 of 10 clients, 20 rounds of an epoch"
    where = Scenario(text, {"cohort": 10, "rounds": 20, "eval_every": 20}, {"epochs": 1, "batch_size": 20},
                     embedded("mnist principal", principal, "dirichlet:0.05", 10, 2000, 5000))
    mine, plain = Side("ggeur", {"target": 200}, TUNED), Side("fedavg", {}, TUNED)
    one_rate = [side._replace(options={**side.options, "lr": 0.0316}, rates={}) for side in (mine, plain)]
    return [Claim("ggeur/skew", mine, plain, where, ACCURACY, Margin("plus", 3),
                  note="FedAvg at its best rate, ten times GGEUR's, is better; the next row has one rate for both."),
            Claim("ggeur/skew-rate", *one_rate, where, ACCURACY, Margin("plus", 3))]


ETF = {"client_optimizer": "sgd"}

CLAIMS = (
    Claim("fedfn/one-class", Side("fedfn", {}, RATES), Side("fedavg", {}, RATES), one_class(), ACCURACY, Margin("plus", 5),
          note="On these digits FedAvg loses nothing at its best rate, three times the largest of the card's grid; the next row has the smallest."),
    Claim("fedfn/one-class-rate", Side("fedfn", {"lr": 0.03}, {}), Side("fedavg", {"lr": 0.03}, {}), one_class(), ACCURACY, Margin("plus", 5)),
    Claim("fedetf/digits", Side("fedetf", {**ETF, "tune_turns": 0}, RATES), Side("fedavg", {}, RATES), skewed(), ACCURACY, Margin("plus", 2),
          note="FedAvg at its best rate, three times FedETF's, is near what these digits allow."),
    Claim("fedetf/p20-fedavgft", Side("fedetf", {**ETF, "tune_turns": 5}, RATES), Side("fedavgft", {"finetune_epochs": 5, "tune": "head"}, RATES), p20(),
          OWN, Margin("plus", -0.5)),
    *generated(),
)
