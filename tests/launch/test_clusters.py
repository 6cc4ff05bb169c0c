"""The launchers for machines that are not here, against stand-ins for their programs: see standin.py."""
from __future__ import annotations

import json
import shlex

import pytest
from outcome import ROOT, result, same_bits

TPU = ("bash", str(ROOT / "launch" / "tpu_pod.sh"))
SLURM = str(ROOT / "launch" / "slurm.sbatch")
KUBERNETES = ("python3", "-m", "launch.kubernetes")
POD = ("pod-1", "us-east1-d", "v4-16", "a run.flags", "out")


@pytest.mark.full
def test_slurm_runs_one_process_per_task(shell, alone, tmp_path):
    done, _ = shell("sbatch", "--nodes=2", SLURM, "a run.flags", "--workdir=run", PROCESSES="2")
    assert done.returncode == 0, done.stderr
    assert same_bits(result(tmp_path / "run"), alone) and done.stdout.count("2 cpu devices") == 1


@pytest.mark.full
def test_tpu_pod_runs_on_all_workers_and_collects(shell, alone, tmp_path):
    done, _ = shell(*TPU, *POD, PROCESSES="2", real=("tar",))
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert same_bits(result(path), alone) and not (tmp_path / "worker1" / "fedjax_lab" / "runs").exists()


@pytest.mark.full
def test_kubernetes_runs_one_process_per_pod(shell, alone, tmp_path):
    done, _ = shell(*KUBERNETES, "digits", "a run.flags", "--image=lab:1", "--processes=2", "--", f"--workdir={tmp_path / 'run'}", PROCESSES="2")
    assert done.returncode == 0, done.stderr
    assert same_bits(result(tmp_path / "run"), alone)


def test_slurm_calls_srun_with_the_flags(shell, tmp_path):
    done, log = shell("sbatch", "--nodes=2", SLURM, "a run.flags", "--set", "lr=0.1")
    assert done.returncode == 0, done.stderr
    assert log[1] == ["srun", "--kill-on-bad-exit=1", "python3", "-m", "experiments.train", "--flagfile=a run.flags", "--set", "lr=0.1"]
    dry, _ = shell("bash", SLURM, "--dry_run", "a run.flags", "--set", "lr=0.1", PYTHON="python3")
    assert shlex.split(dry.stdout) == log[1]


def test_slurm_keeps_the_exit_status(shell):
    assert shell("sbatch", SLURM, "a run.flags", FAIL_ON="experiments.train")[0].returncode == 7


def test_slurm_directives_lead_the_file():
    body = (ROOT / "launch" / "slurm.sbatch").read_text().split("set -euo")[0].splitlines()
    assert all(line.startswith("#") for line in body) and "#SBATCH --ntasks-per-node=1" in body


def test_tpu_dry_run_prints_exactly_what_is_run(shell, tmp_path):
    dry, nothing = shell(*TPU, "--dry_run", *POD)
    assert dry.returncode == 0, dry.stderr
    assert nothing == [] and not (tmp_path / "out").exists()
    wet, log = shell(*TPU, *POD)
    assert wet.returncode == 0 and wet.stdout == dry.stdout and (tmp_path / "out").is_dir()
    assert log == [shlex.split(line) for line in dry.stdout.splitlines() if not line.startswith(("#", "mkdir"))]
    assert [c[4] if c[0] == "gcloud" else c[0] for c in log] == ["create", "tar", "scp", "scp", "ssh", "ssh", "scp"]
    assert all("--zone=us-east1-d" in c for c in log if c[0] == "gcloud") and "--accelerator-type=v4-16" in log[0]
    assert [("--worker=all" in c, "--worker=0" in c) for c in log] == [(False, False)] * 2 + [(True, False)] * 4 + [(False, True)]
    assert str(tmp_path / "a run.flags") in log[3] and "--flagfile=../run.flags --processes=cluster" in log[5][-1]
    assert log[6][-2:] == ["pod-1:fedjax_lab/runs/*", str(tmp_path / "out")]


def test_tpu_collects_nothing_where_the_run_writes_to_a_bucket(shell, tmp_path):
    (tmp_path / "bucket.flags").write_text("--rounds=2\n--workdir=gs://bucket/run\n")
    dry, _ = shell(*TPU, "--dry_run", "pod-1", "us-east1-d", "v4-16", "bucket.flags")
    assert dry.returncode == 0 and "runs/" not in dry.stdout


def test_tpu_stops_at_the_first_failure(shell):
    done, log = shell(*TPU, *POD[:4], FAIL_ON="pip install")
    assert done.returncode == 7 and "pip install" in log[-1][-1]


@pytest.mark.parametrize("argv", [("bash", SLURM), ("bash", SLURM, "none.flags"), (*TPU, "pod-1"), (*TPU, "n", "z", "t", "none.flags"),
                                  (*TPU, *POD, "more"), (*KUBERNETES, "name", "none.flags", "--image=i", "--processes=2")])
