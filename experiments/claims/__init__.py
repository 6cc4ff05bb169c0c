"""Each system's reduced experiment: what its card expects, measured. `python -m experiments.claims --help` says how to run them."""
from __future__ import annotations

from experiments.claims.records import Claim


def catalog() -> dict[str, Claim]:
    """All claims by name, family by family."""
    from experiments.claims import baselines, optimization, personalization

    return {claim.name: claim for claim in (*optimization.CLAIMS, *baselines.CLAIMS, *personalization.CLAIMS)}
