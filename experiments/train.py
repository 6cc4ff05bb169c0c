"""Trains one federated model: python -m experiments.train --method=fedavg --task=digits_mlp --partition=dirichlet:0.3

Without any flag: FedAvg on the UCI digits, 100 clients, Dirichlet(0.3), 10 clients a round. --help says what each flag does, --list
what there is to choose from.
"""
from __future__ import annotations

import sys

from absl import app, flags, logging

from experiments import screen
from fedjax_lab import config as configs
from fedjax_lab import spec

FLAGS = flags.FLAGS


def define() -> None:
    """One flag per field of Config, and what only the command line has."""
    for field in configs.fields():
        flags.DEFINE_string(field.name, None, f"{field.metadata['help']} (default: {field.default})", flag_values=FLAGS)
    flags.DEFINE_multi_string("set", [], "option of the method as key=value, repeatable; --list prints the options of --method", flag_values=FLAGS)
    flags.DEFINE_string("workdir", None, "folder for this run's files, new or empty (default: runs/<method>-<task>-<time>)", flag_values=FLAGS)
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
    """Runs from flags; 0 when done, 1 when the training broke off, 2 for a request that is not valid."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument '{argv[1]}'; settings are flags, --name=value")
        if FLAGS.list:
            screen.catalog()
            return 0
        return _train(read())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(config: configs.Config) -> int:
    from fedjax_lab import run, workdir

    prepared = run.prepare(config)
    folder = workdir.WorkDir(FLAGS.workdir or workdir.default_path(config), prepared)
    live = screen.Live(prepared, folder.path)

    def report(prepared, row):
        folder.add(row)
        live.add(row)

    try:
        finished = run.follow(prepared, report)
    except run.Diverged as error:
        live.close()
        print(f"error: {error}; what was written before is in {folder.path}", file=sys.stderr)
        return 1
    live.close()
    folder.finish(finished)
    screen.summary(finished, folder.path)
    return 0


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.WARNING)  # orbax and JAX report every step of theirs
    app.run(main, flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
