"""Every method equals a plain numpy loop that was written from its card alone, round by round.

The oracles know nothing of the package: they see who takes part in which round, which rows each step reads, and a gradient.
"""
from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import plan
import problem as problems
import pytest
from jax.flatten_util import ravel_pytree
from quick import QUICK, quick

from fedjax_lab import keys, registry, schedules, spec
from fedjax_lab.engine import gossip, mesh, sync
from fedjax_lab.events import Arrival, Update
from fedjax_lab.parts.cohorts.uniform import uniform
from fedjax_lab.parts.mixing import links
from fedjax_lab.parts.mixing.text import from_text as graph_of
from fedjax_lab.parts.schedules.replay import replay
from fedjax_lab.types import ClientData, View

ROUNDS = 6
# The classifier has 2 to 10 steps a client, of reshuffled batches, the last of an epoch smaller, and one client with one example.
# The bowl has full batches and stragglers: 2 to 5 steps, as the engine allows. With gaps, moreover, some of the drawn are not
# heard, and in the fourth round nobody is.
LOOP = {"classifier": {"lr": 0.1, "epochs": 2, "batch_size": 4}, "bowl": {"lr": 0.1, "epochs": 5, "batch_size": "full"}}
LOOP["gaps"] = LOOP["regression"] = LOOP["bowl"]
LOOP["normed"] = LOOP["classifier"]
LOOP["semi"] = {"lr": 0.1, "epochs": 1, "batch_size": 4}
LOOP["late"] = LOOP["bowl"]  # uploads of several ages and factors, one without a step, and in the fourth update none
WORK = ("epochs", "local_steps", "batch_size")
PROBLEMS = {**problems.PROBLEMS, "gaps": problems.bowl, "normed": problems.normed, "late": problems.bowl, "semi": problems.semi}
FAMILIES = ("optimization", "baselines", "personalization", "aggregation", "distillation", "representation", "modalities", "communication", "schedules", "decentralized", "trust", "finetuning", "tasks", "labels")
FROM_HERE = ("again", "observed", "everyone", "evaluation", "coins", "own", "root", "matrices")  # what an oracle is given by `oracle`, and no option
SEVERAL = ("ifca",)  # whose server holds several models
SETTLES = ("analyticfl", "fedrecon")  # what stands still once all clients were heard
EVERYBODY = ("fedlin", "rffl", "netlasso")  # what needs full participation

ORACLES = {p.stem.replace("_", "-"): importlib.import_module(f"oracles.{p.stem}")
           for p in sorted((pathlib.Path(__file__).parent / "oracles").glob("[a-z]*.py"))}
METHODS = registry.catalog("method")

# {slug: [(problem, options)]}: the defaults, and every option of a method turned somewhere
SERVER = {"beta1": 0.5, "tau": 0.1, "server_lr": 0.5, "weighting": "uniform"}
MIME = [("classifier", {}), ("gaps", {"base": "sgd"}), ("bowl", {"base": "adagrad", "eps": 0.5, "weighting": "uniform"}),
        ("bowl", {"base": "adam", "beta": 0.5, "beta2": 0.8, "eps": 0.5, "server_lr": 0.5})]