def test_wrong_call_names_the_flags_file(shell, argv):
    done, log = shell(*argv)
    assert done.returncode == 2 and "flags" in done.stderr.splitlines()[-1] and log == []


@pytest.mark.parametrize("argv, words", [
    (("Name", "a run.flags", "--image=i", "--processes=2"), "'Name'"),
    (("name", "a run.flags", "--image=i", "--processes=0"), "--processes=0"),
    (("name", "a run.flags", "--image=i", "--processes=2", "--resource=gpu"), "--resource=gpu"),
    (("name", "a run.flags", "--processes=2"), "--image"),
])
def test_kubernetes_refuses_what_no_cluster_would_take(shell, argv, words):
    done, log = shell(*KUBERNETES, *argv)
    assert done.returncode == 2 and words in done.stderr and log == []


TEXT, NUMBER, YES = str, int, bool
CONTAINER = {"name!": TEXT, "image!": TEXT, "command": [TEXT], "ports": [{"containerPort!": NUMBER}], "resources": {"limits": {"*": TEXT}},
             "volumeMounts": [{"name!": TEXT, "mountPath!": TEXT, "readOnly": YES}]}
POD_SPEC = {"restartPolicy!": TEXT, "containers!": [CONTAINER], "nodeSelector": {"*": TEXT}, "terminationGracePeriodSeconds": NUMBER,
            "volumes": [{"name!": TEXT, "configMap!": {"name!": TEXT}}]}
JOB_SPEC = {"parallelism": NUMBER, "completions": NUMBER, "completionMode": TEXT, "backoffLimit": NUMBER, "template!": {"spec!": POD_SPEC}}
JOBSET = {"apiVersion!": TEXT, "kind!": TEXT, "metadata!": {"name!": TEXT}, "spec!": {
    "network": {"enableDNSHostnames": YES, "subdomain": TEXT, "publishNotReadyAddresses": YES}, "failurePolicy": {"maxRestarts": NUMBER},
    "replicatedJobs": [{"name!": TEXT, "replicas": NUMBER, "template!": {"spec!": JOB_SPEC}}]}}
CONFIG_MAP = {"apiVersion!": TEXT, "kind!": TEXT, "metadata!": {"name!": TEXT}, "data": {"*": TEXT}}
"""What is used here of the APIs jobset.x-k8s.io/v1alpha2, batch/v1 and v1; "!" marks what they require."""


def faults(value, schema, at="") -> list[str]:
    """Where a value is not what the schema says."""
    if isinstance(schema, list):
        return [f for i, v in enumerate(value) for f in faults(v, schema[0], f"{at}[{i}]")] if isinstance(value, list) else [at]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [at]
    known = {name.rstrip("!"): kind for name, kind in schema.items()}
    missing = [f"{at}.{name[:-1]}" for name in schema if name.endswith("!") and name[:-1] not in value]
    strange = [f"{at}.{name}" for name in value if name not in known and "*" not in known]
    return missing + strange + [f for k, v in value.items() if k in known or "*" in known for f in faults(v, known.get(k, known.get("*")), f"{at}.{k}")]


def test_the_schema_finds_faults():
    wrong = {"kind": "x", "apiVersion": 1, "metadata": {}, "more": 1, "data": {"a": "text", "b": 2}}
    assert sorted(faults(wrong, CONFIG_MAP)) == [".apiVersion", ".data.b", ".metadata.name", ".more"]


def test_the_manifest_is_what_kubernetes_takes_and_dry_run_prints_it(shell, tmp_path):
    argv = (*KUBERNETES, "digits", "a run.flags", "--image=lab:1", "--processes=4", "--resource=google.com/tpu=4", "--selector=a/b=c=d", "--", "--seed=3")
    dry, nothing = shell(*argv[:5], "--dry_run", *argv[5:])
    assert dry.returncode == 0, dry.stderr
    assert nothing == []
    wet, log = shell(*argv)
    assert wet.stdout == dry.stdout and log == [["kubectl", "apply", "-f", "-"]]
    config, jobset = objects = json.loads((tmp_path / "manifest.json").read_text())
    lines = dry.stdout.split("\n")
    assert json.loads("\n".join(lines[1 : lines.index("END")]))["items"] == objects
    assert faults(config, CONFIG_MAP) == [] and faults(jobset, JOBSET) == []
    assert config["data"] == {"run.flags": (tmp_path / "a run.flags").read_text()}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert "--coordinator=digits-workers-0-0.digits:8476" in command and "--process_id=$(JOB_COMPLETION_INDEX)" in command
    assert "--processes=4" in command and "--seed=3" in command
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": "4"}} and pod["nodeSelector"] == {"a/b": "c=d"}
