"""Times rounds of FedAvg on fixed workloads: python -m experiments.bench --workload=w1 --npz=mnist.npz

One JSON object per workload on the standard output, and nothing else there. The program is compiled without the cache of earlier
processes. A device call trains --eval_every rounds; its time divided by its rounds is the time of each, and seconds_per_round is the
median over the timed rounds. Several workloads run in a process each, so that none inherits the memory of another.

    --reference  in turns with a page of plain JAX that does the same work, and the ratio of the two
    --plain      in turns with one jitted client update called from a Python loop
    --floor      what the arithmetic and the memory traffic must take on this machine, and the share of it in the measured time
    --profile=D  a JAX profiler trace in the folder D; the most expensive operations also as a table on the standard error
    --scale      instead: time and memory against clients, cohort, population, devices and the nodes of a gossip; --axes=nodes for the last alone
    --arrivals   instead: 10,000 uploads of a small model through fedbuff on the virtual clock, and how many times as long a plain event loop takes
    --write      all workloads with reference and floor, into PERFORMANCE.json and PERFORMANCE.md, or what --arrivals measures; what --scale
                 measures goes there too

The workloads are those of workloads.py: w1, w2, w3, w4 on MNIST, w5 generated for an accelerator, digits with nothing to download.
"""
from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
from typing import Annotated, Any

from absl import app, flags, logging

from experiments import screen
from experiments.bench import arrivals, floor, measure, report, scale, trace, workloads
from fedjax_lab import config as configs
from fedjax_lab import run, spec

FLAGS = flags.FLAGS
CONFIG = ("partition_file", "rounds", "eval_every", "seed", "chunk", "devices", "lanes", "precision", "data_dir", "cache_dir")
DEFAULTS = {"rounds": f"{workloads.PAIRS} calls", "eval_every": "a call of about half a second on two CPU cores"}
WAYS = {
    "reference": "take turns with the plain JAX round, and say how many times its time the library takes",
    "plain": "take turns with one jitted client update called from a Python loop",
    "floor": "also say what arithmetic and memory traffic must take on this machine",
    "scale": "measure time and memory against clients, cohort, population, devices and the nodes of a gossip instead, and write them",
    "arrivals": "simulate 10,000 asynchronous uploads instead, by the library and by a loop that trains one client at a time",
    "write": "measure with --reference and --floor, and write the results; or those of --arrivals",
}


def define() -> None:
    """The flags: what to time and how, where its data is, and the fields of Config that do not belong to a workload."""
    text = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
    names = ", ".join(workloads.WORKLOADS)
    flags.DEFINE_multi_string("workload", ["all"], f"{names}, or all for w1..w4; repeatable, or several joined by commas", flag_values=FLAGS)
    text("npz", None, "an .npz with x_train y_train x_test y_test, instead of the mnist of --data_dir")
    text("warmup", "5", "rounds before the timed ones (default: 5)")
    text("profile", None, "leave a profiler trace of one device call in this folder, and list its most expensive operations")
    text("axes", ",".join(scale.AXES), f"what --scale varies, of {', '.join(scale.AXES)} (default: all)")
    text("out", str(report.FOLDER), "folder for what --write and --scale write (default: experiments)")
    for name, help in WAYS.items():
        flags.DEFINE_bool(name, False, help, flag_values=FLAGS)
    for field in configs.fields():
        if field.name in CONFIG:
            text(field.name, None, f"{field.metadata['help']} (default: {DEFAULTS.get(field.name, field.default)})")


def given() -> dict[str, str]:
    """The flags that are fields of Config, where they are given."""
    return {name: getattr(FLAGS, name) for name in CONFIG if getattr(FLAGS, name) is not None}


def configure(name: str) -> configs.Config:
    """The configuration of a workload under the flags."""
    return workloads.configure(name, given(), FLAGS.npz)


def one(name: str, warmup: int) -> dict[str, Any]:
    """Measures one workload in this process, by what the flags ask for."""
    prepared = run.prepare(configure(name))
    rivals = {kind: functools.partial(workloads.rival, prepared, kind) for kind in ("reference", "plain") if getattr(FLAGS, kind)}
    for kind in rivals:
        workloads.check_even(prepared, kind)
    row = measure.measure(prepared, warmup, rivals)
    if FLAGS.floor:
        examples = row["examples_per_second"] * row["seconds_per_round"]
        row["floor"] = floor.floors(prepared, examples, row["seconds_per_round"])
    if FLAGS.profile is not None:
        found = trace.profile(prepared, pathlib.Path(FLAGS.profile))
        print(trace.table(found), file=sys.stderr)
        row["operations"] = [operation._asdict() for operation in found]
    return {"workload": name, **row}


def several(names: list[str]) -> int:
    """Measures each workload in a process of its own, and writes them where that is asked for; the worst exit status."""
    status, rows = 0, []
    for name in names:
        done = subprocess.run(command(name), check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        status = max(status, done.returncode)
        rows += [json.loads(done.stdout)] if done.returncode == 0 else []
    if FLAGS.write and rows:
        report.write(pathlib.Path(FLAGS.out), rows)
    return status


def command(name: str) -> list[str]:
    """What measures one workload with the same flags in a process of its own."""
    ways = [kind for kind in ("reference", "plain", "floor") if getattr(FLAGS, kind) or (FLAGS.write and kind != "plain")]
    texts = {**given(), **{k: getattr(FLAGS, k) for k in ("npz", "warmup", "profile") if getattr(FLAGS, k) is not None}}
    return [sys.executable, "-m", "experiments.bench", f"--workload={name}", *(f"--{k}={v}" for k, v in texts.items()),
            *(f"--{kind}" for kind in ways)]


def work() -> int:
    """What the flags ask for; the exit status."""
    names = workloads.chosen(FLAGS.workload)
    warmup = spec.convert(Annotated[int, spec.Range(0)], FLAGS.warmup, "--warmup")
    if FLAGS.scale:
        shared = {k: v for k, v in given().items() if k in ("chunk", "lanes", "cache_dir")}
        for axis in scale.chosen(FLAGS.axes):
            report.write(pathlib.Path(FLAGS.out), [], scale.run_axes([axis], shared))
        return 0
    if FLAGS.arrivals:
        shared = {k: v for k, v in given().items() if k in ("chunk", "devices", "lanes", "seed", "cache_dir")}
        row = arrivals.compare(arrivals.UPLOADS, shared)
        print(json.dumps(row), flush=True)
        if FLAGS.write:
            report.write(pathlib.Path(FLAGS.out), [], arrivals=[row])
        return 0
    for name in names:
        configure(name)
    if len(names) > 1 or FLAGS.write:
        return several(names)
    print(json.dumps(one(names[0], warmup)), flush=True)
    return 0


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 2 for a request that is not valid."""
    return screen.answer(argv, work)


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.WARNING)  # JAX reports every step of its own
    app.run(main, flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
