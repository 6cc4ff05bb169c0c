"""Claims of the communication family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.personalization import p20
from experiments.claims.records import ACCURACY, Claim, Margin, Side

MIXED = p20(40, partition="dirichlet:0.5", lr=0.1)
PLAIN = Side("fedavg", {}, {})

CLAIMS = (
    Claim("powersgd/p20", Side("powersgd", {"rank": 4}, {}), PLAIN, MIXED, ACCURACY, Margin("plus", -1)),
    Claim("fedzip/p20", Side("fedavg", {}, {}, {"wire_up": "fedzip:survivors=true"}), PLAIN, MIXED, ACCURACY, Margin("plus", -2)),
    Claim("fetchsgd/p20", Side("fetchsgd", {"size": 0.1, "share": 0.02, "local_steps": 20}, {"lr": (0.01, 0.0316, 0.1)}),
          Side("fedavg", {"local_steps": 20}, {"lr": (0.01, 0.0316, 0.1)}, {"wire_up": "topk:0.07,memory=false"}), p20(40), ACCURACY, Margin("plus", 0)),
)
