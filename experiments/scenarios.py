"""Runs the scenarios of experiments/scenarios and writes down what they reached: python -m experiments.scenarios NAME [NAME ...] | all

A scenario is a flag file of experiments.train. Its comment says what it is, with which command it runs, and in the line "# Measured"
how long that took and what came out; that line is written here and nowhere else.
"""
from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax

from fedjax_lab import platform, spec, workdir

FOLDER = pathlib.Path(__file__).parent / "scenarios"
MARK = "# Measured"


class Result(NamedTuple):
    """A finished run: its seconds on the clock and on all cores together, and the metric before and after so many rounds."""

    seconds: float
    cpu_seconds: float
    metric: str
    before: float
    after: float
    rounds: int

    @property
    def better(self) -> bool:
        """Whether training helped."""
        return self.after > self.before if self.metric == "test_accuracy" else self.after < self.before

    def __str__(self) -> str:
        return (f"{MARK} on {platform.cores()} CPU cores (jax {jax.__version__}): {self.rounds} rounds, data and compilation included, in "
                f"{self.seconds:.0f} s ({self.cpu_seconds:.0f} s of CPU time); {self.metric} {self.before:.4f} -> {self.after:.4f}")


def names() -> list[str]:
    """The scenarios there are."""
    return sorted(path.stem for path in FOLDER.glob("*.flags"))


def run(name: str, flags: list[str]) -> Result:
    """Trains a scenario in a process of its own that finds no cache, with further flags.

    Raises:
      ValueError: the run failed; the line is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.train", f"--flagfile={FOLDER / name}.flags", f"--workdir={folder}/run",
                   f"--cache_dir={folder}/cache", *flags]
        start, before = time.perf_counter(), _cpu_seconds()
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=FOLDER.parents[1])
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - before
        if done.returncode:
            raise ValueError(f"{name}: {done.stderr.strip().splitlines()[-1].removeprefix('error: ')}")
        first, *_, last = workdir.history(f"{folder}/run")
    metric = "test_accuracy" if "test_accuracy" in last else "test_loss"
    return Result(seconds, cpu_seconds, metric, first[metric], last[metric], last["round"])


def _cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def record(text: str, line: str) -> str:
    """A flag file whose comment has this line in the place of the measured one, or at its end."""
    lines = text.splitlines()
    comment = [old for old in lines if old.startswith("#") and not old.startswith(MARK)]
    return "\n".join([*comment, line, *(old for old in lines if not old.startswith("#"))]) + "\n"


def main(argv: list[str]) -> int:
    """0 when all were run and did better than before training, 1 where one did not, 2 for a request that is not valid."""
    parser = spec.Arguments(prog="experiments.scenarios", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"{', '.join(names())}, or all")
    parser.add_argument("--list", action="store_true", help="print what each scenario is and what it reached, and exit")
    parser.add_argument("--data_dir", help="as in experiments.train")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{name}\n{_comment(name)}" for name in names()))
        return 0
    try:
        chosen = _chosen(args.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return max(_measure(name, [f"--data_dir={os.path.abspath(args.data_dir)}"] if args.data_dir else []) for name in chosen)


def _chosen(asked: list[str]) -> list[str]:
    if not asked:
        raise ValueError(f"no scenario is named; valid: {', '.join([*names(), 'all'])}")
    for name in asked:
        spec.choose("scenario", name, dict.fromkeys([*names(), "all"]))
    return names() if "all" in asked else asked


def _comment(name: str) -> str:
    lines = (FOLDER / f"{name}.flags").read_text().splitlines()
    return "\n".join(f"  {line[2:]}" for line in lines if line.startswith("# "))


def _measure(name: str, flags: list[str]) -> int:
    file = FOLDER / f"{name}.flags"
    try:
        result = run(name, flags)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name}: {str(result).removeprefix('# ')}", flush=True)
    if not result.better:
        print(f"error: {name}: {result.metric} is no better than before training", file=sys.stderr)
        return 1
    file.write_text(record(file.read_text(), str(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