RERCE = [("regression", {"weight": 2.0}), ("gaps", {"weight": 0.5, "rho": 0.5})]  # float32 is not enough for the default's 1e4
CASES = {
    "fedavg": [("classifier", {}), ("bowl", {"server_lr": 0.7, "weighting": "uniform", "client_optimizer": "momentum:0.8"}),
               ("gaps", {})],
    "fedsgd": [("classifier", {"epochs": 1, "batch_size": "full"}),
               ("bowl", {"epochs": 1, "server_lr": 0.5, "weighting": "uniform"})],
    "fedavgft": [("classifier", {"finetune_epochs": 2}), ("bowl", {"server_lr": 0.7, "weighting": "uniform", "finetune_rate": 0.3})],
    "local": [("classifier", {}), ("gaps", {}), ("gaps", {"who": "sampled"})],
    "ditto": [("classifier", {}), ("classifier", {"personal_epochs": 3, "lam": 1.0}), ("gaps", {"lam": 2.0, "weighting": "uniform"})],
    "fedper": [("classifier", {"personal": "2"}),
               ("classifier", {"personal": "2", "weighting": "uniform", "client_optimizer": "momentum:0.5"}), ("gaps", {"personal": "x"})],
    "fedrep": [("classifier", {"personal": "2"}),
               ("classifier", {"personal": "2", "head_epochs": 2, "tune_epochs": 3, "weighting": "uniform",
                               "client_optimizer": "momentum:0.5"})],
    "apfl": [("classifier", {}), ("bowl", {"share": 0.75, "adaptive": False}), ("gaps", {"share": 0.25, "weighting": "uniform"})],
    "pfedme": [("classifier", {"lr": 0.05, "local_steps": 6}),
               ("gaps", {"lam": 2.0, "personal_lr": 0.2, "inner": 3, "beta": 2.0, "mu": 0.1, "weighting": "uniform", "local_steps": 0})],
    "ifca": [("classifier", {}), ("classifier", {"clusters": 3, "shared": "1", "weighting": "examples"})],
    "fedbn": [("normed", {}), ("gaps", {"weighting": "examples"})],
    "feddisco": [("classifier", {}), ("classifier", {"metric": "l2", "a": 0.8, "b": 0.05, "target": (0.5, 0.3, 0.2)}),
                 ("classifier", {"metric": "cosine", "a": 1.0, "b": 0.0}), ("classifier", {"a": 50.0, "b": 0.0})],
    "fltrust": [("classifier", {"batch_size": "full", "epochs": 3}), ("classifier", {"batch_size": "full", "epochs": 5, "server_lr": 0.5})],
    "fedfn": [("classifier", {"local_steps": 5}), ("classifier", {"local_steps": 6, "length": 3.0, "tau": 0.5, "weighting": "uniform"})],
    "fedwon": [("classifier", {"clip": 0.1}), ("classifier", {"clip": 0.16, "last": "2", "weighting": "uniform"}), ("gaps", {})],
    "fedetf": [("classifier", {"lr": 0.02, "head": "2", "tune_turns": 2}),
               ("classifier", {"head": "2", "temperature": 3.0, "tune_turns": 3, "tune_epochs": 1, "head_lr": 0.05, "projection_lr": 0.02,
                               "seed": 4, "weighting": "uniform", "client_optimizer": "sgd"})],
    "fedselect": [("classifier", {"period": 2}),
                  ("classifier", {"p": 0.4, "bound": 0.3, "period": 1, "clip": 0.5, "client_optimizer": "momentum:0.5"}), ("classifier", {"batch_size": 5, "epochs": 3, "period": 1})],
    "hyperfl": [("classifier", {"head": "2", "embedding": 6, "hidden": 8, "lr": 0.05}),
                ("classifier", {"head": "2", "embedding": 3, "hidden": 5, "head_epochs": 2, "head_lr": 0.05, "limit": 0.3, "weighting": "uniform",
                                "client_optimizer": "sgd"})],
    "pgfed": [("classifier", {"lr": 0.02}), ("bowl", {"lam": 0.1, "exact": True, "mu": 0.5, "weighting": "uniform", "client_optimizer": "sgd"}),
              ("gaps", {"momentum": 0.5, "lam": 0.05, "client_optimizer": "momentum:0.5"})],
    "frl": [("classifier", {"lr": 0.2}), ("classifier", {"lr": 0.7, "keep": 0.3, "rank": "raw", "client_optimizer": "sgd"})],
    "pfedgate": [("classifier", {}), ("classifier", {"sparsity": (1.0, 0.5, 0.3), "separate": True, "mode": "turns", "gate_lr": 0.5, "blocks": 4}),
                 ("classifier", {"value": "sized", "limit": 0.05, "weighting": "uniform"})],
    "heterofl": [("classifier", {"head": "2", "lr": 0.02}),
                 ("classifier", {"head": "2", "widths": (0.75, 0.3), "redrawn": True, "seed": 5, "scaler": False, "weighting": "examples"}),
                 ("classifier", {"head": "2", "lr": 0.02, "widths": (0.5, 0.2), "labels": False, "client_optimizer": "sgd"})],
    "ggeur": [("classifier", {"head": "2", "target": 12, "batch_size": "full", "epochs": 4}),
              ("classifier", {"head": "2", "target": 9, "around": 3, "near": 5, "stretch": "largest", "batch_size": "full", "epochs": 4}),
              ("classifier", {"head": "2", "target": 7, "scale": "eigenvalue", "stretch": "smallest", "weighting": "uniform", "batch_size": "full",
                              "epochs": 4, "client_optimizer": "momentum:0.5"})],
    "fot": [("classifier", {"task_rounds": 2, "eps": 0.6, "head": "2", "lr": 0.3}),
            ("classifier", {"task_rounds": 2, "eps": 0.5, "eps_step": 0.1, "columns": 2, "noise": "gaussian", "others": "frozen", "head": ""})],
    "fedma": [("classifier", {"head": "2", "lr": 0.05}),
              ("classifier", {"head": "2", "client_optimizer": "sgd", "share": 0.75, "sigma": 0.5, "sigma0": 4.0, "gamma": 3.0, "gamma_later": 20.0,
                              "prior_bias": 0.0, "sweeps": 1, "last_rate": 0.5, "last_times": 1}),
              ("classifier", {"head": "2", "client_optimizer": "sgd", "match_by": "place", "retrain": False})],
    "fedpub": [("classifier", {"lr": 0.02, "client_optimizer": "adam:eps=0.01"}),
               ("classifier", {"lr": 0.02, "sharpness": 9.0, "l1": 0.3, "l2": 0.2, "client_optimizer": "adam:eps=0.1"}),
               ("classifier", {"lr": 0.02, "masked": False, "legacy": True, "client_optimizer": "adam:eps=0.01"})],
    "fetchsgd": [("bowl", {"size": 3.0, "share": 0.5, "local_steps": 2}),
                 ("classifier", {"size": 2.0, "share": 0.2, "rows": 3, "momentum": 0.5, "server_lr": 0.7, "clear": "subtract", "seed": 3,
                                 "local_steps": 4, "weighting": "uniform"}), ("gaps", {"size": 5.0, "share": 0.34, "local_steps": 3})],
    "fedkseed": [("bowl", {"seeds": 6, "eps": 0.5, "lr": 0.02, "local_steps": 4}),
                 ("gaps", {"seeds": 5, "eps": 0.5, "lr": 0.02, "local_steps": 3, "pro": True, "limit": 3.0, "weighting": "uniform"})],
    "powersgd": [("classifier", {"rank": 1}), ("classifier", {"rank": 1, "memory": "mean", "weighting": "uniform"}),
                 ("classifier", {"ratio": 0.5, "memory": "none"}), ("gaps", {})],
    "fedpara": [("classifier", {"ordinary": "w2"}),
                ("classifier", {"ordinary": "2", "form": "low_rank", "share": 0.5, "start": "matched", "weighting": "uniform"}),
                ("classifier", {"ordinary": "2", "form": "shifted", "lr": 0.02})],
    "pfedpara": [("classifier", {"ordinary": "2", "lr": 0.02}), ("classifier", {"ordinary": "w2", "share": 0.0, "start": "matched", "weighting": "uniform"})],
    "fedit": [("classifier", {"rank": 2, "client_optimizer": "sgd", "scale": 2.0}),
              ("classifier", {"rank": 3, "scale": 1.5, "where": ("w1",), "whole": ("2",), "start": "orthogonal", "weighting": "uniform",
                              "client_optimizer": "momentum:0.5"})],
    "flora": [("classifier", {"ranks": (3, 1, 2), "client_optimizer": "sgd"}),
              ("classifier", {"ranks": (2,), "scale": 1.5, "where": ("w1",), "whole": ("2",), "start": "orthogonal", "weighting": "uniform",
                              "client_optimizer": "momentum:0.5"})],
    "ffalora": [("classifier", {"rank": 2, "client_optimizer": "sgd", "scale": 2.0}),
                ("classifier", {"rank": 3, "scale": 1.5, "where": ("w1",), "whole": ("2",), "start": "orthogonal", "weighting": "uniform",
                                "client_optimizer": "momentum:0.5"})],
    "foolsgold": [("classifier", {}), ("bowl", {"divide": "clients", "server_lr": 0.5}), ("gaps", {})],
    "mud-hog": [("classifier", {"start": 1, "min_samples": 2, "eps": 0.9}), ("bowl", {"start": 2, "min_samples": 3, "eps": 1.1, "keep": 0.3, "server_lr": 0.5}),
                ("gaps", {})],
    "fal": [("classifier", {"random": False, "low": -9.0, "high": 9.0, "rho": 0.1}),
            ("classifier", {"random": False, "norm": "l2", "rho": 0.6, "steps": 3, "step": 0.3, "low": -1.5, "high": 1.5, "weighting": "examples",
                            "server_lr": 0.5})],
    "rffl": [("classifier", {}), ("classifier", {"alpha": 0.5, "bound": 0.05, "patience": 2})],
    "qffl": [("classifier", {}), ("bowl", {"q": 2.0}), ("gaps", {"q": 0.5})],
    "analyticfl": [("classifier", {"head": "2"}), ("classifier", {"head": "2", "gamma": 0.3, "remove": False})],
    "fixmatch-fl": [("semi", {"threshold": 0.45, "weak": "jitter:0.1", "strong": "jitter:0.3"}),
                    ("semi", {"threshold": 0.4, "weight": 2.0, "ratio": 2, "labeler": "ema", "decay": 0.5, "weak": "jitter:0", "strong": "jitter:0.3",
                              "weighting": "uniform"}),
                    ("semi", {"threshold": 0.5, "labeler": "global", "weak": "jitter:0.1", "strong": "jitter:0.2", "server_epochs": 2, "server_lr": 0.2,
                              "batch_size": "full", "local_steps": 3})],
    "fedftg": [("classifier", {"turns": 2, "noise": 3, "width": 4, "server_batch": 10}),
               ("classifier", {"base": "fedavg", "turns": 2, "generator_steps": 2, "student_steps": 2, "fidelity": 0.5, "diversity": 2.0, "gap": "logits", "server_batch": 8,
                               "generator_lr": 0.02, "server_lr": 0.3, "decay": 0.9, "noise": 2, "width": 5})],
    "fedlabel": [("semi", {"threshold": 0.45, "weak": "jitter:0.1", "strong": "jitter:0.3"}),
                 ("semi", {"threshold": 0.5, "lam": 2.0, "adaptive": False, "score": "entropy", "server_lr": 0.5, "weak": "jitter:0.1", "strong": "jitter:0.2",
                           "weighting": "uniform", "epochs": 2}),
                 ("semi", {"threshold": 0.4, "score": "max", "weak": "jitter:0", "strong": "jitter:0.2", "local_steps": 3})],
    "fedsem": [("semi", {"warmup": 3}), ("semi", {"warmup": 0, "weighting": "uniform"})],
    "fedrecon": [("classifier", {"episodes": 6, "ways": 3, "shots": 2, "queries": 2}),
                 ("classifier", {"episodes": 4, "ways": 2, "shots": 1, "queries": 3, "unit": True, "legacy": True})],
    "l-dawa": [("classifier", {}), ("classifier", {"warmup": 0}), ("gaps", {"warmup": 1})],
    "fedlaw": [("classifier", {}), ("classifier", {"form": "quad", "server_epochs": 25, "server_lr": 0.02, "server_batch": 15}),
               ("classifier", {"order": "apart", "server_epochs": 16})],
    "feddf": [("classifier", {"server_steps": 50}), ("classifier", {"server_lr": 0.01, "held_out": 0.0, "temperature": 2.0, "server_steps": 30, "server_batch": 15}),
              ("classifier", {"server_lr": 0.02, "held_out": 0.6, "patience": 25})],
    "fedmd": [("classifier", {"lr": 0.01, "client_optimizer": "adam", "sample": 15}),
              ("classifier", {"lr": 0.01, "client_optimizer": "adam", "digest_epochs": 3, "digest_lr": 0.005, "digest_batch": 15, "public_epochs": 0,
                              "public_batch": 15})],
    "knfu": [("classifier", {}), ("classifier", {"beta": 1.0, "temperature": 2.0, "dist": "variation", "nearest": 2, "tune_epochs": 3, "tune_batch": 15})],
    "fedavgm": [("classifier", {}), ("bowl", {"beta": 0.7, "nesterov": True, "server_lr": 0.5}),
                ("bowl", {"form": "ema", "weighting": "uniform"})],
    "fedadagrad": [("classifier", {}), ("bowl", SERVER)],
    "fedyogi": [("classifier", {}), ("bowl", SERVER | {"beta2": 0.8})],
    "fedadam": [("classifier", {}), ("bowl", SERVER | {"beta2": 0.8})],
    "fedprox": [("classifier", {"mu": 0.5}), ("bowl", {"mu": 2.0, "weighting": "uniform"})],
    "fednova": [("classifier", {}), ("bowl", {"client_optimizer": "momentum:0.7", "server_lr": 0.5}),
                ("bowl", {"mu": 1.5, "tau": "steps", "weighting": "uniform"})],
    "scaffold": [("classifier", {}), ("bowl", {"option": "I", "server_lr": 0.5}), ("gaps", {})],
    "fedcm": [("classifier", {}), ("bowl", {"alpha": 0.5, "server_lr": 0.7, "weighting": "examples"})],
    "fedavg-m": [("classifier", {}), ("bowl", {"beta": 0.5, "server_lr": 0.2, "start": "gradient", "weighting": "examples"})],
    "scaffold-m": [("classifier", {}), ("bowl", {"beta": 0.5, "server_lr": 0.2, "start": "gradient"})],
    "fedavg-m-vr": [("classifier", {}), ("bowl", {"beta": 0.5, "server_lr": 0.2, "start": "zero", "weighting": "examples"})],
    "scaffold-m-vr": [("classifier", {}), ("bowl", {"beta": 0.5, "server_lr": 0.2, "start": "zero"})],
    "fedvarp": [("classifier", {}), ("bowl", {"server_lr": 0.5})],
    "fedstale": [("classifier", {}), ("bowl", {"beta": 0.8, "cutoff": 3, "server_lr": 0.5}),
                 ("gaps", {"beta": 0.8, "q": (0.4, 0.7), "weighting": "uniform"}), ("gaps", {"empty": "skip"})],
    "fedau": [("classifier", {}), ("bowl", {"cutoff": 2, "server_lr": 0.5}), ("gaps", {"weighting": "uniform"})],
    "feddyn": [("classifier", {}), ("bowl", {"lam": 0.5, "clip": 0.5, "weighting": "examples"}),
               ("bowl", {"evaluate": "average"})],
    "fedspeed": [("classifier", {}), ("bowl", {"lam": 0.5, "alpha": 0.7, "rho": 0.3, "dual_mean": "sampled", "clip": 0.5})],
    "fedsam": [("classifier", {}), ("bowl", {"rho": 0.3, "alpha": 0.3, "server_lr": 0.5, "weighting": "uniform"})],
    "fedgamma": [("classifier", {}), ("bowl", {"rho": 0.3, "server_lr": 0.5})],
    "fedsmoo": [("classifier", {}), ("bowl", {"rho": 0.3, "lam": 0.5, "clip": 0.5})],
    "feddc": [("classifier", {}), ("bowl", {"alpha": 0.5})],
    "slowmo": [("classifier", {}), ("bowl", {"beta": 0.4, "alpha": 0.6, "weighting": "examples"})],
    "delta-sgd": [("classifier", {"eta0": 0.4, "gamma": 0.5}),  # so that both bounds on the step are met
                  ("bowl", {"gamma": 1.0, "delta": 0.5, "theta0": 0.5, "weighting": "examples"})],
    "moon": [("classifier", {}), ("classifier", {"mu": 5.0, "tau": 0.2, "weighting": "uniform"})],
    "savic": [("classifier", {"alpha": 0.1}),  # the default's steps of up to 10 gradients amplify the rounding of float32
              ("classifier", {"alpha": 0.1, "scaling": "local"}),
              ("bowl", {"rule": "oasis", "beta": 0.5, "weighting": "examples"}), ("bowl", {"rule": "oasis", "scaling": "local"}),
              ("bowl", {"rule": "rmsprop", "beta": 0.5, "floor": "add", "alpha": 0.1})],
    "consensus-admm": [("classifier", {}), ("bowl", {"solve": "exact", "rho": 0.5}), ("gaps", {"weighting": "examples"}),
                       ("bowl", {"average": "sampled", "weighting": "examples"})],
    "fedlin": [("classifier", {}), ("classifier", {"up_share": 0.2}), ("bowl", {"up_share": 0.3, "down_share": 0.3})],
    "mime": MIME,
    "mimelite": MIME,
    "fedpage": [("classifier", {"p": 0.0}), ("bowl", {"p": 1.0}), ("classifier", {}), ("bowl", {"p": 0.3, "server_lr": 0.3}),
                ("gaps", {"p": 0.0})],
    "bvr-l-sgd": [("classifier", {}), ("bowl", {"stage": 3}), ("gaps", {})],
    "fedamd": [("classifier", {}), ("bowl", {"p": 0.5, "server_lr": 0.5, "per_step": True}), ("bowl", {"p": "sequential"}),
               ("gaps", {"p": 0.0})],
    "fedlex": [("classifier", {"cap": 12, "patience": 2}),
               ("classifier", {"cap": 4, "guidance": "cohort", "mask_on": "update", "client_optimizer": "rmsprop:eps=0.1", "beta": 0.5}),
               ("bowl", {"cap": 5, "warm": False, "scale": "iqr", "scouts": 0.4, "server_lr": 0.7, "weighting": "uniform"}),
               ("gaps", {"cap": 2, "guidance": "cohort", "weighting": "uniform"})],
    "fedbr": [("classifier", {"batch_size": "full"}),  # with a row of U that the projector's ReLUs make zero
              ("classifier", {"mode": "mixture", "mixed": 3, "mu": 2.0, "lam": 0.5, "gamma": 3.0, "tau1": 1.0, "tau2": 5.0,
                              "weighting": "examples"})],
    "fedimpro": [("classifier", {"ramp": 3.0}),
                 ("classifier", {"ramp": 2.0, "cap": False, "omega": 0.3, "sigma_max": 0.5, "statistics": "pooled", "noise": 0.05}),
                 ("classifier", {"ramp": 4.0, "mix": "blended", "batch_size": "full", "weighting": "uniform"})],
    "fedasync": [("late", {}), ("late", {"variant": "delta", "alpha": 0.9, "a": 1.0, "rho": 0.5}), ("classifier", {"rho": 0.5}),
                 ("late", {"staleness": "hinge", "a": 10.0, "b": 1.0}), ("late", {"staleness": "constant"})],
    "fedbuff": [("late", {}), ("late", {"server_lr": 1.0, "beta": 0.3, "a": 1.0}), ("classifier", {"server_lr": 0.5}),
                ("late", {"staleness": "hinge", "a": 10.0, "b": 1.0, "server_lr": 1.0})],
    "fedfix": [("late", {}), ("late", {"weights": "identical", "server_lr": 0.5}), ("classifier", {})],
    "fedcompass": [("late", {"client_optimizer": "sgd", "a": 1.0}), ("late", {"client_optimizer": "momentum:0.5", "alpha": 0.5}),
                   ("late", {"client_optimizer": "sgd", "staleness": "hinge", "a": 10.0, "b": 1.0})],
    "favano": [("late", {}), ("classifier", {"local_steps": 3})],
    "fedasmu": [("late", {"control_lr": 0.3, "slots": 4, "slot_lr": 0.5, "epsilon": 0.5, "iota": 0.2}),
                ("late", {"lam": 0.5, "sigma": 1.0, "gamma": 2.0, "upsilon": 0.9, "mu_a": 2.0, "mu_b": 0.5, "discount": 0.3, "slots": 2, "epsilon": 0.0}),
                ("classifier", {"control_lr": 0.3, "local_steps": 7})],
    "monna": [("classifier", {"local_steps": 1, "beta": 0.5}), ("bowl", {"local_steps": 3, "share": 0.4, "beta": 0.7}), ("gaps", {"local_steps": 1, "share": 0.0, "beta": 0.3})],
    "netlasso": [("regression", {"newton_steps": 1}), ("bowl", {"lam": 0.3, "rho": 0.5, "l2": 0.1, "graph": "full", "newton_steps": 3, "seed": 1})],
    "dpsgd": [("classifier", {"local_steps": 1}), ("bowl", {"local_steps": 3}), ("gaps", {"local_steps": 1})],
    "dfedavgm": [("classifier", {"theta": 0.5}), ("bowl", {}), ("gaps", {"theta": 0.3})],
    "dfedsam": [("classifier", {}), ("gaps", {"rho": 0.3, "momentum": 0.5})],
    "dfedsam-mgs": [("classifier", {"rho": 0.1}), ("bowl", {"momentum": 0.5})],
    "rerce-fed": RERCE,
    "rerce-fed-clu": RERCE,
}
BOTH = [pytest.param(slug, *case, marks=pytest.mark.full if number else ())  # the first of a method's cases is in the default matrix
        for slug in ORACLES if slug in METHODS for number, case in enumerate(CASES[slug])]

