"""Claims of the methods for scarce labels, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.personalization import pooled
from experiments.claims.records import ACCURACY, Claim, Margin, Scenario, Side

RATES = {"lr": (0.0316, 0.1, 0.316)}
VIEWS = {"weak": "crop:1", "strong": "crop:2+rotate:20+cutout:4"}
TEXT = ("MNIST 14x14, 10,000 examples, 5 % of each client's with a label, MLP 196-64-32-10, dirichlet(0.1), 8 of 30 clients, 40 rounds of 20 steps of 32 examples")
WHERE = Scenario(TEXT, {"cohort": 8, "rounds": 40, "eval_every": 40}, {"local_steps": 20, "batch_size": 32},
                 pooled("dirichlet:0.1+semi:0.05", 10000, 2000, clients=30))
LABELED = Side("fixmatch-fl", {"threshold": 1.01, **VIEWS}, RATES)  # FedAvg on the labeled examples


def against(name: str, baseline: Side, method: Side, points: float, reduced: str = "") -> Claim:
    return Claim(name, method, baseline, WHERE._replace(reduced=reduced), ACCURACY, Margin("plus", points))


OWN = "the card has no experiment of its own; this is FedLabel's"
FEDLABEL = Side("fedlabel", VIEWS, RATES)
CLAIMS = (
    against("fixmatch-fl/labeled", LABELED, Side("fixmatch-fl", VIEWS, RATES), 0, OWN),
    against("fedsem/labeled", Side("fedsem", {"warmup": 40}, RATES), Side("fedsem", {"warmup": 10}, RATES), 0, OWN),
    against("fedlabel/labeled", LABELED, FEDLABEL, 3),
    against("fedlabel/global", Side("fixmatch-fl", {"labeler": "global", **VIEWS}, RATES), FEDLABEL, 0.5),
)
