"""Claims of the communication family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.personalization import p20
from experiments.claims.records import ACCURACY, Claim, Margin, Side

SMALL = {"lr": (0.00316, 0.01, 0.0316, 0.1)}
MIXED = p20(40, partition="dirichlet:0.5", lr=0.1)
PLAIN = Side("fedavg", {}, {})


def ranked() -> list[Claim]:
    """FRL with and without a fifth of the clients sending the reverse of the honest ranking, and FedAvg under the same attack."""
    reverse, rates = {"attack": "ipm:0.2"}, {"lr": (0.0316, 0.1, 0.316, 1.0)}
    where = p20(60, cohort=10, partition="dirichlet:1.0", batch_size=8)
    frl, attacked = Side("frl", {}, rates), Side("frl", {}, rates, reverse)
    return [Claim("frl/reversed", attacked, frl, where, ACCURACY, Margin("plus", -5)),
            Claim("frl/fedavg-attacked", attacked, Side("fedavg", {}, rates, reverse), where, ACCURACY, Margin("plus", 20))]


CLAIMS = (
    Claim("powersgd/p20", Side("powersgd", {"rank": 4}, {}), PLAIN, MIXED, ACCURACY, Margin("plus", -1)),
    Claim("fedzip/p20", Side("fedavg", {}, {}, {"wire_up": "fedzip:survivors=true"}), PLAIN, MIXED, ACCURACY, Margin("plus", -2)),
    Claim("fetchsgd/p20", Side("fetchsgd", {"size": 0.1, "share": 0.02, "local_steps": 20}, {"lr": (0.01, 0.0316, 0.1)}),
          Side("fedavg", {"local_steps": 20}, {"lr": (0.01, 0.0316, 0.1)}, {"wire_up": "topk:0.07,memory=false"}), p20(40), ACCURACY, Margin("plus", 0)),
    Claim("heterofl/smallest", Side("heterofl", {}, SMALL), Side("heterofl", {"widths": (0.0625,), "scaler": False}, SMALL),
          p20(40, cohort=10, partition="dirichlet:0.5"), ACCURACY, Margin("plus", 0)),
    *ranked(),
)
