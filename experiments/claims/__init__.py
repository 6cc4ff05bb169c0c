"""Each system's reduced experiment: what its card expects, measured. `python -m experiments.claims --help` says how to run them."""
from __future__ import annotations

from experiments.claims.records import Claim


def catalog() -> dict[str, Claim]:
    """All claims by name, family by family."""
    from experiments.claims import (
        aggregation,
        baselines,
        communication,
        decentralized,
        distillation,
        finetuning,
        labels,
        modalities,
        optimization,
        personalization,
        representation,
        schedules,
        tasks,
        trust,
    )

    families = (optimization, baselines, aggregation, distillation, personalization, representation, modalities, communication, schedules, labels, tasks, decentralized, trust, finetuning)
    return {claim.name: claim for family in families for claim in family.CLAIMS}
