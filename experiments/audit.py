"""What a run tells of its examples: python -m experiments.audit --attack=geiping --task=digits_mlp --wire_up=awgn:1e-4

    dlg, idlg, geiping       examples are rebuilt from single uploads as the server receives them, through wires and privacy; of the first
                             model, or of the one after --rounds
    loss-threshold, lira     who was trained on is guessed from the final model; the run trains on half of each client's examples

Writes audit.md, audit.json and audit.png (true and rebuilt examples, or the ROC curve) into --workdir, and prints the table.
"""
from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import screen, series
from fedjax_lab import config as configs
from fedjax_lab import spec
from fedjax_lab.config import Config

FLAGS = flags.FLAGS
SHOWN = 8  # pictures


def define() -> None:
    """One flag per field of Config but `attack`, and those of an audit."""
    screen.define([field.name for field in configs.fields() if field.name != "attack"])
    flags.DEFINE_string("attack", "geiping", "what is tried on the run, NAME[:arg=value,...]: dlg, idlg, geiping, loss-threshold, lira", flag_values=FLAGS)
    flags.DEFINE_multi_string("set", [], "option of the method as key=value, repeatable", flag_values=FLAGS)
    flags.DEFINE_string("examples", None, "how many examples the clients have whose uploads are inverted (default: 1)", flag_values=FLAGS)
    flags.DEFINE_string("victims", None, "how many clients' uploads are inverted (default: 4)", flag_values=FLAGS)
    flags.DEFINE_string("workdir", None, "folder for the files, new or empty (default: runs/audit-<time>)", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    """Runs from flags; 0 when done, 2 for a request that is not valid."""
    return screen.answer(argv, _main)


def _main() -> int:
    from fedjax_lab import many, registry, run

    values = {f.name: getattr(FLAGS, f.name) for f in configs.fields() if f.name != "attack"}
    options = many.typed(FLAGS.method or Config.method, dict(series.pairs("set", FLAGS.set)))
    examples, victims = (series.number(name, spec.Count, default) for name, default in (("examples", 1), ("victims", 4)))
    try:
        return _audit(configs.make({**values, "options": options}), spec.build("audit", FLAGS.attack, registry.catalog("audit")), FLAGS.rounds is not None,
                      examples, victims)
    except run.Diverged as error:
        raise ValueError(f"the run that is audited broke off: {error}") from None


def _audit(config: Config, audit: Any, trained: bool, examples: int, victims: int) -> int:
    from fedjax_lab import workdir
    from fedjax_lab.parts.audits import inversion

    path = workdir.open_folder(FLAGS.workdir or f"runs/audit-{time.strftime('%Y%m%d-%H%M%S')}")
    title = f"{FLAGS.attack} on {config.method}, {series.settings(config) if trained else series.settings(config).replace(f', {config.rounds} rounds', '')}"
    if isinstance(audit, inversion.Inversion):
        rows, found = leaks(config, audit, examples, victims, trained)
        legend = f"Uploads of clients with {examples} example{'s' * (examples > 1)} each, {'after the run' if trained else 'of the first model'}."
        draw = functools.partial(pictures, found)
    else:
        rows, curve = members(config, audit)
        legend, draw = "Members are the half of each client's examples that the run was trained on, non-members the other half.", functools.partial(roc, curve)
    text = "\n".join([f"# {title}", "", legend, "", *markdown(rows)]) + "\n"
    (path / "audit.md").write_text(text)
    (path / "audit.json").write_text(json.dumps({"attack": FLAGS.attack, "flags": configs.flags(config), "rows": rows}, indent=1) + "\n")
    with (path / "audit.png").open("wb") as file:
        draw(file)
    print(f"\n{text}\n{path}: audit.md, audit.json, audit.png", flush=True)
    return 0


class Found(NamedTuple):
    """x and guess [V, B, ...]: the true and the rebuilt examples, in the same order."""

    x: np.ndarray
    guess: np.ndarray


def leaks(config: Config, inversion: Any, examples: int, victims: int, trained: bool) -> tuple[list[dict[str, Any]], Found]:
    """A row for each client and their mean, and what was rebuilt.

    Raises:
      ValueError: the setting is not one that can be inverted.
    """
    import jax

    from fedjax_lab import chunks, run

    prepared = run.prepare(config)
    state = run.follow(chunks.fitted(prepared)).state if trained else prepared.simulation.init(prepared.simulation.world, jax.random.key(config.seed))
    ids, target = victim(prepared, state, examples, victims)
    seen = observe(prepared, state, config.rounds * trained, ids, examples)

    def one(key, change, labels):
        return inversion.find(target, key, change, labels)

    print(f"rebuilding {len(ids)} x {examples} examples ...", flush=True)
    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(config.seed), len(ids)), seen["change"], seen["y"])
    found, seen = jax.device_get((found, seen))
    order = [matched(x, guess) for x, guess in zip(seen["x"], found.x, strict=True)]
    guess, labels = (np.stack([values[o] for values, o in zip(v, order, strict=True)]) for v in (found.x, found.labels))
    rows = [{"client": int(i), "mse": mse(x, g), "psnr": psnr(x, g, target.high - target.low),
             "labels_right": None if inversion.told(examples) else float((y == k).mean()), "distance": float(far)}
            for i, x, g, y, k, far in zip(ids, seen["x"], guess, seen["y"], labels, found.distance, strict=True)]
    mean = {name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return [*rows, {**mean, "client": "mean"}], Found(seen["x"], guess)


def victim(prepared: Any, state: Any, examples: int, victims: int) -> tuple[np.ndarray, Any]:
    """The ids of the clients that are attacked, and what the attacker knows of them.

    Raises:
      ValueError: the method, its options or the data are not ones that can be inverted.
    """
    import jax.numpy as jnp

    from fedjax_lab.parts.audits.inversion import Target

    config, population = prepared.config, prepared.population
    if len(prepared.method.exchanges) != 1:
        raise ValueError(f"--method={config.method}: it has several exchanges in a round, and one upload is inverted")
    if not population.counts.shape[1]:
        raise ValueError(f"--task={config.task}: it has no classes, and what is inverted is a classifier's gradient")
    option = {o.name: o.default for o in _options(config.method)} | dict(config.options)
    batch = option.get("batch_size", 1)
    if batch != "full" and batch < examples:
        raise ValueError(f"--examples={examples}: with batch_size={batch} the server does not know who is in which step; choose --set=batch_size=full")
    ids = np.flatnonzero(np.asarray(population.train.size) >= examples)[:victims]
    if len(ids) < victims:
        raise ValueError(f"--victims={victims}: {len(ids)} clients have {examples} examples; choose at most {len(ids)}")
    x = np.asarray(population.train.examples["x"])
    if not (np.issubdtype(x.dtype, np.floating) or x.dtype == np.uint8):
        raise ValueError(f"--task={config.task}: its inputs are {x.dtype}, and what is rebuilt are real numbers")
    low, high = (0.0, 1.0) if x.dtype == np.uint8 else (float(x.min()), float(x.max()))
    steps = int(prepared.method.steps(jnp.int32(examples)))
    task = prepared.method.task or prepared.task
    params = prepared.simulation.deploy(state)
    return ids, Target(task, params, option["lr"], steps, (examples, *x.shape[1:]), population.counts.shape[1], low, high)


def _options(method: str) -> list[Any]:
    from fedjax_lab import registry

    return spec.options(registry.catalog("method")[method])


def observe(prepared: Any, state: Any, clock: int, ids: np.ndarray, examples: int) -> dict[str, Any]:
    """{"change": what the server receives of each client's model, "x": [V, B, ...], "y": [V, B]}, of a round with these clients' first examples."""
    import jax
    import jax.numpy as jnp

    from fedjax_lab import keys
    from fedjax_lab.engine import exchange
    from fedjax_lab.types import ClientData, View

    (phase,), people = prepared.method.exchanges, prepared.population._replace(manifest={})
    widest = examples, max(1, int(np.max(people.test.size)))
    others = np.setdiff1d(np.arange(people.clients), ids)[: max(prepared.config.cohort - len(ids), 0)]
    roster = jnp.asarray(np.concatenate([ids, others]), jnp.int32)

    def one(population, state, client):
        few = population.train._replace(size=jnp.minimum(population.train.size, examples))
        views = [View(stream, client, capacity) for stream, capacity in zip((few, population.test), widest, strict=True)]
        data = ClientData(client, jnp.int32(clock), *views, population.counts[client], jnp.int32(np.iinfo(np.int32).max), public=population.public, roster=roster)
        key = keys.purpose(keys.for_client(keys.for_round(state.key, clock), client), "phase0")
        row, memory = jax.tree.map(lambda table: table[client], (state.clients, state.wires[0]))
        message, _, _ = exchange.transmit(phase.down, keys.purpose(key, "down"), phase.broadcast(state.server, client, data.clock), {})
        result = phase.local(keys.purpose(key, "local"), message, row, exchange.plain(phase, state.server, data))
        arrived, _, _ = exchange.transmit(phase.up, keys.purpose(key, "up"), result.upload, memory)
        batch = views[0].take(jnp.arange(examples), jnp.ones(examples, bool))
        x = batch["x"].astype(jnp.float32) / 255 if batch["x"].dtype == jnp.uint8 else batch["x"]
        return {"change": as_change(arrived, prepared.simulation.deploy(state)), "x": x, "y": batch["y"]}

    return jax.jit(jax.vmap(one, (None, None, 0)))(jax.tree.map(jnp.asarray, people), state, jnp.asarray(ids, jnp.int32))


def as_change(arrived: Mapping[str, Any], params: Any) -> Any:
    """The change of the model in what arrived; integers behind masks are taken for numbers of the size that their bits have.

    Raises:
      ValueError: nothing of the model's shapes is in it.
    """
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(params)
    found = jax.tree.leaves(arrived.get("model"))[: len(leaves)]
    if [x.shape for x in found] != [x.shape for x in leaves]:
        raise ValueError(f"the upload has no change of the model to invert, only {', '.join(sorted(arrived))}")
    return jax.tree.unflatten(structure, [x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32) / jnp.max(x) for x in found])


