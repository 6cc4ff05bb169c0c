"""pFedGate on the tanh classifier, with the gate differentiated by hand: switchable normalization of x, a linear layer, normalization over
the batch, sigmoid, mean; blocks chosen greedily by round(10 value) / size within the share a client affords, first blocks always.
"""
from __future__ import annotations

import numpy as np
import plan
from oracles._common import clipped, momentum_of, shares

EPS = 1e-5


def cut(problem, most):
    """[(tensor's slice of the flat vector's entries of a block)], first [L]."""
    at, spans, first = 0, [], []
    for a in problem.tensors(problem.start).values():
        width = -(-a.size // most)
        for i in range(0, a.size, width):
            spans.append(np.arange(at + i, at + min(i + width, a.size)))
            first.append(i == 0)
        at += a.size
    return spans, np.array(first)


def softmax(z):
    e = np.exp(z)
    return e / e.sum()


class Gate:
    def __init__(self, p, x):
        self.p, self.x = p, x
        means = [x.mean(1, keepdims=True)] * 2 + [x.mean() + np.zeros((len(x), 1))]
        variances = [x.var(1, keepdims=True)] * 2 + [x.var() + np.zeros((len(x), 1))]
        self.a, self.b = softmax(p["input", "means"]), softmax(p["input", "variances"])
        self.means, self.variances = np.array(means), np.array(variances)
        self.mu, self.nu = np.tensordot(self.a, self.means, 1), np.tensordot(self.b, self.variances, 1) + EPS
        self.hat = (x - self.mu) / np.sqrt(self.nu)
        self.out = self.hat * p["input", "scale"] + p["input", "shift"]

    def open(self, name):
        h = self.out @ self.p[name, "kernel"] + self.p[name, "bias"]
        deviation = np.sqrt(h.var(0) + EPS)
        hat = (h - h.mean(0)) / deviation
        y = 1 / (1 + np.exp(-(hat * self.p[name, "scale"] + self.p[name, "shift"])))

        def back(dg):
            dy = dg / len(h) * y * (1 - y)
            dhat = dy * self.p[name, "scale"]
            dh = (dhat - dhat.mean(0) - hat * (dhat * hat).mean(0)) / deviation
            own = {(name, "scale"): (dy * hat).sum(0), (name, "shift"): dy.sum(0), (name, "kernel"): self.out.T @ dh, (name, "bias"): dh.sum(0)}
            return own, dh @ self.p[name, "kernel"].T

        return y.mean(0), back

    def back(self, dout):
        dhat = dout * self.p["input", "scale"]
        dmu = (-dhat / np.sqrt(self.nu)).sum(1, keepdims=True)
        dnu = (dhat * (self.x - self.mu) * -0.5 * self.nu**-1.5).sum(1, keepdims=True)
        da, db = (self.means * dmu).sum((1, 2)), (self.variances * dnu).sum((1, 2))
        return {("input", "means"): self.a * (da - self.a @ da), ("input", "variances"): self.b * (db - self.b @ db),
                ("input", "scale"): np.array([(dout * self.hat).sum()]), ("input", "shift"): np.array([dout.sum()])}


def pick(value, size, first, share):
    kept, left = first.copy(), int(np.floor(share * size.sum() + 1e-3)) - size[first].sum()
    value = np.round(10 * value)
    for b in sorted(np.flatnonzero(~first), key=lambda b: -value[b] / size[b]):
        if size[b] <= left:
            kept[b], left = True, left - size[b]
    return kept


def run(problem, turns, *, lr, sparsity=(0.5,), blocks=5, gate_lr=0.1, value="gate", separate=False, mode="joint", limit=10.0,
        weighting="examples", client_optimizer="sgd", own=None, root=None):
    spans, first = cut(problem, blocks)
    size, x, rho, history = np.array([len(s) for s in spans]), problem.start, momentum_of(client_optimizer), []
    names, inputs = ("pick", "weigh") if separate else ("pick",), problem.examples(np.arange(1))[0].shape[1]

    def spread(by):
        found = np.zeros_like(x)
        for s, v in zip(spans, by):
            found[s] = v
        return found

    def fresh(i):
        p = {("input", "means"): np.zeros(3), ("input", "variances"): np.zeros(3), ("input", "scale"): np.ones(1), ("input", "shift"): np.zeros(1)}
        for name in names:
            unit = plan.drawn("uniform", root, ("rows", i, "gate", name), (inputs, len(size)))
            p |= {(name, "kernel"): (2 * unit.astype(np.float64) - 1) / np.sqrt(inputs), (name, "bias"): np.zeros(len(size))}
            p |= {(name, "scale"): np.ones(len(size)), (name, "shift"): np.zeros(len(size))}
        return p

    def adapted(p, rows, share):
        gate = Gate(p, problem.examples(rows)[0])
        raw, back = gate.open("pick")
        g = np.maximum(raw, min(max(1 / blocks, 0.1), share))
        k = pick(g if value == "gate" else (g + size / size.sum()) / 2, size, first, share)
        m, back_m = gate.open("weigh") if separate else (g, None)

        def slope(duse):
            own, dout = back((m * duse if separate else k * duse) * (g == raw))
            if separate:
                more, again = back_m(k * duse)
                own, dout = own | more, dout + again
            return own | gate.back(dout)

        return spread(m * k), slope

    gate = [fresh(i) for i in range(problem.clients)]
    for cohort in turns:
        ends = []
        for turn in cohort:
            i, y, moment = turn.client, x, np.zeros_like(x)
            share, work = sparsity[i % len(sparsity)], [(rows, True, True) for rows in turn.batches]
            if mode == "turns":
                per, before = -(-problem.size[i] // len(turn.batches[0])), turn.again("gate")
                work = [(rows, side == 0, side == 1) for e in range(0, len(before), per) for side, b in enumerate((before, turn.batches)) for rows in b[e : e + per]]
            for rows, of_gate, of_theta in work:
                by, slope = adapted(gate[i], rows, share)
                G = problem.gradient(y * by, rows)
                u = slope(np.array([(y * G)[s].sum() for s in spans]))
                length = np.sqrt(sum((v**2).sum() for v in u.values()))
                if of_theta:
                    v = clipped(G * by, limit)
                    moment = rho * moment + v
                    y = y - lr * moment
                if of_gate:
                    gate[i] = {k: v - gate_lr * min(1.0, limit / length) * u[k] for k, v in gate[i].items()}
            ends.append(y)
        x = sum(p * y for p, y in zip(shares(problem, cohort, weighting), ends)) if cohort else x
        history.append(x)
        own.append(np.array([x * adapted(gate[i], problem.rows(i), sparsity[i % len(sparsity)])[0] for i in range(problem.clients)]))
    return history
