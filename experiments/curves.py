"""Draws finished runs into one picture: python -m experiments.curves --out=FILE.png RUN [RUN ...]"""
from __future__ import annotations

import json
import pathlib
import sys

from fedjax_lab import spec, workdir
from fedjax_lab.metrics import curves


def main(argv: list[str]) -> int:
    """0 when drawn, 2 where a folder holds no run."""
    parser = spec.Arguments(prog="experiments.curves", description=__doc__)
    parser.add_argument("runs", nargs="+", help="workdirs of experiments.train, labeled by their method")
    parser.add_argument("--out", required=True, help="the picture to write")
    parser.add_argument("--axis", choices=curves.AXES, default="round", help="what to draw against (default: round); time is that of a virtual clock")
    args = parser.parse_args(argv)
    rows = {}
    for run in args.runs:
        try:
            name = json.loads((pathlib.Path(run) / "config.json").read_text())["config"]["method"]
            rows[name if name not in rows else run] = workdir.history(run)
        except OSError:
            print(f"error: {run} holds no run (config.json or metrics.jsonl is missing)", file=sys.stderr)
            return 2
    lacking = [label for label, history in rows.items() if args.axis not in history[-1]]
    if lacking:
        print(f"error: --axis={args.axis}: {lacking[0]} has no such column; choose round, or runs under a schedule that has", file=sys.stderr)
        return 2
    curves.draw(rows, pathlib.Path(args.out), args.axis)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
