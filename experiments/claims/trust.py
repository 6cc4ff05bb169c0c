"""Claims of the trust family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.personalization import pooled
from experiments.claims.records import ACCURACY, Claim, Margin, Scenario, Side

RATES = {"lr": (0.0316, 0.1, 0.316)}


def silos(text: str, attack: str, clients: int, rounds: int, partition: str = "iid", **options) -> Scenario:
    """4,000 examples of MNIST at some silos that all take part, some of which attack."""
    settings = {"cohort": clients, "rounds": rounds, "eval_every": rounds, "attack": attack}
    return Scenario(f"{text}, {clients} clients ({partition}) of MNIST 14x14, 4,000 examples, MLP 196-64-32-10, {rounds} rounds, --attack={attack}",
                    settings, {"batch_size": 20, **options}, pooled(partition, 4000, 2000, clients))


def robust() -> list[Claim]:
    noise = silos("3 of 15 send uniform noise", "free-rider:share=0.2,sends=uniform", 15, 30, local_steps=5)
    flag = Side("fedavg", {}, RATES, {"aggregator": "flag"})
    return [
        Claim("flag/noise", flag, Side("fedavg", {}, RATES), noise, ACCURACY, Margin("plus", 30)),
        Claim("flag/noise-median", flag, Side("fedavg", {}, RATES, {"aggregator": "median"}), noise, ACCURACY, Margin("plus", 0)),
    ]


CLAIMS = robust()