STEPS = np.arange(1, 6) / 5  # of a training from b to t, which is that of update t at the latest
LATE = [Update(t, tuple(Arrival(*a, ends=a[1] - 0.5 + (t - a[1]) * STEPS) for a in arrivals)) for t, arrivals in enumerate([
    [(0, 0, 3, 1.0), (3, 0, 5, 2.0)], [(1, 0, 2, 0.5), (4, 1, 0, 3.0), (2, 1, 2, 1.5)], [(5, 0, 4, 2.5)], [], [(3, 2, 5, 1.0), (6, 1, 2, 0.25)],
    [(0, 1, 2, 4.0), (1, 5, 1, 1.0), (5, 3, 3, 0.75)]])]


GRAPHS = {"classifier": "watts-strogatz:4,p=0.5", "bowl": "random:3", "gaps": "ring"}  # of what is published for gossip
GOSSIPED = [slug for slug, factory in METHODS.items() if factory.info.schedule.startswith(schedules.GOSSIP)]


def graph(name: str):
    return graph_of(GRAPHS[name], len(problems.SIZES), 0)


def matrices(name: str) -> list[np.ndarray]:
    """The gossip matrix of every round."""
    topology, rounds = graph(name), [keys.for_round(jax.random.key(problems.ROOT), jnp.int32(t)) for t in range(ROUNDS)]
    arrays = jax.tree.map(jnp.asarray, topology.arrays)
    return [links.dense(topology.at(arrays, keys.purpose(key, "graph"), jnp.int32(t))) for t, key in enumerate(rounds)]


