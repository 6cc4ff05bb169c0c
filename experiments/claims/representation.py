"""Claims of the representation family, with the margins of their cards."""
from __future__ import annotations

import functools

import numpy as np

from experiments.claims.aggregation import embedded
from experiments.claims.personalization import OWN, RATES, p20
from experiments.claims.records import ACCURACY, TUNED, Claim, Margin, Scenario, Side
from experiments.claims.scenarios import digits, natural
from fedjax_lab import tasks
from fedjax_lab.data import source, sources
from fedjax_lab.types import Population, Task


def one_class(rounds: int = 150) -> Scenario:
    """UCI digits, ten clients with one digit each, a network without biases."""
    return Scenario(f"UCI digits, MLP 64-128-64-10 without biases, ten clients with one digit each, 10 of 10 clients, 10 local steps, {rounds} rounds",
                    {"task": "digits_mlp:widths=128/64,bias=false", "partition": "pathological:1", "clients": 10, "cohort": 10, "rounds": rounds,
                     "eval_every": rounds}, {"local_steps": 10, "batch_size": 32})


def skewed(rounds: int = 40) -> Scenario:
    """UCI digits, ten clients, Dirichlet(0.1)."""
    return digits(rounds, cohort=10, clients=10, options={"epochs": 2, "batch_size": 32}, every=rounds)


def principal(x: np.ndarray) -> np.ndarray:
    """The first 32 principal components of MNIST's pixels, found on its training set, in units of the first one's deviation."""
    pixels = np.asarray(sources.load("mnist").train["x"])[::10].reshape(-1, 784).astype(np.float64)
    pixels = (pixels / 255 - 0.13) / 0.31 if pixels.max() > 1 else (pixels - 0.13) / 0.31
    lam, xi = np.linalg.eigh(np.cov(pixels.T))
    return (x - pixels.mean(0)) @ xi[:, ::-1][:, :32] / lam[-1] ** 0.5


def generated() -> list[Claim]:
    text = "MNIST, 2,000 examples, their first 32 principal components, a linear classifier, dirichlet(0.05), 10 of 10 clients, 20 rounds of an epoch"
    where = Scenario(text, {"cohort": 10, "rounds": 20, "eval_every": 20}, {"epochs": 1, "batch_size": 20},
                     embedded("mnist principal", principal, "dirichlet:0.05", 10, 2000, 5000))
    mine, plain = Side("ggeur", {"target": 200}, TUNED), Side("fedavg", {}, TUNED)
    one_rate = [side._replace(options={**side.options, "lr": 0.0316}, rates={}) for side in (mine, plain)]
    return [Claim("ggeur/skew", mine, plain, where, ACCURACY, Margin("plus", 3),
                  note="FedAvg at its best rate, ten times GGEUR's, is better; the next row has one rate for both."),
            Claim("ggeur/skew-rate", *one_rate, where, ACCURACY, Margin("plus", 3))]


def four_domains(train: int = 150, test: int = 449) -> Population:
    """Digits-4D, a client for each domain of 8x8 images: UCI digits, others of them inverted, others under the pixels of a digit in one fixed
    random order, and MNIST."""
    uci, mnist, rng = sources.load("digits"), sources.load("mnist"), np.random.default_rng(12)
    x, y = (np.concatenate([side[field] for side in (uci.train, uci.test)]) for field in "xy")
    x, count = x.reshape(len(x), 64).astype(np.float64) / x.max(), train + test
    rows = rng.permutation(len(x))[:3 * count].reshape(3, count)
    under = x[rng.permutation(rows.ravel())[:count]][:, rng.permutation(64)]
    at = rng.permutation(mnist.examples)[:count]
    large = np.pad(np.asarray(mnist.train["x"])[at].reshape(count, 28, 28).astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    pooled = large.reshape(count, 8, 4, 8, 4).mean((2, 4)).reshape(count, 64) / (255 if large.max() > 1 else 1)
    images = np.stack([x[rows[0]], 1 - x[rows[1]], (x[rows[2]] + under) / 2, pooled]).reshape(4, count, 8, 8, 1).astype(np.float32)
    labels = np.stack([*(y[r] for r in rows), np.asarray(mnist.train["y"])[at]])
    sides = [{"x": np.concatenate(images[:, part]), "y": np.concatenate(labels[:, part])} for part in (slice(train), slice(train, None))]
    owners = [{"client": np.repeat(np.arange(4), size)} for size in (train, test)]
    return natural(source.make("digits of four domains", *sides, uci.classes, *owners))


def residual(norm: str, people: Population) -> Task:
    example = {k: v[:1] for k, v in people.train.examples.items()}
    return tasks.build("digits of four domains", "resnet8", example, 10, {"norm": norm, "width": "8", "blocks": "1/1"}, {})


def normed() -> tuple[Task, Population]:
    people = four_domains()
    return residual("batch", people), people


def domains() -> list[Claim]:
    where = Scenario("Digits-4D (8x8: UCI digits, inverted, over permuted pixels, MNIST; 150 to train and 449 to test in each), a ResNet of two blocks and width 8, "
                     "4 of 4 clients with a domain each, 40 rounds of one epoch", {"cohort": 4, "rounds": 40, "eval_every": 40},
                     {"epochs": 1, "batch_size": 32}, normed, reduced="CNN-S")
    grid = {"lr": (0.01, 0.0316, 0.1, 0.316)}
    other = where._replace(text=where.text + "; the baseline's has batch normalization")
    batch = Side("fedavg", {}, grid)
    standardized = Side("fedwon", {}, grid, task=functools.partial(residual, "weight_standardized"))
    return [Claim("fedbn/domains", Side("fedbn", {}, grid), batch, where, OWN, Margin("plus", 1.5), tuning=(100,)),
            Claim("fedwon/domains", standardized, batch, other, OWN, Margin("plus", 1.5), tuning=(100,)),
            Claim("fedwon/domains-fedbn", standardized, Side("fedbn", {}, grid), other, OWN, Margin("plus", -1), tuning=(100,))]


ETF = {"client_optimizer": "sgd"}

CLAIMS = (
    Claim("fedfn/one-class", Side("fedfn", {}, RATES), Side("fedavg", {}, RATES), one_class(), ACCURACY, Margin("plus", 5),
          note="On these digits FedAvg loses nothing at its best rate, three times the largest of the card's grid; the next row has the smallest."),
    Claim("fedfn/one-class-rate", Side("fedfn", {"lr": 0.03}, {}), Side("fedavg", {"lr": 0.03}, {}), one_class(), ACCURACY, Margin("plus", 5)),
    Claim("fedetf/digits", Side("fedetf", {**ETF, "tune_turns": 0}, RATES), Side("fedavg", {}, RATES), skewed(), ACCURACY, Margin("plus", 2),
          note="FedAvg at its best rate, three times FedETF's, is near what these digits allow."),
    Claim("fedetf/p20-fedavgft", Side("fedetf", {**ETF, "tune_turns": 5}, RATES), Side("fedavgft", {"finetune_epochs": 5, "tune": "head"}, RATES), p20(),
          OWN, Margin("plus", -0.5)),
    *generated(),
    *domains(),
)
