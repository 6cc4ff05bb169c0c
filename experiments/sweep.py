"""Trains one configuration with several seeds and options at once: python -m experiments.sweep --seeds=8 --sweep lr=0.01,0.03,0.1

Seeds, and options of the method that are floats, share one program and one device call; any other option, and any other flag of
experiments.train, may be swept too and costs a program for each value. Started again with the same --workdir it goes on.
"""
from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from absl import flags

from experiments import series
from fedjax_lab import config as configs
from fedjax_lab.config import Config

FLAGS = flags.FLAGS
SEEDS = 3
PROCESSES = 3  # that --ratios starts to see how long one takes


def define() -> None:
    """One flag per field of Config, and those of a sweep."""
    series.define((), SEEDS)
    flags.DEFINE_multi_string("set", [], "option of the method as key=value, repeatable", flag_values=FLAGS)
    flags.DEFINE_multi_string("sweep", [], "option of the method, or flag of experiments.train, as key=value,value,...; repeatable", flag_values=FLAGS)
    flags.DEFINE_bool("ratios", False, "also train the runs one after another, some in processes of their own, and say how much faster the sweep was", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 1 when the folder cannot be written, 2 for a request that is not valid."""
    return series.answer(argv, _sweep)


def _sweep() -> int:
    from fedjax_lab import many

    begin = time.perf_counter() - since_start()
    values = {f.name: getattr(FLAGS, f.name) for f in configs.fields()}
    base = configs.make({**values, "options": dict(series.pairs("set", FLAGS.set))})
    swept = {key: [v.strip() for v in text.split(",")] for key, text in series.pairs("sweep", FLAGS.sweep, "key=value,value,...")}
    grid = many.grid(base, series.seeds(SEEDS), swept)
    cells = [series.Cell(label(config, list(swept)), config) for config in grid]
    path = series.folder(f"sweep-{base.method}-{base.task.split(':')[0]}")
    fresh = not series.there(cells, path / "runs")
    results = series.train(cells, path / "runs")
    seconds = time.perf_counter() - begin
    series.conclude(path, results, [f"{base.method}, sweep of {', '.join(swept) or 'seeds'}: {series.settings(base)}"], cells[0].label)
    if FLAGS.ratios:
        print(ratios(results, cells, seconds if fresh else None), flush=True)
    return 0


def label(config: Config, swept: Sequence[str]) -> str:
    """The swept options of a run with their values, or its method."""
    return series.label("", {k: config.options.get(k, getattr(config, k, None)) for k in swept}) or config.method


def since_start() -> float:
    """Seconds since this process began, imports included; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            began = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return float(uptime.read().split()[0]) - began
    except OSError:
        return 0.0


def ratios(results: Mapping[str, Mapping[int, list]], cells: Sequence[series.Cell], seconds: float | None) -> str:
    """How much faster the sweep was than its runs one after another, in words, and what forbids more.

    A run of a sweep has a device to itself. So nothing is gained beyond the time of a run on one device over the number of devices, but
    by models so small that several of them side by side make better products; see engine.batch.

    Args:
      results: of all runs.
      cells: all runs.
      seconds: of the whole sweep, from the start of its process; None if part of it had been there before.
    """
    from fedjax_lab.engine import mesh

    config, numbers = cells[0].config, [cell.config.seed for cell in cells]
    share = statistics.mean(rows[-1]["seconds"] for runs in results.values() for rows in runs.values() if rows)
    single = warm(config, numbers)
    lines = f"one warm process, compilation apart: {single:.3g} s a run alone, {share:.3g} s in the sweep: {single / share:.4g} times faster"
    devices = mesh.make(None if config.devices == "auto" else config.devices).size
    if devices > 1:
        floor = warm(dataclasses.replace(config, devices=1), numbers[:2]) / devices
        lines += f"\n{devices} devices with a run each, which wait for nobody: {floor:.3g} s a run, {single / floor:.4g} times faster is the floor without side by side"
    some = cells[::-(-len(cells) // PROCESSES)]
    if seconds is None:
        return lines + "\nwhole processes: not measured, since part of the sweep had been there before"
    whole = statistics.mean(process(cell.config) for cell in some)
    return (f"{lines}\nwhole processes one after another: {whole:.3g} s each ({len(some)} were measured), {whole * len(cells):.4g} s for all "
            f"{len(cells)}, the sweep {seconds:.4g} s: {whole * len(cells) / seconds:.4g} times faster")


def warm(config: Config, seeds: Sequence[int]) -> float:
    """Mean seconds of a run alone, on all devices, one seed after the other in a process that has compiled the program."""
    from fedjax_lab import run

    prepared = run.prepare(config)
    for some in seeds[:1], seeds:
        start = time.perf_counter()
        for seed in some:
            list(run.rounds(prepared._replace(config=dataclasses.replace(config, seed=seed))))
    return (time.perf_counter() - start) / len(seeds)


def process(config: Config) -> float:
    """Seconds of a whole process that trains this run."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "experiments.train", f"--workdir={folder}/run", *configs.flags(config)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


if __name__ == "__main__":
    series.entry(define, main)