def participation(name: str, cohort: int = problems.COHORT):
    if name == "late":
        return replay(LATE)
    drawn = uniform(len(problems.SIZES), cohort)
    if name in ("classifier", "normed", "semi"):
        return drawn

    def draw(key, state, clock):
        draw = drawn.draw(key, state, clock)
        there = ((draw.ids + clock) % 3 > 0) & (clock != 3) if name == "gaps" else draw.mask
        return draw._replace(mask=there, allowance=2 + (3 * draw.ids + clock) % 4)

    return drawn._replace(draw=draw)


@functools.cache
def turns(name: str, cohort: int = problems.COHORT, phase: int = 0, rounds: int = ROUNDS, **work):
    """The plan of six rounds, or more."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    people, work = PROBLEMS[name]().population, registry.training(lr=0.0, **given)
    return plan.rounds(people, participation(name, cohort), work, jax.random.key(problems.ROOT), rounds, phase)


@functools.cache
def everyone(name: str, phase: int, **work):
    """The plan of an exchange with all clients, where nobody straggles."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    people, work, n = PROBLEMS[name]().population, registry.training(lr=0.0, **given), len(problems.SIZES)
    return plan.rounds(people, uniform(n, n), work, jax.random.key(problems.ROOT), ROUNDS, phase)


