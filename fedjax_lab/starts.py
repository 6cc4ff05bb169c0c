"""Where the model starts: `--init=public:steps=600` trains it on the public examples first, `--init=file:PATH` reads it from a file.

A model trained on public examples is the tiny foundation model of an experiment without downloads: split examples off before the clients
get theirs, and shift only what clients have, as in --partition=public:5000+dirichlet:0.1+inversion.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_lab import keys, platform, spec
from fedjax_lab.local import gradient, with_stats
from fedjax_lab.models import weights
from fedjax_lab.spec import Count, Positive, Range
from fedjax_lab.types import Population, Task, Tree


def file(task: Task, population: Population, cache: Path, *, path: str, fresh: tuple[str, ...] = ()) -> Task:
    """Safetensors of this library's own, or of GPT-2, LLaMA-type models, BERT or ViT for the model backbone.

    Args:
      path: a .safetensors file, or a folder with some.
      fresh: words for leaves that are drawn instead, by their paths, such as head.
    """
    return weights.started(task, weights.read(path), fresh)


def public(task: Task, population: Population, cache: Path, *, steps: Count = 600, batch_size: Count = 32, lr: Positive = 1e-3,
           seed: Annotated[int, Range(0, 2**32 - 1)] = 0) -> Task:
    """What AdamW makes of the public examples, the rate falling to zero by a cosine.

    The result is kept in the cache folder, named by the program and the examples that it follows from.

    Args:
      steps: of AdamW, each on examples drawn at random.
      batch_size: examples in a step.
      lr: rate at first.
      seed: of the parameters and the order.
    """
    if not population.public:
        raise ValueError("'public' needs public examples; split some off by --partition=public:500+dirichlet:0.3, for example")
    examples = jax.tree.map(jnp.asarray, dict(population.public))
    run = jax.jit(lambda examples: pretrained(task, examples, steps=steps, batch_size=batch_size, lr=lr, seed=seed))
    program = run.lower(examples)
    total = hashlib.sha256(f"{jax.__version__} {jax.default_backend()} {program.as_text()}".encode())
    for name in sorted(examples):
        total.update(jax.device_get(examples[name]).tobytes())
    kept = cache / "bases" / f"{total.hexdigest()[:32]}.safetensors"
    try:
        return weights.started(task, weights.read(kept))
    except ValueError:
        pass  # not there yet, or damaged
    params = jax.device_get(program.compile()(examples))
    try:
        weights.write(kept, params)
    except OSError:
        pass  # a cache that cannot be written only costs the training
    return task._replace(init=lambda key: jax.tree.map(jnp.asarray, params))


STARTS: dict[str, Callable[..., Task]] = {"file": file, "public": public}


def started(text: str, task: Task, population: Population, cache_dir: str | None = None) -> Task:
    """The task whose model starts where a text says, NAME[:VALUE][,arg=value...].

    Raises:
      ValueError: an unknown start or option, no such file, or one that does not fit the model; the line names what does not.
    """
    if task.own is not None:
        raise ValueError(f"--init={text}: task '{task.name}' gives clients several models; leave it out")
    try:
        return spec.build("start", text, STARTS, task, population, platform.cache_folder(cache_dir))
    except ValueError as error:
        raise ValueError(f"--init={text}: {error}") from None


def pretrained(task: Task, examples: dict[str, jax.Array], *, steps: int, batch_size: int, lr: float, seed: int) -> Tree:
    """The parameters after `steps` steps of AdamW on examples {field: [P, ...]}, all in one place; a pure function of its arguments."""
    key = jax.random.key(seed)
    optimizer, slope = optax.adamw(optax.cosine_decay_schedule(lr, steps)), gradient(task)
    count = len(next(iter(examples.values())))

    def step(t, carry):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(keys.purpose(key, "rows"), t), (batch_size,), 0, count)
        batch = {**{name: array[rows] for name, array in examples.items()}, "mask": jnp.ones(batch_size, bool)}
        _, v, stats = slope(jax.random.fold_in(keys.purpose(key, "steps"), t), params, batch)
        update, state = optimizer.update(v, state, params)
        return with_stats(optax.apply_updates(params, update), stats), state

    params = task.init(keys.purpose(key, "params"))
    return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]
