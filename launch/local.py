"""One run in several processes of this machine: python -m launch.local --processes=4 -- --flagfile=FILE.flags [more flags]

What follows `--` are flags of experiments.train. The processes have --devices_per_process CPU devices each and talk over the loopback
interface, as hosts of a cluster would. Their output comes with their number before each line. The first one that fails ends the
others, and its exit status is returned; SIGTERM is handed on.
"""
from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from fedjax_lab import spec

GRACE = 10  # seconds in which the others may say how the failure of one looks to them, and then to obey SIGTERM


def commands(processes: int, port: int, flags: list[str]) -> list[list[str]]:
    """The command of each process."""
    shared = [sys.executable, "-m", "experiments.train", *flags, f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
    return [[*shared, f"--process_id={process}"] for process in range(processes)]


def run(lines: list[list[str]], added: dict[str, str]) -> int:
    """Starts the commands with these environment variables, and returns when all have ended: 0, or the first failure's status."""
    env = {**os.environ, **added, "PYTHONUNBUFFERED": "1"}
    started = [subprocess.Popen(line, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                errors="replace") for line in lines]
    before = signal.signal(signal.SIGTERM, lambda *_: _tell(started, signal.SIGTERM))
    readers = [threading.Thread(target=_show, args=(number, process)) for number, process in enumerate(started)]
    for reader in readers:
        reader.start()
    try:
        failed = _wait(started)
        if failed is not None:
            code = started[failed].returncode
            how = f"ended with status {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            print(f"launch.local: process {failed} {how}; the others are ended too", file=sys.stderr, flush=True)
            _end(started)
    finally:
        _tell(started, signal.SIGKILL)
        for reader in readers:
            reader.join()
        signal.signal(signal.SIGTERM, before)
    return 0 if failed is None else code if code > 0 else 128 - code


def _show(number: int, process: subprocess.Popen) -> None:
    for line in process.stdout:
        if not line.startswith("[Gloo] Rank "):  # it counts its connections
            print(f"[{number}] {line}", end="", flush=True)


def _wait(started: list[subprocess.Popen]) -> int | None:
    """The number of the first process that fails, None once all have ended well."""
    while True:
        codes = [process.poll() for process in started]
        failed = [number for number, code in enumerate(codes) if code]
        if failed or None not in codes:
            return failed[0] if failed else None
        time.sleep(0.05)


def _end(started: list[subprocess.Popen]) -> None:
    for last in (None, signal.SIGTERM):
        if last:
            _tell(started, last)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(process.poll() is None for process in started):
            time.sleep(0.05)


def _tell(started: list[subprocess.Popen], what: signal.Signals) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(what)


def main() -> int:
    """Reads the command line and runs."""
    parser = spec.Arguments(prog="launch.local", description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices_per_process", type=int, default=1, help="CPU devices of each")
    parser.add_argument("--port", type=int, help="of process 0, where the others find it; by default a free one")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and do nothing")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="flags of experiments.train")
    args = parser.parse_args()
    for name in ("processes", "devices_per_process"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: choose 1 or more")
    lines = commands(args.processes, args.port or free_port(), args.flags)
    added = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "JAX_NUM_CPU_DEVICES": str(args.devices_per_process)}
    if args.dry_run:
        print("\n".join(shlex.join(["env", *(f"{k}={v}" for k, v in added.items()), *line]) for line in lines))
        return 0
    return run(lines, added)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