@functools.cache
def evaluation(name: str, **work):
    """The plan of what all clients may do for their own models after a round."""
    given = {k: v for k, v in {**LOOP[name], **work}.items() if k in WORK}
    return plan.evaluation(PROBLEMS[name]().population, registry.training(lr=0.0, **given), jax.random.key(problems.ROOT))


def oracle(slug: str, name: str, options: dict, cohort: int = problems.COHORT, observed: list | None = None, own: list | None = None) -> list[np.ndarray]:
    """The server's models, round by round.

    An oracle with the argument `observed` reads coins off the engine's history, which it gets there; with `everyone` it gets the
    plan of an exchange with all clients, as `everyone(phase)`; with `evaluation` what they may do for their own models; with
    `root` the key that draws are derived from. To the list `own` an oracle with such an argument adds all clients' own models
    [N, d] as they are evaluated after each round.
    """
    module, given = ORACLES[slug], {**LOOP[name], **options}
    work = {k: given.pop(k) for k in WORK if k in given}
    here = {"observed": observed, "everyone": functools.partial(everyone, name, **work), "root": jax.random.key(problems.ROOT)}
    here["own"] = [] if own is None else own
    asked = inspect.signature(module.run).parameters
    given |= {k: v for k, v in here.items() if k in asked}
    given |= {"matrices": matrices(name)} if "matrices" in asked else {}
    given |= {"again": turns(name, cohort, 1, **work)} if "again" in asked else {}
    if "evaluation" in asked:
        given["evaluation"] = evaluation(name, **work)
    phase = module.phase(**options) if hasattr(module, "phase") else 0
    return module.run(PROBLEMS[name](), turns(name, cohort, phase, **work), **given)


