"""What evaluations do not say of a run."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lab import run
from fedjax_lab.engine import malice
from fedjax_lab.parts.attacks import text
from fedjax_lab.parts.oracles.pgd import perturbed
from fedjax_lab.run import Prepared
from fedjax_lab.types import ClientData, Population, State, View


def head_agreement(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
    """{"head_agreement": the mean cosine between the head's changes of any two clients, all of them trained from the present model}."""
    people, data_of = _seen(prepared)
    phase = prepared.method.exchanges[-1]

    def change(people, state, clock, client, row):
        data = data_of(people, client, clock)
        result = phase.local(jax.random.fold_in(state.key, client), phase.broadcast(state.server, client, clock), row, data)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(result.upload["model"]["head"])])

    changes = jax.jit(jax.vmap(change, in_axes=(None, None, None, 0, 0)))

    def find(state: State, clock: int) -> dict[str, float]:
        heads = changes(people, state, jnp.int32(clock), jnp.arange(people.clients), state.clients)
        return {"head_agreement": agreement(np.asarray(heads, np.float64))}

    return find


def agreement(rows: np.ndarray) -> float:
    """The mean cosine between any two of the rows [N, d]."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    count = len(rows)
    return float(((unit.sum(0) ** 2).sum() - (unit**2).sum()) / (count * (count - 1)))


def attackers(prepared: Prepared) -> np.ndarray:
    """bool [groups, N]: who attacks, group by group in the order of --attack."""
    adversary, n = text.from_text(prepared.config.attack, prepared.config.data_seed), prepared.population.clients
    return np.array([member for _, member, _ in malice.groups(adversary, n, jnp.arange(n))])


def excluded(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
    """{"excluded": 1 where RFFL has left out all attackers, else 0}; 0 of a method that leaves out nobody."""
    bad = attackers(prepared).any(0)

    def find(state: State, clock: int) -> dict[str, float]:
        return {"excluded": float(hasattr(state.server, "inside") and not np.asarray(state.server.inside)[bad].any())}

    return find


def standing(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
    """{"honest_accuracy": the mean over the clients that do not attack of their models' accuracy on all test examples, "fairness": its correlation
    with what each of them reaches alone, by the same options; 0 where all have one model}."""
    bad = attackers(prepared).any(0) if prepared.config.attack else np.zeros(prepared.population.clients, bool)
    config = dataclasses.replace(prepared.config, method="local", attack=None)
    *_, last = run.rounds(alone := run.prepare(config, task=prepared.task, population=prepared.population))
    reference, measured = _owned(alone)(last.state)[~bad], _owned(prepared)

    def find(state: State, clock: int) -> dict[str, float]:
        found = measured(state)[~bad]
        return {"honest_accuracy": float(found.mean()), "fairness": float(np.corrcoef(found, reference)[0, 1]) if np.ptp(found) else 0.0}

    return find


def _owned(prepared: Prepared) -> Callable[[State], np.ndarray]:
    """(state) -> the accuracy [N] of every client's model, or of the global one, on all test examples."""
    (people, data_of), method, task = _seen(prepared), prepared.method, prepared.task

    def accuracy(people, state, client, row):
        batch = {**people.test.examples, "mask": jnp.ones(len(people.test.examples["y"]), bool)}
        data = data_of(people, client, jnp.int32(0))
        model = method.deploy(state.server) if method.personal is None else method.personal(state.key, state.server, row, data)
        return jnp.mean(task.metrics(task.apply(model, batch), batch)["accuracy"])

    each = jax.jit(jax.vmap(accuracy, in_axes=(None, None, 0, 0)))
    return lambda state: np.asarray(each(people, state, jnp.arange(people.clients), state.clients), np.float64)


def _seen(prepared: Prepared) -> tuple[Population, Callable[[Population, jax.Array, jax.Array], ClientData]]:
    """The population on the device, and (population, client, clock) -> what that client sees of it."""
    people, unlimited = jax.tree.map(jnp.asarray, prepared.population._replace(manifest={})), jnp.int32(np.iinfo(np.int32).max)
    capacity = [int(np.max(stream.size)) for stream in (people.train, people.test)]

    def data_of(people, client, clock):
        train, test = (View(stream, client, c) for stream, c in zip((people.train, people.test), capacity, strict=True))
        return ClientData(client, clock, train, test, people.counts[client], unlimited)

    return people, data_of


def confirmed(groups: tuple[int, ...]) -> Callable[[Prepared], Callable[[State, int], dict[str, float]]]:
    """{"recall": of the members of these groups of attackers, and "precision": of all who are confirmed, by MUD-HoG's marks}; 0 without any."""

    def probe(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
        bad = attackers(prepared)

        def find(state: State, clock: int) -> dict[str, float]:
            kind = np.asarray(state.server.marks.kind) > 0 if hasattr(state.server, "marks") else np.zeros(bad.shape[1], bool)
            wanted = bad[list(groups)].any(0)
            return {"recall": float(kind[wanted].mean()), "precision": float(bad.any(0)[kind].mean()) if kind.any() else 0.0}

        return find

    return probe


def robust(rho: float, steps: int = 20, restarts: int = 2, examples: int = 1000) -> Callable[[Prepared], Callable[[State, int], dict[str, float]]]:
    """{"robust_accuracy": the share of test examples that neither ascents from random starts, nor one step of the whole radius, spoil}."""

    def probe(prepared: Prepared) -> Callable[[State, int], dict[str, float]]:
        task, test = prepared.task, jax.tree.map(lambda x: jnp.asarray(x[:examples]), dict(prepared.population.test.examples))
        batch = {**test, "mask": jnp.ones(len(test["y"]), bool)}
        attacks = [perturbed(task, rho=rho, steps=steps)] * restarts + [perturbed(task, rho=rho, steps=1, step=rho, random=False)]

        @jax.jit
        def share(params):
            near = [attack(jax.random.key(number), params, batch) for number, attack in enumerate(attacks)]
            return jnp.mean(jnp.min(jnp.stack([task.metrics(task.apply(params, b), b)["accuracy"] for b in (batch, *near)]), 0))

        return lambda state, clock: {"robust_accuracy": float(share(prepared.simulation.deploy(state)))}

    return probe
