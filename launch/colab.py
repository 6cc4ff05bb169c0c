"""Installs this checkout beside the JAX that is there, as a Colab runtime needs it: python launch/colab.py [--dry_run]

The project itself comes without its dependencies; then what it needs and the runtime lacks, with JAX and numpy held at their versions,
so that pip refuses rather than replaces them. The notebooks of experiments/notebooks call this in their first cell.
"""
from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]


def held(name: str) -> bool:
    """Whether a distribution stays as it is: JAX and its plugins, and what a running kernel has loaded already."""
    return name.startswith("jax") or name in ("libtpu", "numpy")


def lacking(needs: Iterable[str], there: Mapping[str, str]) -> list[str]:
    """The requirements that the runtime does not meet.

    Args:
      needs: as pip writes them, those of extras included, which do not count.
      there: {distribution: version} of what is installed.

    Raises:
      ValueError: what is held is too old.
    """
    found = []
    for need in map(Requirement, needs):
        name = canonicalize_name(need.name)
        if (need.marker and not need.marker.evaluate({"extra": ""})) or (name in there and need.specifier.contains(there[name], prereleases=True)):
            continue
        if held(name) and name in there:
            raise ValueError(f"this runtime has {name} {there[name]}, fedjax_lab needs {need}; choose a newer runtime")
        found.append(f"{need.name}{need.specifier}")
    return found


def main(argv: list[str]) -> int:
    """0 when installed, pip's own status where it failed, 2 for a runtime or a call that will not do."""
    if set(argv) - {"--dry_run"}:
        print(f"error: unexpected argument '{min(set(argv) - {'--dry_run'})}'; valid: --dry_run", file=sys.stderr)
        return 2

    def pip(*words: str) -> int:
        command = [sys.executable, "-m", "pip", "install", "--quiet", *words]
        print(shlex.join(command), flush=True)
        return 0 if "--dry_run" in argv else subprocess.run(command, check=False).returncode

    status = pip("--no-deps", str(ROOT))
    if status:
        return status
    there = {canonicalize_name(d.name): d.version for d in metadata.distributions()}
    try:
        missing = lacking(metadata.requires("fedjax_lab") or [], there)
    except metadata.PackageNotFoundError:
        print("# what it needs is known once it is installed")
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(there.items()) if held(name))
        file.flush()
        return pip("--constraint", file.name, *missing) if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
