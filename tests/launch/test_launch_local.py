"""Several processes on this machine give the bits of one; one of them writes; the death of one ends all."""
from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from outcome import ROOT, RUN, result, same_bits

from launch import local


@pytest.fixture
def together(environment, monkeypatch, capfd):
    """Runs commands by launch.local inside this process; (status, lines per process, errors)."""

    def call(lines: list[list[str]], devices: int = 1) -> tuple[int, list[list[str]], str]:
        monkeypatch.delenv("XLA_FLAGS", raising=False)  # as compiled for users, like `environment`
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status = local.run(lines, {"JAX_NUM_CPU_DEVICES": str(devices)})
        out, err = capfd.readouterr()
        return status, [[line[4:] for line in out.splitlines() if line.startswith(f"[{i}] ")] for i in range(len(lines))], err

    return call


def test_two_processes_give_the_bits_of_one_and_only_the_first_writes(together, alone, tmp_path):
    lines = [[*line, f"--workdir={tmp_path / f'run{i}'}"] for i, line in enumerate(local.commands(2, local.free_port(), list(RUN)))]
    status, (first, second), _ = together(lines)
    assert status == 0, first
    assert same_bits(result(tmp_path / "run0"), alone)
    assert any("2 cpu devices" in line for line in first) and any("test set: accuracy" in line for line in first)
    assert second == [] and not (tmp_path / "run1").exists()


@pytest.mark.full
@pytest.mark.parametrize("processes, devices", [(1, 2), (2, 2), (4, 1)])
def test_any_split_of_the_devices_gives_the_same_bits(together, alone, tmp_path, processes, devices):
    status, out, _ = together(local.commands(processes, local.free_port(), [*RUN, f"--workdir={tmp_path / 'run'}"]), devices)
    assert status == 0, out
    assert same_bits(result(tmp_path / "run"), alone)


@pytest.mark.full
@pytest.mark.parametrize("processes, flag", [(2, "--population=host"), (4, "--population=disk"), (2, "--client_state=disk")])
def test_what_lives_off_the_devices_gives_the_same_bits(together, alone, tmp_path, processes, flag):
    status, out, _ = together(local.commands(processes, local.free_port(), [*RUN, flag, f"--workdir={tmp_path / 'run'}"]))
    assert status == 0, out

    def common(one):  # a table off the devices has other arrays, those of known rows
        return one._replace(arrays={k: v for k, v in one.arrays.items() if "client_state" not in flag or not k.startswith("state.clients")})

    assert same_bits(common(result(tmp_path / "run")), common(alone))


@pytest.mark.full
@pytest.mark.parametrize("processes, devices, model", [(1, 2, 2), (2, 1, 2), (2, 2, 2)])
def test_a_model_cut_over_devices_agrees_to_rounding(together, alone, tmp_path, processes, devices, model):
    flags = [*RUN, f"--model_devices={model}", f"--workdir={tmp_path / 'run'}"]
    status, out, _ = together(local.commands(processes, local.free_port(), flags), devices)
    assert status == 0, out
    found = result(tmp_path / "run").arrays
    for name, array in alone.arrays.items():
        if array.dtype == np.float32:
            assert np.linalg.norm(found[name] - array) <= 1e-5 * np.linalg.norm(array), name


@pytest.mark.full
def test_a_run_goes_on_with_another_number_of_processes(together, alone, tmp_path):
    for processes, rounds in ((2, 2), (1, 4)):
        flags = [*RUN, f"--rounds={rounds}", f"--workdir={tmp_path / 'run'}"]
        status, out, _ = together(local.commands(processes, local.free_port(), flags))
        assert status == 0, out
    assert same_bits(result(tmp_path / "run"), alone)


