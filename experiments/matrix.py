"""Attacks against aggregators: python -m experiments.matrix --attacks=sign-flip,alie,ipm --aggregators=mean,krum,nnm+median --shares=0,0.1,0.2

Every attack at every share of attackers meets every aggregator, on the same clients and with the same attackers among them. The runs
are branches of one program, which one device call takes through many of them.

    W/runs/                          a folder per run, as of experiments.compare
    W/matrix.md, matrix.csv, matrix.png

Started again with the same --workdir it goes on.
"""
from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from experiments import series
from fedjax_lab import config as configs
from fedjax_lab import spec
from fedjax_lab.config import Config

FLAGS = flags.FLAGS
SEEDS = 1
AT_ONCE = 32  # so that little is lost when the process ends
SHARES = (0.0, 0.1, 0.2, 0.3)
NOBODY = "none"


class Place(NamedTuple):
    """A cell of the table. success: how often the attack got what it wanted, NaN where it wants nothing in particular."""

    attack: str
    share: float
    aggregator: str
    values: tuple[float, ...]
    success: float

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where all runs broke off."""
        return statistics.fmean(self.values) if self.values else math.nan


def define() -> None:
    """One flag per field of Config but those of the matrix, and those of a matrix."""
    series.define(("attack", "aggregator"), SEEDS, table=False)
    flags.DEFINE_multi_string("set", [], "option of the method as key=value, repeatable", flag_values=FLAGS)
    flags.DEFINE_string("attacks", None, "NAME[:arg=value,...], joined by commas (default: all)", flag_values=FLAGS)
    flags.DEFINE_string("aggregators", None, "rules, or chains of them joined by '+', joined by commas (default: mean and all robust ones)", flag_values=FLAGS)
    flags.DEFINE_string("shares", None, f"of clients that attack, joined by commas (default: {','.join(f'{s:g}' for s in SHARES)})", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 1 when the folder cannot be written, 2 for a request that is not valid."""
    return series.answer(argv, _matrix)


def _matrix() -> int:
    from fedjax_lab import blend, many

    method = FLAGS.method or Config.method
    options = many.typed(method, dict(series.pairs("set", FLAGS.set)))
    base = configs.make({**{f.name: getattr(FLAGS, f.name, None) for f in configs.fields()}, "options": options})
    attacks, rules = named(FLAGS.attacks, "attack"), named(FLAGS.aggregators, "aggregator")
    shares = [spec.convert(spec.Share, text.strip(), "--shares") for text in FLAGS.shares.split(",")] if FLAGS.shares else list(SHARES)
    for attack in attacks:
        blend.parted(blend.shared(attack, 0.1))
    for line in warnings(base, rules, shares):
        print(f"warning: {line}", flush=True)
    cells = grid(base, attacks, rules, shares, series.seeds(SEEDS))
    path = series.folder(f"matrix-{base.task.split(':')[0]}")
    results = series.train([series.Cell(label(config), config) for config in cells], path / "runs", blended=True, most=AT_ONCE)
    conclude(path, base, places(cells, results))
    return 0


def named(text: str | None, kind: str) -> list[str]:
    """The attacks or aggregators that a flag names; arg=value goes on with the item before it.

    Raises:
      ValueError: one is unknown, given twice, or has options that are not valid.
    """
    from fedjax_lab import registry
    from fedjax_lab.parts.transforms.composed import rule_of

    found: list[str] = []
    for piece in text.split(",") if text else default(kind):
        if found and re.match(r"\s*\w+=", piece):
            found[-1] += f",{piece.strip()}"
        else:
            found.append(piece.strip())
    for at, item in enumerate(found):
        if item in found[:at]:
            raise ValueError(f"--{kind}s: '{item}' is named twice")
        try:
            if kind == "attack":
                name, positional, values = spec.parse(item)
                if positional or "share" in values:
                    raise ValueError(f"'{item}': the share of attackers is --shares")
                spec.bind(spec.choose(kind, name, registry.catalog(kind)), (), values, name=name)
            else:
                rule_of(item)
        except ValueError as error:
            raise ValueError(f"--{kind}s={text}: {error}") from None
    return found


def default(kind: str) -> list[str]:
    """All attacks; the mean and all robust aggregators."""
    from fedjax_lab import registry

    if kind == "attack":
        return list(registry.catalog(kind))
    return ["mean", *(name for name, factory in registry.catalog(kind).items() if factory.info.family == "trust")]


