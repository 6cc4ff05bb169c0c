"""Stands in for srun, sbatch, gcloud, kubectl, pip and tar, by the name it is called by: writes the call down, and starts local processes
with the variables that the real one would set. $STANDIN is its folder, $PROCESSES how many it starts (0: it only writes)."""
from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

NAME, ARGV = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
ROOT, PROCESSES = pathlib.Path(os.environ["STANDIN"]), int(os.environ.get("PROCESSES", "0"))


def together(commands: list[list[str]], variables: list[dict[str, str]], folders: list[str] | None = None) -> int:
    """Runs one command per process at the same time; the first failure's status."""
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    places = folders or [os.getcwd()] * len(commands)
    started = [subprocess.Popen(c, env={**shared, **v}, cwd=f) for c, v, f in zip(commands, variables, places, strict=True)]
    return next((code for code in [p.wait() for p in started] if code), 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def sbatch() -> int:
    """The script runs on the first node of the allocation."""
    at = next(i for i, word in enumerate(ARGV) if not word.startswith("-"))
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_NTASKS": str(PROCESSES)}
    copy = ROOT / "slurm_script"  # SLURM runs a copy from its spool folder
    shutil.copy(ARGV[at], copy)
    return subprocess.run(["bash", str(copy), *ARGV[at + 1 :]], env={**os.environ, **job}, check=False).returncode


def srun() -> int:
    """Every task gets its number."""
    at = next((i for i, word in enumerate(ARGV) if not word.startswith("-")), 0)
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": str(PROCESSES), "JAX_COORDINATOR_PORT": str(free_port())}
    return together([ARGV[at:]] * PROCESSES, [{**step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(PROCESSES)])


def gcloud() -> int:
    """compute tpus tpu-vm create, scp and ssh; each worker has a home folder."""
    verb, options = ARGV[3], dict(word.split("=", 1) for word in ARGV if word.startswith("--") and "=" in word)
    homes = [ROOT / f"worker{i}" for i in range(PROCESSES)]
    if verb == "create":
        for home in homes:
            home.mkdir()
    if verb == "scp":
        source, target = ARGV[-2:]
        if ":" in target:
            for home in homes:
                shutil.copy(source, home / target.partition(":")[2])
        else:
            for path in (homes[0]).glob(source.partition(":")[2]) if homes else ():
                shutil.copytree(path, pathlib.Path(target) / path.name)
    if verb == "ssh" and homes:
        assert options["--worker"] == "all"
        slice_ = {"JAX_FORCE_TPU_INIT": "1", "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * PROCESSES), "JAX_COORDINATOR_PORT": str(free_port()),
                  "MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
        variables = [{**slice_, "TPU_WORKER_ID": str(i), "HOME": str(home)} for i, home in enumerate(homes)]
        return together([["bash", "-c", options["--command"]]] * PROCESSES, variables, [str(home) for home in homes])
    return 0


def kubectl() -> int:
    """apply: the pods of the first replicated job, with the flags mounted and their names resolved, both of which the cluster would do."""
    objects = json.load(sys.stdin)["items"]
    (ROOT / "manifest.json").write_text(json.dumps(objects))
    flags, jobset = objects[0]["data"], objects[1]["spec"]
    job = jobset["replicatedJobs"][0]
    container, pods = job["template"]["spec"]["template"]["spec"]["containers"][0], job["template"]["spec"]["completions"]
    mounted, port = ROOT / "mounted", free_port()
    mounted.mkdir()
    for name, text in flags.items():
        (mounted / name).write_text(text)
    first = f"{objects[1]['metadata']['name']}-{job['name']}-0-0.{jobset['network']['subdomain']}:{container['ports'][0]['containerPort']}"

    def command(index: int) -> list[str]:
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
        return [w.replace(container["volumeMounts"][0]["mountPath"], str(mounted)).replace(first, f"127.0.0.1:{port}") for w in words]

    return together([command(i) for i in range(pods)], [{"JOB_COMPLETION_INDEX": str(i)} for i in range(pods)]) if PROCESSES else 0


with (ROOT / "log").open("a") as log:
    log.write(json.dumps([NAME, *ARGV]) + "\n")
if any(os.environ.get("FAIL_ON", "no such word") in word for word in ARGV):
    sys.exit(7)
acts = {"sbatch": sbatch, "srun": srun, "gcloud": gcloud, "kubectl": kubectl}
sys.exit(acts[NAME]() if NAME in acts else 0)
