"""Shows a scenario before anything is trained on it: python -m experiments.partition --source=mnist --partition=dirichlet:0.3

Writes partition.json (the manifest, as a run stores it) and partition.png (who has which labels, how far each client is from the
whole, how many examples it has) into --workdir, and prints the manifest. Of a sequence of tasks there is a pair of files for each.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import app, flags, logging

from experiments import screen
from fedjax_lab import config as configs
from fedjax_lab import spec

FLAGS = flags.FLAGS
CONFIG = ("task", "partition", "partition_file", "clients", "client_test", "data_seed", "data_dir", "cache_dir")


def define() -> None:
    """The fields of Config that decide who owns what, and what only this program has."""
    screen.define(CONFIG)
    flags.DEFINE_string("source", None, "SOURCE[:arg=value,...] alone, instead of --task", flag_values=FLAGS)
    flags.DEFINE_string("workdir", None, "folder for the files, new or empty (default: runs/partition-<time>)", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 2 for a request that is not valid."""
    return screen.answer(argv, _show)


def _show() -> int:
    from fedjax_lab import workdir
    from fedjax_lab.data import manifest

    shown = list(scenes(configs.make({name: getattr(FLAGS, name) for name in CONFIG})))
    folder = workdir.open_folder(FLAGS.workdir or f"runs/partition-{time.strftime('%Y%m%d-%H%M%S')}")
    for name, facts, draw in shown:
        text = manifest.text(facts)
        (folder / f"{name}.json").write_text(text)
        draw(folder / f"{name}.png")
        print(f"{text}{folder}: {name}.json, {name}.png")
    return 0


def scenes(config: configs.Config) -> Iterator[tuple[str, Mapping[str, Any], Callable[[Any], Any]]]:
    """(name, manifest, what draws the picture) of everything that the flags describe.

    Raises:
      ValueError: the source or the partition is not valid.
    """
    from fedjax_lab import run
    from fedjax_lab.data import picture, scenario, vertical

    origin = source(config)
    if origin.ready:
        people = run.ready(config, origin)
        yield "partition", people.manifest, lambda path: picture.plot(people, path)
        return
    asked = run.scene(config, origin)
    if any(spec.parse(item)[0] == "vertical" for item in spec.chain(asked["text"])):
        origin, parts = scenario.parties(asked["text"], asked["source"], key=asked["key"])
        facts = {**origin.manifest, "partition": asked["text"], **vertical.facts(parts)}
        yield "partition", facts, lambda path: picture.plot_parties(parts, facts, path)
        return
    stages = scenario.stages(**asked)
    for number, people in enumerate(stages):
        name = f"partition-{number}" if len(stages) > 1 else "partition"
        yield name, people.manifest, lambda path, people=people: picture.plot(people, path)


def source(config: configs.Config) -> Any:
    """The source of --source or of the task.

    Raises:
      ValueError: both are given, or it is not valid.
    """
    from fedjax_lab import tasks
    from fedjax_lab.data import sources

    if FLAGS.source is None:
        return tasks.load(config.task, config.data_dir, config.cache_dir)[0]
    if FLAGS.task is not None:
        raise ValueError(f"--source={FLAGS.source}: --task is given too; choose one of them")
    return sources.load(FLAGS.source, config.data_dir, config.cache_dir)


def entry() -> None:
    """Parses the flags and runs; a wrong flag is one line and exit status 2."""
    define()
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=screen.parse_flags)


if __name__ == "__main__":
    entry()
