"""What must be settled before JAX wakes up: several processes as one, CPU cores as devices, precision, the cache of compiled programs."""
from __future__ import annotations

import faulthandler
import os
from pathlib import Path

import jax

SILENCE = 30  # seconds without a sign of life after which a process counts as dead and the others end
PATIENCE = 15  # seconds that a process which ends waits for the others to end


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where decoded data and compiled programs are kept: `cache_dir`, else $XDG_CACHE_HOME/fedjax_lab, else ~/.cache/fedjax_lab."""
    return Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fedjax_lab").expanduser()


def cores() -> int:
    """CPU cores this process may use, rounded down to a power of two."""
    return 1 << (len(os.sched_getaffinity(0)).bit_length() - 1) if hasattr(os, "sched_getaffinity") else 1


def room(share: float) -> float:
    """Bytes of the devices' memory that a share of what is free comes to; CPU devices have the host's."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return share * (stats["bytes_limit"] - stats["bytes_in_use"]) * len(jax.devices())
    try:
        with open("/proc/meminfo") as lines:
            return share * next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return share * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def join(coordinator: str | None = None, processes: str | None = None, process_id: str | None = None) -> None:
    """Makes this process one of several that run one program on the devices of all, by JAX's distributed runtime.

    Without arguments: the processes of a SLURM or Open MPI step or of a TPU slice in Kubernetes, as the environment says; anywhere
    else this process stays alone. A process that dies ends the others within a minute.

    Args:
      coordinator: "host:port" of process 0, where the others find each other.
      processes: how many there are, or "cluster" for what JAX detects, as on a TPU pod.
      process_id: which one this is, from 0.

    Raises:
      ValueError: an argument is missing or out of range, or JAX detects no cluster.
    """
    if (coordinator, processes, process_id) == (None, None, None):
        processes = "cluster" if _launched() > 1 else "1"
    if processes == "1":
        return
    given = {} if processes == "cluster" else _given(coordinator, processes, process_id)
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the run
        faulthandler.disable()  # JAX ends a process by abort when another is lost: its line is enough
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=SILENCE, shutdown_timeout_seconds=PATIENCE)
    except ValueError as error:
        raise ValueError(f"--processes={processes}: JAX detects no cluster here ({error})") from None


def _launched() -> int:
    """How many processes the launcher started, as far as it says so in the environment."""
    env = os.environ
    if "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env:
        return int(env.get("SLURM_NTASKS", 1))
    if "OMPI_MCA_orte_hnp_uri" in env:
        return int(env["OMPI_COMM_WORLD_SIZE"])
    return len(env.get("TPU_WORKER_HOSTNAMES", "").split(","))


def _given(coordinator: str | None, processes: str | None, process_id: str | None) -> dict[str, str | int]:
    if coordinator is None or ":" not in coordinator:
        raise ValueError(f"--coordinator={coordinator}: expected HOST:PORT of process 0, together with --processes and --process_id")
    if processes is None or not processes.isdecimal() or processes == "0":
        raise ValueError(f"--processes={processes}: expected a number of processes or 'cluster'")
    if process_id is None or not process_id.isdecimal() or int(process_id) >= int(processes):
        raise ValueError(f"--process_id={process_id}: of {processes} processes; choose 0..{int(processes) - 1}")
    return {"coordinator_address": coordinator, "num_processes": int(processes), "process_id": int(process_id)}


def prepare(devices: int | str = "auto", precision: str = "default", cache_dir: str | None = None) -> None:
    """Makes CPU cores devices, sets the precision of matrix products, and keeps compiled programs between processes.

    The number of CPU devices can only be set before JAX's first computation; afterwards it stays as it is. An accelerator's devices
    are what they are. JAX_NUM_CPU_DEVICES, where it is set, is the number of one process.
    """
    wanted = devices if devices != "auto" else int(os.environ.get("JAX_NUM_CPU_DEVICES") or cores())
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
