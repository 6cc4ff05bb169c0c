"""What must be settled before JAX wakes up: CPU cores as devices, precision, the cache of compiled programs."""
from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where decoded data and compiled programs are kept: `cache_dir`, else $XDG_CACHE_HOME/fedjax_lab, else ~/.cache/fedjax_lab."""
    return Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fedjax_lab").expanduser()


def cores() -> int:
    """CPU cores this process may use, rounded down to a power of two."""
    return 1 << (len(os.sched_getaffinity(0)).bit_length() - 1) if hasattr(os, "sched_getaffinity") else 1


def prepare(devices: int | str = "auto", precision: str = "default", cache_dir: str | None = None) -> None:
    """Makes CPU cores devices, sets the precision of matrix products, and keeps compiled programs between processes.

    The number of CPU devices can only be set before JAX's first computation; afterwards it stays as it is. An accelerator's devices
    are what they are.
    """
    wanted = cores() if devices == "auto" else devices
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        pass  # a backend is already up: engine.mesh reports it if the devices do not suffice
    jax.config.update("jax_default_matmul_precision", None if precision == "default" else precision)
    folder = cache_folder(cache_dir) / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home only costs the compilation
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