def engine(slug: str, name: str, options: dict, cohort: int = problems.COHORT, rounds: int = ROUNDS, own: list | None = None) -> list[np.ndarray]:
    """The server's models, round by round; to `own` the clients' own [N, d] are added, of a method that has them."""
    problem = PROBLEMS[name]()
    method = registry.make(slug, problem.task, **{**LOOP[name], **options})
    seats, rounds_of = participation(name, cohort), None
    if slug in GOSSIPED:
        _, positional, values = spec.parse(METHODS[slug].info.schedule)
        rounds_of = gossip.schedule(graph(name), **spec.bind(schedules.mixing, positional, values))
        seats = gossip.seating(seats, problem.clients)
    sim = quick(sync.build(problem.task, method, problem.population, seats, mesh=mesh.make(1), chunk=2, length=1, schedule=rounds_of), init=False)
    state, history = sim.init(sim.world, jax.random.key(problems.ROOT)), []
    personal = jax.jit(functools.partial(owned, method), compiler_options=QUICK)
    for clock in range(rounds):
        state, _ = sim.segment(sim.world, state, jnp.int32(clock), jnp.int32(1))
        several = state.server.server if slug in GOSSIPED else state.server if slug in SEVERAL else None
        models = flat(method.deploy(state.server)) if several is None else jax.vmap(flat)(several).ravel()
        history.append(np.array(models, np.float64))
        if own is not None and method.personal:
            own.append(np.array(personal(sim.world.population, state.server, state.clients), np.float64))
    return history


def flat(params) -> jax.Array:
    return ravel_pytree(params)[0]


def owned(method, population, server, rows) -> jax.Array:
    """[N, d]: all clients' own models, as they are evaluated."""
    ids, width = jnp.arange(population.clients, dtype=jnp.int32), int(problems.SIZES.max())

    def one(client, row):
        view = View(population.train, client, width)
        data = ClientData(client, jnp.int32(0), view, view, population.counts[client], jnp.int32(np.iinfo(np.int32).max))
        key = keys.for_client(keys.purpose(jax.random.key(problems.ROOT), "personal"), client)
        return flat(method.personal(key, server, row, data))

    return jax.vmap(one)(ids, rows)


def close(actual, expected, **tolerance):
    for t, (a, b) in enumerate(zip(actual, expected, strict=True)):
        np.testing.assert_allclose(a, b, err_msg=f"after round {t + 1}", **tolerance)


@pytest.mark.parametrize("slug, name, options", BOTH, ids=str)
def test_the_engine_equals_the_oracle(slug, name, options):
    cohort = len(problems.SIZES) if slug in EVERYBODY else problems.COHORT
    mine, theirs = [], []
    personal = "own" in inspect.signature(ORACLES[slug].run).parameters
    actual = engine(slug, name, options, cohort, own=mine if personal else None)
    expected = oracle(slug, name, options, cohort, actual, theirs)
    assert len(mine) == len(theirs) == ROUNDS * personal
    actual, expected = ([np.concatenate([x, *models]) for x, models in itertools.zip_longest(*found, fillvalue=())]
                        for found in ((actual, mine), (expected, theirs)))
    moves = [np.abs(b - a).max() for a, b in itertools.pairwise([np.resize(PROBLEMS[name]().start, expected[0].shape), *expected])]
    still = (name in ("gaps", "late")) + 4 * (slug in SETTLES) + ROUNDS // 2 * (options.get("p") == "sequential")
    assert np.sum(np.array(moves) > 1e-3) >= ROUNDS - still
    close(actual, expected, rtol=5e-5, atol=2e-6)


@pytest.mark.parametrize("slug", [slug for slug in ORACLES if slug in METHODS])
def test_the_defaults_are_the_cards(slug):
    offered = {name: p.default for name, p in inspect.signature(METHODS[slug]).parameters.items()}
    given = inspect.signature(ORACLES[slug].run).parameters.items()
    known = {name: p.default for name, p in given if p.default is not p.empty and name not in FROM_HERE}
    assert {name: offered.get(name) for name in known} == known