@pytest.mark.full
@pytest.mark.parametrize("flags, words", [
    (([], ["--seed=1"]), ("configuration of process 1", "same flags")),
    ((["--task=mnist_mlp", "--data_dir=nowhere"], ["--task=mnist_mlp", "--data_dir=nowhere"]), ("mnist", "not found")),
])
def test_what_is_wrong_is_said_and_ends_all(together, tmp_path, flags, words):
    lines = [[*line, *more] for line, more in zip(local.commands(2, local.free_port(), [*RUN, f"--workdir={tmp_path / 'run'}"]), flags, strict=True)]
    status, out, err = together(lines)
    assert status == 2 and "ended with status 2" in err
    assert all(any(line.startswith("error: ") and all(word in line for word in words) for line in one) for one in out), out


@pytest.mark.full
@pytest.mark.parametrize("victim, how", [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_loss_of_a_process_ends_the_others_within_a_minute(environment, tmp_path, victim, how):
    """Without a launcher that could end them. A process that is stopped answers no more, as one on a machine that was switched off."""
    flags = [*RUN, "--rounds=1000000", "--eval_every=10", f"--workdir={tmp_path / 'run'}"]
    logs = [tmp_path / f"log{i}" for i in range(2)]
    started = [subprocess.Popen(line, env={**environment, "JAX_NUM_CPU_DEVICES": "1"}, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=ROOT)
               for line, log in zip(local.commands(2, local.free_port(), flags), logs, strict=True)]
    try:
        until = time.monotonic() + 240
        while "round    10" not in logs[0].read_text():
            assert time.monotonic() < until and all(p.poll() is None for p in started), logs[0].read_text()
            time.sleep(0.1)
        started[victim].send_signal(how)
        assert started[1 - victim].wait(timeout=60) != 0
        text = logs[1 - victim].read_text()
        assert "another process" in text or "another task died" in text
    finally:
        for process in started:
            process.kill()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_is_prefixed_and_success_is_zero(together):
    status, out, err = together([python("print('one\\ntwo')"), python("import sys; print('three', file=sys.stderr)")])
    assert (status, out, err) == (0, [["one", "two"], ["three"]], "")


def test_devices_of_each_process_are_in_its_environment(together):
    assert together([python("import os; print(os.environ['JAX_NUM_CPU_DEVICES'])")], devices=3)[1] == [["3"]]


@pytest.mark.parametrize("end, status, words", [("sys.exit(3)", 3, "ended with status 3"), ("os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL")])
def test_the_first_failure_ends_the_rest_and_is_returned(together, monkeypatch, end, status, words):
    monkeypatch.setattr(local, "GRACE", 0.2)
    stubborn = python("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)")
    begin = time.monotonic()
    found, out, err = together([stubborn, python(f"import os, sys, time; time.sleep(1); {end}")])
    assert found == status and f"process 1 {words}" in err and out[0] == ["up"]
    assert time.monotonic() - begin < 30


def test_sigterm_is_handed_on(environment):
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from launch import local; "
            "sys.exit(local.run([[sys.executable, '-c', 'import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); "
            "print(\"up\"); time.sleep(60)']] * 2, {}))")
    launcher = subprocess.Popen([*python(code), str(ROOT)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert {launcher.stdout.readline() for _ in range(2)} == {"[0] up\n", "[1] up\n"}
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 143
    launcher.stdout.close()


def launch(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "launch.local", *argv], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path):
    done = launch("--processes=2", "--devices_per_process=4", "--port=1234", "--dry_run", "--", "--flagfile=my.flags", f"--workdir={tmp_path / 'a run'}")
    assert done.returncode == 0, done.stderr
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    shared = ["experiments.train", "--flagfile=my.flags", f"--workdir={tmp_path / 'a run'}", "--coordinator=127.0.0.1:1234", "--processes=2"]
    assert [w[w.index("experiments.train"):] for w in words] == [[*shared, f"--process_id={i}"] for i in range(2)]
    assert all(w[0] == "env" and "JAX_NUM_CPU_DEVICES=4" in w for w in words) and not os.listdir(tmp_path)


@pytest.mark.parametrize("argv, words", [
    ((), "--processes"), (("--processes=0",), "--processes=0"), (("--processes=2", "--devices_per_process=0"), "--devices_per_process=0"),
    (("--process=2",), "--process"),
])
def test_wrong_call_says_so(argv, words):
    done = launch(*argv)
    assert done.returncode == 2 and words in done.stderr
