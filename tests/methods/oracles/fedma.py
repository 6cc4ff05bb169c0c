"""FedMA with one hidden layer: clients train nets of their own, of `share` of the width; the server matches their hidden units, as vectors
[incoming, bias], into atoms of posterior mean (m/s0 + sum v/s) / (1/s0 + c/s), m zero but for the bias; then clients take the atoms'
layer as it is, with what came out of a unit now coming out of its atom, and train the last layer alone, at a tenth of the rate for three
times as long. Its columns are averaged by the examples of their class. In the next round a client starts from its own atoms.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import momentum_of
from scipy.optimize import linear_sum_assignment


def gain(v, total, c, s, s0, m):
    """How much more likely v makes an atom that has the sum `total` of c vectors."""
    G, precision = m / s0 + total / s, 1 / s0 + c / s
    return (((v / s + G) ** 2) / (precision + 1 / s) - G**2 / precision).sum()


def match(clients, limit, gamma, s, s0, m, sweeps):
    J, owners = len(clients), []  # owners[i]: {client: unit}

    def add(j):
        V, here = clients[j], len(owners)
        table = np.full((len(V), here + min(len(V), limit - here)), 0.0)
        for unit, v in enumerate(V):
            for i, atom in enumerate(owners):
                total = sum(clients[k][u] for k, u in atom.items())
                table[unit, i] = gain(v, total, len(atom), s, s0, m) + np.log(min(len(atom), 10) / (J - len(atom)))
            for r in range(1, table.shape[1] - here + 1):
                table[unit, here + r - 1] = gain(v, 0 * v, 0, s, s0, m) - 2 * np.log(r) + 2 * np.log(gamma / J)
        rows, columns = linear_sum_assignment(-table)
        fresh = {}
        for unit, i in sorted(zip(rows, columns), key=lambda pair: pair[1]):
            if i < here:
                owners[i][j] = unit
            else:
                fresh[len(fresh)] = unit
        owners.extend({j: unit} for unit in fresh.values())

    owners.extend({0: unit} for unit in range(len(clients[0])))
    for j in range(1, J):
        add(j)
    for _ in range(sweeps):
        for j in range(J):
            for atom in owners:
                atom.pop(j, None)
            owners[:] = [atom for atom in owners if atom]
            if owners:
                add(j)
            else:
                owners.extend({j: unit} for unit in range(len(clients[j])))
    atoms = np.array([(m / s0 + sum(clients[j][u] for j, u in atom.items()) / s) / (1 / s0 + len(atom) / s) for atom in owners])
    place = [[next(i for i, atom in enumerate(owners) if atom.get(j) == unit) for unit in range(len(clients[j]))] for j in range(J)]
    return atoms, place


def run(problem, turns, *, lr, gamma=7.0, gamma_later=5.0, sigma=1.0, sigma0=1.0, prior_bias=0.1, share=0.5, sweeps=5, match_by="posterior",
        retrain=True, last_rate=0.1, last_times=3, head="head", client_optimizer="momentum:0.9", root=None, everyone=None):
    x, own, history = problem.tensors(problem.start), {}, []
    width = len(x["b1"])
    few, hidden = max(1, round(share * width)), np.arange(width)
    rho = momentum_of(client_optimizer)
    classes = np.array(problem.population.counts, np.float64)

    def trained(y, batches, rate, free):
        momentum = dict.fromkeys(y, 0.0)
        for rows in batches:
            slope = problem.tensors(problem.gradient(problem.flat(y), rows))
            momentum = {k: rho * momentum[k] + slope[k] * (k in free) for k in y}
            y = {k: y[k] - rate * momentum[k] for k in y}
        return y

    def narrow(y, at):
        w1, b1, w2 = np.zeros_like(y["w1"]), np.zeros_like(y["b1"]), np.zeros_like(y["w2"])
        w1[:, : len(at)], b1[: len(at)], w2[: len(at)] = y["w1"][:, at], y["b1"][at], y["w2"][at]
        return {**y, "w1": w1, "b1": b1, "w2": w2}

    for t, cohort in enumerate(turns):
        first, second = ({turn.client: turn for turn in everyone(p)[t]} for p in (0, 1))
        ids, locals_ = [turn.client for turn in cohort], []
        for i in ids:
            if i in own:
                y = narrow(x, own[i])
            else:
                mine = plan.first_params(problem.task, root, ("rows", i))
                y = narrow({k: np.asarray(v, np.float64) for k, v in mine.items()}, hidden[:few])
            locals_.append(trained(y, first[i].batches, lr, ("w1", "b1", "w2", "b2")))
        units = [np.column_stack([y["w1"].T, y["b1"]])[:few] for y in locals_]
        if match_by == "place":
            atoms, places = np.mean(units, 0), [list(range(few))] * len(ids)
        else:
            prior = np.array([0.0] * len(x["w1"]) + [prior_bias])
            atoms, places = match(units, width, gamma if t == 0 else gamma_later, sigma, sigma0, prior, sweeps)
        wide = np.zeros((width, units[0].shape[1]))
        wide[: len(atoms)] = atoms
        x = {**x, "w1": wide[:, :-1].T, "b1": wide[:, -1]}
        ends = []
        for i, y, place in zip(ids, locals_, places):
            own[i] = np.array(place)
            w2 = np.zeros_like(y["w2"])
            w2[place] = y["w2"][:few]
            y = {**x, "w2": w2, "b2": y["b2"]}
            batches = second[i].again(epochs=2 * last_times) if retrain else []
            ends.append(trained(y, batches, lr * last_rate, ("w2", "b2")))
        n = classes[ids]
        for name in ("w2", "b2"):
            mean = sum(n[k] * ends[k][name] for k in range(len(ids))) / np.maximum(n.sum(0), 1)
            x[name] = np.where(n.sum(0) > 0, mean, x[name])
        history.append(problem.flat(x))
    return history