@pytest.mark.parametrize("slug", [slug for slug in ORACLES if slug in METHODS])
def test_every_option_is_turned_somewhere(slug):
    own = set(inspect.signature(METHODS[slug]).parameters) - set(inspect.signature(registry.training).parameters) - {"task"}
    elsewhere = {"tune"}  # in the method's own test file
    assert own - elsewhere <= {option for _, options in CASES[slug] for option in options}


def test_every_method_of_these_families_has_an_oracle():
    assert {name for name, factory in METHODS.items() if factory.info.family in FAMILIES} <= set(ORACLES)


def test_the_oracles_know_nothing_of_the_package():
    folder = pathlib.Path(__file__).parent / "oracles"
    assert not [path.name for path in folder.glob("*.py") if "fedjax_lab" in path.read_text() or "jax" in path.read_text()]


# the cards' exact checks, oracle against oracle: a wrong oracle would have to be wrong twice
SAME, ALIKE = {"batch_size": "full", "epochs": 1}, {"weighting": "uniform"}
FULL = {"batch_size": "full", "local_steps": 3}  # the same batches in whatever phase of a round
REDUCTIONS = [
    ("fedsgd", {}, "fedavg", {}, 4, SAME),
    ("fedavgm", {"beta": 0.0}, "fedavg", {}, 4, {}),
    ("fedprox", {"mu": 0.0}, "fedavg", {}, 4, {}),
    ("fednova", {}, "fedavg", {}, 4, {"local_steps": 4}),
    ("scaffold", {}, "fedavg", ALIKE, 7, {"local_steps": 1}),
    ("fedcm", {"alpha": 1.0}, "fedavg", ALIKE, 4, {}),
    ("fedavg-m", {"beta": 0.3, "server_lr": 0.4}, "fedcm", {"alpha": 0.3}, 4, {"local_steps": 4}),
    ("scaffold-m", {"beta": 1.0, "server_lr": 0.4}, "scaffold", {}, 4, {"local_steps": 4}),
    ("fedavg-m-vr", {"beta": 1.0, "server_lr": 0.4, "start": "zero"}, "fedavg", ALIKE, 4, {"local_steps": 4}),
    ("fedvarp", {}, "fedavg", ALIKE, 7, {}),
    ("fedstale", {"beta": 0.0, "q": (4 / 7,), **ALIKE}, "fedavg", ALIKE, 4, {}),
    ("fedstale", {"beta": 1.0, "q": (4 / 7,), **ALIKE}, "fedvarp", {}, 4, {}),
    ("fedstale", {"beta": 0.7, "q": (1.0,)}, "fedavg", {}, 7, {}),
    ("fedstale", {"beta": 0.0}, "fedau", {"cutoff": 0}, 4, {}),
    ("feddyn", {"lam": 0.3}, "fedspeed", {"lam": 0.3, "rho": 0.0}, 4, {}),
    ("feddyn", {"lam": 0.3}, "fedspeed", {"lam": 0.3, "alpha": 0.0}, 4, {}),
    ("fedsam", {"rho": 0.0}, "fedavg", {}, 4, {}),
    ("fal", {"steps": 0}, "fedavg", ALIKE, 4, {}),
    ("fal", {"rho": 0.0, "random": False, "low": -9.0, "high": 9.0}, "fedavg", ALIKE, 4, {}),
    ("mud-hog", {"start": ROUNDS}, "fedavg", ALIKE, 4, {}),
    ("fedgamma", {"rho": 0.0}, "scaffold", {}, 4, {}),
    ("slowmo", {"beta": 0.0}, "fedavg", ALIKE, 4, {}),
    ("moon", {"mu": 0.0}, "fedavg", {}, 4, {}),
    ("mimelite", {"base": "sgd"}, "fedavg", {}, 4, {}),
    ("mimelite", {"beta": 0.7}, "fedavgm", {"beta": 0.7, "form": "ema"}, 4, SAME),
    ("mime", {"beta": 0.7}, "fedavgm", {"beta": 0.7, "form": "ema"}, 4, SAME),
    ("mime", {"base": "adagrad"}, "mimelite", {"base": "adagrad"}, 4, SAME),
    ("fedlin", {}, "fedsgd", ALIKE, 7, SAME),
    ("fedpage", {"p": 1.0}, "fedsgd", ALIKE, 7, SAME),
    ("fedpage", {"p": 0.0}, "fedsgd", ALIKE, 7, SAME),
    ("bvr-l-sgd", {}, "fedsgd", ALIKE, 7, SAME),
    ("consensus-admm", {"average": "sampled"}, "consensus-admm", {}, 7, {}),
    ("fedlex", {"mask_on": "nothing", "warm": False, "cap": 1}, "fedavgm", {}, 4, FULL),
    ("fedbr", {"mu": 0.0, "lam": 0.0}, "fedavg", ALIKE, 4, FULL),
    ("fedimpro", {"ramp": 1e12}, "fedavg", {}, 4, {}),
    ("ditto", {"lam": 2.0}, "fedavg", {}, 4, {}),
    ("apfl", {"share": 0.25}, "fedavg", {}, 4, {}),
    ("fedper", {"personal": "nothing"}, "fedavg", {}, 4, {}),
    ("fedrep", {"personal": "nothing"}, "fedavg", {}, 4, {}),
    ("ifca", {"clusters": 1}, "fedavg", ALIKE, 4, {}),
    ("fedbn", {}, "fedavg", ALIKE, 4, {}),
    ("feddisco", {"a": 0.0, "b": 0.0}, "fedavg", {}, 4, {}),
    ("l-dawa", {"warmup": ROUNDS}, "fedavg", {}, 4, {}),
    ("dfedsam", {"rho": 0.0}, "dfedavgm", {}, 4, {}),
    ("dfedsam", {"rho": 0.0, "momentum": 0.0}, "dfedavgm", {"theta": 0.8}, 4, {"local_steps": 1}),
    ("fedlaw", {"server_epochs": 0}, "fedavg", {}, 4, {}),
    ("feddf", {"server_steps": 0}, "fedavg", {}, 4, {}),
    ("fedftg", {"turns": 0}, "fedavg", {}, 4, {}),
    ("feddf", {}, "fedavg", {}, 1, {}),  # the only teacher agrees with the student
    ("qffl", {"q": 0.0}, "fedavg", ALIKE, 4, {}),
    ("fedwon", {"clip": 0.0}, "fedavg", {}, 4, {}),
    ("fedselect", {"p": 0.0}, "fedavg", ALIKE, 4, {}),
    ("pgfed", {"mu": 0.0, "client_optimizer": "sgd"}, "fedavg", {}, 4, {}),
    ("heterofl", {"widths": (1.0,), "labels": False, "client_optimizer": "sgd"}, "fedavg", ALIKE, 4, {}),
    ("powersgd", {"ratio": 1e9}, "fedavg", {}, 4, {}),
    ("fetchsgd", {"share": 1.0, "size": 1e4, "momentum": 0.7, "clear": "subtract"}, "fedavgm", {"beta": 0.7}, 4, {"local_steps": 3}),
]
ALONE = {"who": "sampled"}
OWN = [  # of the clients' own models
    ("ditto", {"lam": 0.0}, "local", ALONE),
    ("apfl", {"share": 1.0, "adaptive": False}, "local", ALONE),
    ("fedper", {"personal": "x"}, "local", ALONE),
    ("fedrep", {"personal": "x", "head_epochs": 5, "tune_epochs": 0}, "local", ALONE),
    ("fedavgft", {"finetune_epochs": 0}, "fedper", {"personal": "nothing"}),
]