def grid(base: Config, attacks: Sequence[str], rules: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> list[Config]:
    """All runs; without attackers there is no attack to tell apart."""
    from fedjax_lab import blend

    texts = [None] * (0 in shares) + [blend.shared(attack, share) for attack in attacks for share in shares if share]
    plain = {f.name: getattr(base, f.name) for f in configs.fields()}
    return [configs.make({**plain, "options": base.options, "attack": text, "aggregator": rule, "seed": seed})
            for text in texts for rule in rules for seed in seeds]


def label(config: Config) -> str:
    """Attack, share and aggregator of a run."""
    return f"{config.attack or NOBODY} {config.aggregator}"


def warnings(base: Config, rules: Sequence[str], shares: Sequence[float]) -> list[str]:
    """A line for each aggregator that meets more attackers than it is made for."""
    from fedjax_lab.parts.transforms.composed import rule_of

    lines = []
    for text in rules:
        claim = getattr(rule_of(text), "tolerates", None)
        beyond = [share for share in shares if claim and math.ceil(share * base.cohort - 1e-6) > claim(base.cohort)]
        if beyond:
            lines.append(f"{text} is made for {claim(base.cohort)} attackers in a cohort of {base.cohort}; "
                         f"shares {', '.join(f'{share:g}' for share in beyond)} are more")
    return lines


def places(cells: Sequence[Config], results: Mapping[str, Mapping[int, list[dict[str, float]]]]) -> list[Place]:
    """The cells of the table, from the last evaluations of all runs."""
    from fedjax_lab import blend, registry

    column, found = series.metric(results), []
    for config in {label(cell): cell for cell in cells}.values():
        attack, share = blend.parted(config.attack) if config.attack else (NOBODY, 0.0)
        ends = [rows[-1] for rows in results[label(config)].values() if rows]
        wants = bool(config.attack) and spec.build("attack", attack, registry.catalog("attack")).probe is not None
        success = statistics.fmean(end["attack_success"] for end in ends) if wants and ends else math.nan
        found.append(Place(attack, share, config.aggregator, tuple(end[column] for end in ends), success))
    return found


def conclude(path: epath.Path, base: Config, found: Sequence[Place]) -> None:
    """Writes matrix.md, matrix.csv and matrix.png, and prints the table."""
    text = markdown(f"Attacks against aggregators: {series.settings(base)}", found)
    (path / "matrix.md").write_text(text)
    (path / "matrix.csv").write_text(comma(found))
    draw(found, path / "matrix.png")
    print(f"\n{text}\n{path}: matrix.md, matrix.csv, matrix.png, runs/", flush=True)


def table(found: Sequence[Place]) -> tuple[list[str], list[tuple[str, float]], dict[tuple[str, float, str], Place]]:
    """(aggregators, (attack, share) of the rows, the places)."""
    where = {(p.attack, p.share, p.aggregator): p for p in found}
    return list(dict.fromkeys(p.aggregator for p in found)), list(dict.fromkeys((p.attack, p.share) for p in found)), where


def shown(place: Place) -> str:
    """A cell in words: percent of accuracy, the attack's success behind it where it has an aim."""
    if not place.values:
        return "broke"
    return f"{100 * place.mean:.1f}" + ("" if math.isnan(place.success) else f" ({100 * place.success:.0f})")


def markdown(title: str, found: Sequence[Place]) -> str:
    """The table for people."""
    rules, rows, where = table(found)
    legend = ("Mean of the last evaluations in percent; in brackets the attack's success, where it has an aim; \"broke\" is a run that "
              "ended in NaN or infinity.")
    lines = [f"# {title}", "", legend, "", f"| attack | share | {' | '.join(rules)} |", "|---|---" + "|---:" * len(rules) + "|"]
    for attack, share in rows:
        cells = (where[attack, share, rule] for rule in rules)
        lines.append(f"| {attack} | {share:g} | {' | '.join(map(shown, cells))} |")
    return "\n".join(lines) + "\n"


def comma(found: Sequence[Place]) -> str:
    """The table for programs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["attack", "share", "aggregator", "seeds", "mean", "std", "attack_success"])
    for p in found:
        blank = ["" if math.isnan(x) else x for x in (p.mean, statistics.pstdev(p.values) if p.values else math.nan, p.success)]
        writer.writerow([p.attack, p.share, p.aggregator, len(p.values), *blank])
    return out.getvalue()


def draw(found: Sequence[Place], path: Any) -> None:
    """Writes a PNG: a heat map with a row per attack and share, and a column per aggregator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rules, rows, where = table(found)
    values = [[where[attack, share, rule].mean for rule in rules] for attack, share in rows]
    figure, panel = plt.subplots(figsize=(2.6 + 0.8 * len(rules), 1.6 + 0.32 * len(rows)))
    image = panel.imshow(values, aspect="auto", cmap="viridis")
    for y, line in enumerate(rows):
        for x, rule in enumerate(rules):
            place = where[(*line, rule)]
            dark = math.isnan(place.mean) or image.norm(place.mean) > 0.6
            panel.text(x, y, shown(place), ha="center", va="center", fontsize=7, color="black" if dark else "white")
    panel.set_xticks(range(len(rules)), rules, rotation=40, ha="right", fontsize=8)
    panel.set_yticks(range(len(rows)), [f"{attack} {share:g}" for attack, share in rows], fontsize=8)
    figure.colorbar(image, ax=panel)
    figure.tight_layout()
    with path.open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    series.entry(define, main)