def matched(x: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The order of the guesses [B, ...] that is closest to x [B, ...]."""
    from scipy.optimize import linear_sum_assignment

    flat, other = x.reshape(len(x), -1), np.nan_to_num(guess.reshape(len(x), -1))
    return linear_sum_assignment(((flat[:, None] - other[None]) ** 2).mean(-1))[1]


def mse(x: np.ndarray, guess: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean((np.asarray(x, np.float64) - guess) ** 2))


def psnr(x: np.ndarray, guess: np.ndarray, wide: float) -> float:
    """Peak signal-to-noise ratio in dB, for values in a range so wide."""
    return 10 * math.log10(wide**2 / max(mse(x, guess), 1e-12))


def members(config: Config, membership: Any) -> tuple[list[dict[str, Any]], tuple[np.ndarray, np.ndarray]]:
    """One row of numbers, and the ROC curve.

    Raises:
      ValueError: the examples are not on the device.
    """
    from fedjax_lab.parts.audits import membership as parts

    if config.population != "device":
        raise ValueError(f"--population={config.population}: membership needs the examples on the device; leave it out")
    losses, inside, accuracy = halves(config, membership.shadows)
    score = membership.score(losses[0], losses[1:], inside[1:])
    row = {"members": int(inside[0].sum()), "others": int((~inside[0]).sum()), **parts.numbers(score, inside[0]), **accuracy}
    return [row], parts.roc(score, inside[0])


def halves(config: Config, shadows: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(losses [1 + K, M], inside bool [1 + K, M], accuracies of the first) of runs that were trained on halves of the clients' M examples."""
    import jax

    from fedjax_lab import chunks, run
    from fedjax_lab.data import halved
    from fedjax_lab.engine import evaluate, mesh

    whole = run.prepare(config).population
    rows, owner = halved.owned(whole.train)
    inside = halved.masks(np.random.default_rng(config.data_seed), owner, shadows)
    first = halved.only(whole, rows, owner, inside[0])
    prepared = chunks.fitted(run.prepare(config, population=first))
    values, sim, task = [], prepared.simulation, prepared.method.task or prepared.task
    measure = jax.jit(lambda params, x: evaluate.per_example(task, params, x, mesh.make(1), 500))
    for number, mask in enumerate(inside):
        print(f"run {number + 1} of {1 + shadows} ...", flush=True)
        half = halved.only(whole, rows, owner, mask)
        world = sim.world._replace(population=jax.device_put(half._replace(manifest={}), jax.tree.leaves(sim.world)[0].sharding))
        seeded = prepared._replace(config=dataclasses.replace(config, seed=config.seed + number), simulation=sim._replace(world=world), population=half)
        done = run.follow(seeded)
        values.append({k: np.asarray(v)[rows] for k, v in jax.device_get(measure(done.model.params, world.population.train.examples)).items()})
    accuracy = {f"accuracy_of_{name}": float(values[0]["accuracy"][which].mean())
                for name, which in (("members", inside[0]), ("others", ~inside[0])) if "accuracy" in values[0]}
    return np.stack([v["loss"] for v in values]), inside, accuracy


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table for people."""
    def shown(value):
        return "given" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    heads = [name.replace("_", " ") for name in rows[0]]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(map(shown, row.values()))} |" for row in rows)]


def pictures(found: Found, file: Any) -> None:
    """Writes a PNG: true examples above, rebuilt ones below; what is no picture is a strip."""
    plt = _pyplot()
    pairs = [v.reshape(-1, *v.shape[2:])[:SHOWN] for v in found]
    figure, panels = plt.subplots(2, len(pairs[0]), figsize=(1.2 * len(pairs[0]) + 0.6, 2.8), squeeze=False)
    for name, line, images in zip(("true", "rebuilt"), panels, pairs, strict=True):
        for panel, image in zip(line, images, strict=True):
            image = image if image.ndim == 3 and image.shape[-1] in (1, 3) else image.reshape(1, -1, 1)
            image = (image - found.x.min()) / max(np.ptp(found.x), 1e-12)
            panel.imshow(np.clip(image, 0, 1).squeeze(-1) if image.shape[-1] == 1 else np.clip(image, 0, 1), cmap="gray", aspect="auto", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
        line[0].set_ylabel(name)
    _save(figure, file)


def roc(curve: tuple[np.ndarray, np.ndarray], file: Any) -> None:
    """Writes a PNG: members found against false alarms."""
    figure, panel = _pyplot().subplots(figsize=(3.6, 3.4))
    panel.plot(*curve)
    panel.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    panel.set_xlabel("false alarms")
    panel.set_ylabel("members found")
    _save(figure, file)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, file: Any) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110, format="png")
    _pyplot().close(figure)


if __name__ == "__main__":
    series.entry(define, main)