@pytest.mark.parametrize("slug, options, other, others, cohort, work", REDUCTIONS, ids=str)
def test_the_oracles_reduce_as_the_cards_say(slug, options, other, others, cohort, work):
    actual, expected = (oracle(n, "classifier", o | work, cohort) for n, o in ((slug, options), (other, others)))
    close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("slug, options, other, others", OWN, ids=str)
def test_the_oracles_own_models_reduce_as_the_cards_say(slug, options, other, others):
    actual, expected = [], []
    for name, given, own in ((slug, options, actual), (other, others, expected)):
        oracle(name, "bowl", given, own=own)
    close(actual, expected, rtol=1e-12, atol=1e-12)


def test_periodic_participation_is_estimated_exactly():
    estimate = ORACLES["fedstale"].Intervals(cutoff=50)
    for t in range(12):
        estimate.observe(t % 3 == 2)
        assert estimate.mean == (3 if t >= 2 else 1)


def test_the_contrastive_slope_is_the_derivative():
    moon, rng, tau = ORACLES["moon"], np.random.default_rng(0), 0.5
    z, z_g, z_p, d = rng.normal(size=(4, 3, 5))

    def value(z):
        s_g, s_p = moon.cosine(z, z_g)[0], moon.cosine(z, z_p)[0]
        return np.mean(np.logaddexp(s_g / tau, s_p / tau) - s_g / tau)

    assert (value(z + 1e-6 * d) - value(z - 1e-6 * d)) / 2e-6 == pytest.approx((moon.slope(z, z_g, z_p, tau) * d).sum(), rel=1e-6)
    assert not moon.slope(z, z_g, z_g, tau).any()


def test_the_plan_covers_the_ragged_and_the_partial():
    for name in problems.PROBLEMS:
        cohorts = [[turn.client for turn in cohort] for cohort in turns(name)]
        assert all(len(set(c)) == problems.COHORT for c in cohorts)
        assert set(np.concatenate(cohorts)) == set(range(len(problems.SIZES)))
        assert any(len({len(turn.batches) for turn in cohort}) > 2 for cohort in turns(name))
    for turn in itertools.chain.from_iterable(turns("classifier")):
        rows = np.sort(np.concatenate(turn.batches))
        np.testing.assert_array_equal(rows, np.repeat(problems.classifier().rows(turn.client), 2))  # each example once an epoch


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_the_gradient_of_a_batch_is_the_mean_over_its_examples(name):
    problem, rng = PROBLEMS[name](), np.random.default_rng(0)
    y, z = problem.start + 0.1 * rng.normal(size=problem.start.shape), rng.normal(size=problem.start.shape)
    for client in range(problem.clients):
        rows = problem.rows(client)
        for value in (problem.loss, problem.gradient, lambda v, r: problem.curvature(v, r, z)):
            np.testing.assert_allclose(value(y, rows), np.mean([value(y, r) for r in rows[:, None]], 0), rtol=1e-4, atol=1e-6)


def test_the_gradient_by_hand_is_that_of_the_task():
    problem = problems.bowl()
    batch = {**problem.population.train.examples, "mask": np.ones(problems.SIZES.sum(), bool)}
    x = np.linspace(-1, 1, problems.DIM)
    by_task = jax.grad(lambda p: problem.task.loss(p, batch, jax.random.key(0))[0])({"x": jnp.asarray(x, jnp.float32)})["x"]
    np.testing.assert_allclose(problem.gradient(x, np.arange(problems.SIZES.sum())), by_task, rtol=1e-5, atol=1e-6)
