"""Claims of the modalities family, with the margins of their cards."""
from __future__ import annotations

from experiments.claims.records import Claim, Margin, Metric, Scenario, Side

SPREAD = Metric("variance of the clients' test accuracy, points squared", lambda rows: (100 * rows[-1]["client_test_accuracy_std"]) ** 2, False)
MEAN = Metric("clients' mean test accuracy, %", lambda rows: 100 * rows[-1]["client_test_accuracy_mean"], True)

FAIR, PLAIN = (Side("qffl", {"q": q, "lr": 0.1}, {}) for q in (1.0, 0.0))
DRAWN = Scenario("synthetic(1,1), logistic regression, 10 of 100 clients drawn by size, 5 local steps, 1,000 rounds, one rate for both",
                 {"task": "synthetic_logreg:clients=100", "cohort": 10, "participation": "weighted", "rounds": 1000, "eval_every": 1000},
                 {"local_steps": 5, "batch_size": 10})

NOTE = "With whole epochs and 200 rounds the variance is a quarter lower, and the mean nine points: what looks fair there is slow."

CLAIMS = (
    Claim("qffl/synthetic", FAIR, PLAIN, DRAWN, SPREAD, Margin("times", 1.25), note=NOTE),
    Claim("qffl/synthetic-mean", FAIR, PLAIN, DRAWN, MEAN, Margin("plus", -1)),
)
