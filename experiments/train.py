"""Trains one federated model: python -m experiments.train --method=fedavg --task=digits_mlp --partition=dirichlet:0.3

Without any flag: FedAvg on the UCI digits, 100 clients, Dirichlet(0.3), 10 clients a round. --help says what each flag does, --list
what there is to choose from.
"""
from __future__ import annotations

import contextlib
import sys
import warnings

from absl import app, flags, logging

from experiments import screen
from fedjax_lab import config as configs
from fedjax_lab import platform, spec

FLAGS = flags.FLAGS


def define() -> None:
    """One flag per field of Config, and what only the command line has."""
    screen.define([field.name for field in configs.fields()])
    flags.DEFINE_multi_string("set", [], "option of the method as key=value, repeatable; --list prints the options of --method", flag_values=FLAGS)
    flags.DEFINE_string("workdir", None, "folder for this run's files, new, empty or of this run begun before (default: runs/<method>-<task>-<time>)",
                        flag_values=FLAGS)
    flags.DEFINE_string("resume", "auto", "auto goes on with a run that the workdir holds, must demands that it holds one, never that it holds nothing",
                        flag_values=FLAGS)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, in a run of several processes", flag_values=FLAGS)
    flags.DEFINE_string("processes", None, "how many processes the run has, or cluster for what JAX detects; by default what SLURM, Open MPI or "
                        "Kubernetes on TPUs says, else 1", flag_values=FLAGS)
    flags.DEFINE_string("process_id", None, "which of the processes this is, from 0", flag_values=FLAGS)
    flags.DEFINE_bool("tensorboard", False, "also write a TensorBoard event file", flag_values=FLAGS)
    flags.DEFINE_bool("list", False, "print tasks, partitions and methods with their options, and exit", flag_values=FLAGS)


def read() -> configs.Config:
    """The configuration that the flags make.

    Raises:
      ValueError: a flag's value is not valid.
    """
    values = {f.name: getattr(FLAGS, f.name) for f in configs.fields()}
    return configs.make({**values, "options": options(FLAGS.set, values["method"] or configs.Config.method)})


def options(items: list[str], method: str) -> dict[str, object]:
    """--set key=value, typed by the signature of the method's factory."""
    from fedjax_lab import registry

    factory = spec.choose("method", method, registry.catalog("method"))
    pairs = [item.partition("=") for item in items]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"--set={key}: expected key=value; options of {method}: {', '.join(o.name for o in spec.options(factory))}")
    return spec.bind(factory, (), {k.strip(): v for k, _, v in pairs}, name=method)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 1 when the training broke off, 2 for a request that is not valid, 143 after SIGTERM."""
    return screen.answer(argv, _answer)


def _answer() -> int:
    if FLAGS.list:
        screen.catalog()
        return 0
    return _train(read())


def _train(config: configs.Config) -> int:
    from fedjax_lab import chunks, resume, run, workdir

    platform.join(FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    path = FLAGS.workdir or workdir.default_path(config)
    start = resume.find(path, config, FLAGS.resume)
    screen.quiet()
    if start and run.finished(config, start):
        workdir.restore(path, start)
        if FLAGS.tensorboard:
            workdir.events(path, start.history)
        print(f"{path}: finished, {screen.describe(start.history[-1])}; more --rounds would go on")
        return 0
    prepared = run.prepare(resume.as_begun(path, config) if start else config)
    print(f"{screen.plan(prepared)}\ncompiling ...", flush=True)
    prepared = chunks.fitted(prepared, lambda line: print(line, flush=True))
    print(f"compiled in {prepared.compile_seconds:.1f} s, writing to {path}", flush=True)
    try:
        with workdir.WorkDir(path, prepared, start, FLAGS.tensorboard) as folder:
            if start:
                print(f"going on after round {start.clock}", flush=True)
            with contextlib.closing(screen.Live(prepared)) as live:
                finished = run.follow(prepared, lambda _, row: live.add(row), folder.start, folder.keep)
    except workdir.Stopped as stop:
        print(f"stopped by SIGTERM after round {stop.clock}; the same command goes on", file=sys.stderr)
        return stop.code
    except run.Diverged as error:
        print(f"error: {error}; what was written before is in {path}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    screen.summary(finished, path)
    return 0


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.FATAL)  # orbax reports every step of its own, and traces every error that is reported here
    warnings.formatwarning = lambda message, *where: f"warning: {message}\n"
    app.run(screen.together(main), flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
