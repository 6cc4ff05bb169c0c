"""Claims of the representation family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.personalization import OWN, RATES, p20
from experiments.claims.records import ACCURACY, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import digits


def one_class(rounds: int = 150) -> Scenario:
    """UCI digits, ten clients with one digit each, a network without biases."""
    return Scenario(f"UCI digits, MLP 64-128-64-10 without biases, ten clients with one digit each, 10 of 10 clients, 10 local steps, {rounds} rounds",
                    {"task": "digits_mlp:widths=128/64,bias=false", "partition": "pathological:1", "clients": 10, "cohort": 10, "rounds": rounds,
                     "eval_every": rounds}, {"local_steps": 10, "batch_size": 32})


def skewed(rounds: int = 40) -> Scenario:
    """UCI digits, ten clients, Dirichlet(0.1)."""
    return digits(rounds, cohort=10, clients=10, options={"epochs": 2, "batch_size": 32}, every=rounds)


ETF = {"client_optimizer": "sgd"}

CLAIMS = (
    Claim("fedfn/one-class", Side("fedfn", {}, RATES), Side("fedavg", {}, RATES), one_class(), ACCURACY, Margin("plus", 5),
          note="On these digits FedAvg loses nothing at its best rate, three times the largest of the card's grid; the next row has the smallest."),
    Claim("fedfn/one-class-rate", Side("fedfn", {"lr": 0.03}, {}), Side("fedavg", {"lr": 0.03}, {}), one_class(), ACCURACY, Margin("plus", 5)),
    Claim("fedetf/digits", Side("fedetf", {**ETF, "tune_turns": 0}, RATES), Side("fedavg", {}, RATES), skewed(), ACCURACY, Margin("plus", 2),
          note="FedAvg at its best rate, three times FedETF's, is near what these digits allow."),
    Claim("fedetf/p20-fedavgft", Side("fedetf", {**ETF, "tune_turns": 5}, RATES), Side("fedavgft", {"finetune_epochs": 5, "tune": "head"}, RATES), p20(),
          OWN, Margin("plus", -0.5)),
)
