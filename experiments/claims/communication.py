"""Claims of the communication family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.finetuning import turned
from experiments.claims.personalization import p20
from experiments.claims.records import ACCURACY, Claim, Margin, Metric, Scenario, Side

SMALL = {"lr": (0.00316, 0.01, 0.0316, 0.1)}
MIXED = p20(40, partition="dirichlet:0.5", lr=0.1)
PLAIN = Side("fedavg", {}, {})
GRADIENTS = p20(400, local_steps=1, batch_size=1)
GRADIENTS = GRADIENTS._replace(text=f"{GRADIENTS.text} of one step on one example")


def ranked() -> list[Claim]:
    """FRL with and without a fifth of the clients sending the reverse of the honest ranking, and FedAvg under the same attack."""
    reverse, rates = {"attack": "ipm:0.2"}, {"lr": (0.1, 0.316, 1.0)}
    where = p20(30, cohort=10, partition="dirichlet:1.0", train=2000, batch_size=8)._replace(reduced="10,000 examples, 100 clients, 60 rounds")
    frl, attacked = Side("frl", {}, rates), Side("frl", {}, rates, reverse)
    return [Claim("frl/reversed", attacked, frl, where, ACCURACY, Margin("plus", -5), tuning=(100,)),
            Claim("frl/fedavg-attacked", attacked, Side("fedavg", {}, rates, reverse), where, ACCURACY, Margin("plus", 20), tuning=(100,))]


def scalars() -> list[Claim]:
    """FedKSeed's few directions against so many that hardly any is drawn twice, and its drawing of large ones against a uniform one."""
    text = ("TinyViT-shift (a ViT of width 16 and depth 2 after 1,500 steps on 10,000 upright digits of MNIST; 6,000 others, turned and inverted, "
            "Dirichlet(0.1)), 5 of 20 clients, 20 rounds of 25 steps of 16 examples")
    where = Scenario(text, {"cohort": 5, "rounds": 20, "eval_every": 20}, {"local_steps": 25, "batch_size": 16}, turned(width=16, depth=2),
                     reduced="TinyLM-S, 30 rounds; unlimited directions are 2,048")
    fall = Metric("fall of the test loss from the base, nat", lambda rows: rows[0]["test_loss"] - rows[-1]["test_loss"], True)
    rates = {"lr": (0.0001, 0.000316, 0.001, 0.00316)}
    few, many, pro = (Side("fedkseed", options, rates) for options in ({"seeds": 256}, {"seeds": 2048}, {"seeds": 256, "pro": True}))
    return [Claim("fedkseed/tinyvit", few, many, where, fall, Margin("plus", -0.03), tuning=(100,)),
            Claim("fedkseed/tinyvit-pro", pro, few, where, fall, Margin("plus", -0.01), tuning=(100,))]


CLAIMS = (
    Claim("powersgd/p20", Side("powersgd", {"rank": 4}, {}), PLAIN, MIXED, ACCURACY, Margin("plus", -1)),
    Claim("fedzip/p20", Side("fedavg", {}, {}, {"wire_up": "fedzip:survivors=true"}), PLAIN, MIXED, ACCURACY, Margin("plus", -2)),
    Claim("fetchsgd/p20", Side("fetchsgd", {"size": 0.38, "share": 0.0077}, {"lr": (0.01, 0.0316, 0.1)}),
          Side("fedavg", {}, {"lr": (0.01, 0.0316, 0.1)}, {"wire_up": "topk:0.266,memory=false"}), GRADIENTS, ACCURACY, Margin("plus", 0), tuning=(100,)),
    Claim("heterofl/smallest", Side("heterofl", {}, SMALL), Side("heterofl", {"widths": (0.0625,), "scaler": False}, SMALL),
          p20(40, cohort=10, partition="dirichlet:0.5"), ACCURACY, Margin("plus", 0)),
    *ranked(),
    *scalars(),
)
