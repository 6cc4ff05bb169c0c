"""Joining several processes: which of them there are, as flags or the launcher's environment say. JAX's runtime itself is met in tests/launch."""
from __future__ import annotations

import jax
import pytest

from experiments import screen
from fedjax_lab import platform

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.fixture
def joined(monkeypatch):
    """Calls join in this environment alone; what it asks of JAX, or None."""

    def call(variables: dict[str, str], *flags: str | None, fails: Exception | None = None) -> dict | None:
        for name in ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        asked = []

        def initialize(**options):
            asked.append(options)
            if fails:
                raise fails

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        platform.join(*flags)
        return {k: v for k, v in asked[0].items() if not k.endswith("seconds")} if asked else None

    before = jax.config.jax_enable_preemption_service
    yield call
    jax.config.update("jax_enable_preemption_service", before)


@pytest.mark.parametrize("variables", [
    {}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, {**SLURM, "SLURM_NTASKS": "1"}, {**MPI, "OMPI_COMM_WORLD_SIZE": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost"},
])
def test_a_process_that_nobody_counted_stays_alone(joined, variables):
    assert joined(variables) is None


@pytest.mark.parametrize("variables", [SLURM, MPI, {"TPU_WORKER_HOSTNAMES": "a,b"}])
def test_a_launcher_that_started_several_is_left_to_jax(joined, variables):
    assert joined(variables) == {}


def test_flags_come_before_the_environment(joined):
    assert joined(SLURM, None, "1", None) is None
    expected = {"coordinator_address": "host:81", "num_processes": 2, "process_id": 1}
    assert joined(SLURM, "host:81", "2", "1") == expected


def test_cluster_asks_jax_anywhere(joined):
    assert joined({}, None, "cluster", None) == {}
    with pytest.raises(ValueError, match="--processes=cluster: JAX detects no cluster"):
        joined({}, None, "cluster", None, fails=ValueError("coordinator_address should be defined."))


@pytest.mark.parametrize("flags, words", [
    ((None, "2", "0"), "--coordinator=None"), (("host", "2", "0"), "HOST:PORT"), (("host:81", None, "0"), "--processes=None"),
    (("host:81", "0", "0"), "--processes=0"), (("host:81", "two", "0"), "--processes=two"), (("host:81", "2", None), "choose 0..1"),
    (("host:81", "2", "2"), "--process_id=2"), (("host:81", "2", "-1"), "--process_id=-1"),
])
def test_incomplete_flags_are_refused(joined, flags, words):
    with pytest.raises(ValueError) as error:
        joined({}, *flags)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_silence_ends_a_run_within_a_minute():
    assert platform.SILENCE + platform.PATIENCE < 60


def test_cpu_devices_follow_the_flag_then_the_environment_then_the_cores(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    for devices, variable, expected in ((4, "2", 4), ("auto", "2", 2), ("auto", "", platform.cores())):
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", variable)
        platform.prepare(devices, cache_dir=str(tmp_path))
        assert asked["jax_num_cpu_devices"] == expected


def test_a_program_alone_keeps_its_status_and_its_errors():
    assert screen.together(lambda argv: len(argv))(["a", "b"]) == 2
    with pytest.raises(KeyError):
        screen.together(lambda argv: {}["missing"])([])
