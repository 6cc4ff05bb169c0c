"""Measures what the cards claim: python -m experiments.claims NAME... | --family=F | --all [--quick]

A NAME is a method, for all of its claims, or one claim (scaffold-m/quad). Prints measured against expected and writes
experiments/CLAIMS.json and CLAIMS.md; the rows of other claims stay. --quick runs one seed at the recorded rates (the middle of the grid
where there is no row yet) in under three minutes a claim, and writes nothing.
"""
from __future__ import annotations

import argparse
import sys

from absl import logging

from experiments import claims
from experiments.claims import measure, report
from experiments.claims.records import Claim
from fedjax_lab import registry, spec


def chosen(names: list[str], family: str | None, everything: bool) -> list[Claim]:
    """The claims that were asked for.

    Raises:
      ValueError: nothing was asked for, or there is no such claim or family.
    """
    known = claims.catalog()
    families = {name: factory.info.family for name, factory in registry.catalog("method").items()}
    methods = {claim.method.method for claim in known.values()}
    if not (names or family or everything):
        raise ValueError(f"name a claim, a family or --all; claims: {', '.join(known)}")
    for name in names:
        spec.choose("claim", name, dict.fromkeys([*sorted(methods), *known]))
    if family:
        spec.choose("family", family, dict.fromkeys(families[m] for m in methods if m in families))
    return [claim for claim in known.values() if everything or claim.name in names or claim.method.method in names
            or (family and families.get(claim.method.method) == family)]


def run(claim: Claim, known: measure.Known) -> bool:
    """Measures, prints and records one claim; whether it shows."""
    row = report.plain(measure.record(claim, known))
    report.write([row], notes())
    method, baseline, gain = report.numbers(row)
    verdict = "shown" if row["shown"] else "NOT shown"
    print(f"{claim.name}: {verdict}: {row['metric']} {method} against {claim.baseline.method}'s {baseline}; gain {gain}, expected {row['expected']}; "
          f"{row['seconds']:.0f} s", flush=True)
    return row["shown"]


def notes() -> dict[str, str]:
    """The note of every claim."""
    return {claim.name: claim.note for claim in claims.catalog().values()}


def glance(claim: Claim, known: measure.Known) -> None:
    """Prints the direction of one claim."""
    method, baseline, gain = map(report.number, measure.quick(claim, recorded(claim), known))
    print(f"{claim.name}: {claim.metric.name} {method} against {claim.baseline.method}'s {baseline}; gain {gain}, expected "
          f"{claim.margin.words(claim.metric.higher)}; seed {claim.seeds[0]}, nothing is written", flush=True)


def recorded(claim: Claim) -> tuple[dict, dict]:
    """Both sides' rates in CLAIMS.json, or the middle of their grids."""
    row = next((row for row in report.read() if row["claim"] == claim.name), None)
    sides = (("method", claim.method), ("baseline", claim.baseline))
    return tuple({option: row["options"][name][option] if row else sorted(grid)[len(grid) // 2] for option, grid in side.rates.items()}
                 for name, side in sides)


def main(argv: list[str]) -> int:
    """0 when all were measured, whatever came out; 2 for a request that is not valid."""
    parser = spec.Arguments(prog="experiments.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods or claims")
    parser.add_argument("--family", help="all claims of a family of methods")
    parser.add_argument("--all", action="store_true", help="all claims")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing is written")
    parser.add_argument("--table", action="store_true", help="measure nothing, write CLAIMS.md and the notes anew")
    args = parser.parse_args(argv)
    if args.table:
        report.write([], notes())
        return 0
    status = 0
    try:
        wanted = chosen(args.names, args.family, args.all)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = measure.nothing()
    for claim in wanted:
        try:
            (glance if args.quick else run)(claim, known)
        except ValueError as error:  # a data set that is not here stops its own claims only
            print(f"error: {claim.name}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    logging.set_verbosity(logging.FATAL)  # array_record reports every file it opens
    sys.exit(main(sys.argv[1:]))
