"""Claims of the methods that use public examples, with the margins of their cards."""
from __future__ import annotations

from statistics import fmean

from experiments.claims.personalization import OWN, pooled
from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Scenario, Side
from experiments.claims.scenarios import digits

RATES = {"lr": (0.0316, 0.1, 0.316)}
ADAM = {"lr": (0.001, 0.00316, 0.01)}


def served(name: str, public: int, cohort: int, rounds: int, epochs: int, points: float, reduced: str = "", **options) -> Claim:
    """A method whose server has public examples, against FedAvg with the same clients."""
    text = (f"MNIST 14x14, MLP 196-64-32-10, {public:,} public examples, {4000 - public:,} at 20 clients, dirichlet(0.1), {cohort} of 20 clients, {rounds} rounds "
            f"of {epochs} epochs")
    where = Scenario(text, {"cohort": cohort, "rounds": rounds, "eval_every": rounds}, {"epochs": epochs, "batch_size": 20},
                     pooled(f"public:{public}+dirichlet:0.1", 4000, 2000), reduced=reduced)
    return Claim(f"{name}/public", Side(name, options, RATES), Side("fedavg", {}, RATES), where, ACCURACY, Margin("plus", points))


def parties() -> Claim:
    text = ("MNIST 14x14, MLPs 196-64-32-10 and 196-128-10 in turn, 1,000 public examples, 90 at 5 parties with 6 classes each, 5 of 5 parties, 20 rounds of "
            "5 epochs, after 10 epochs of the public examples")
    where = Scenario(text, {"cohort": 5, "rounds": 20, "eval_every": 20}, {"epochs": 5, "batch_size": 5, "client_optimizer": "adam"},
                     pooled("public:1000+pathological:6", 1090, 1000, clients=5, model="mlp:widths=64/32+mlp:widths=128"))
    return Claim("fedmd/parties", Side("fedmd", {"sample": 500, "digest_batch": 128, "public_epochs": 10}, ADAM), Side("local", {}, ADAM), where, OWN,
                 Margin("plus", 5))


def fused(train: int, rounds: int = 20) -> Scenario:
    text = (f"MNIST 14x14, MLP 196-64-32-10, 500 public examples, {train:,} at 20 clients, dirichlet(0.1), 20 of 20 clients, {rounds} rounds of 5 epochs")
    return Scenario(text, {"cohort": 20, "rounds": rounds, "eval_every": rounds}, {"epochs": 5, "batch_size": 10}, pooled("public:500+dirichlet:0.1", train + 500, 1000))


def fusion() -> list[Claim]:
    uniform = Side("knfu", {"beta": 0.0}, RATES)
    return [Claim("knfu/uniform", Side("knfu", {}, RATES), uniform, fused(1000), OWN, Margin("plus", 1)),
            Claim("knfu/poor", Side("knfu", {}, RATES), Side("local", {}, RATES), fused(1000), OWN, Margin("plus", 0))]


def tuned() -> Claim:
    """The card's: digits, and the mean over the last ten rounds."""
    where = digits(60, cohort=6, options={"epochs": 5, "batch_size": 20}, every=2)
    late = Metric("mean test accuracy of the last ten rounds, %", lambda rows: 100 * fmean(row["test_accuracy"] for row in rows if row["round"] > 50), True)
    return Claim("fedftg/digits", Side("fedftg", {"noise": 32, "width": 64, "server_batch": 64}, RATES), Side("fedavg", {}, RATES), where, late, Margin("plus", 1))


CLAIMS = (tuned(), served("fedlaw", 200, 10, 40, 2, 2, "CIFAR-10"), served("feddf", 2000, 8, 15, 10, 1, server_steps=400), parties(), *fusion())
