"""House rules that can be read from the source: who imports whom, what an import loads, where numpy stays numpy, who prints."""

from __future__ import annotations

import ast
import functools
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "fedjax_lab"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
BASE = {"types", "tree", "keys", "spec", "rules", "local", "registry"}
ALLOWED = {  # what a file of each room may import; rooms that are missing (run, config, ...) may import all of the package
    "types": set(),
    "spec": set(),
    "tree": {"types"},
    "keys": {"types"},
    "rules": {"types", "tree"},
    "local": {"types", "tree", "keys"},
    "registry": {"types", "spec", "local", "methods", "parts"},  # the last two when it lists them
    "events": {"types", "keys", "spec"},
    "engine": {"types", "tree", "keys", "local", "rules", "engine"},
    "data": {"types", "tree", "keys", "spec", "data"},
    "models": {"types", "tree", "keys", "spec", "models"},
    "metrics": {"types", "tree", "keys", "spec", "metrics"},
    "parts": BASE | {"parts", "events"},
    "methods": BASE | {"parts", "events"},
}
HEAVY = ("tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "sklearn", "scipy", "grain", "networkx", "tqdm")
OUTSIDE = {
    "jax",
    "flax",
    "optax",
    "chex",
    "numpy",
    "etils",
}  # what the package may import at the top of a file, beside the standard library


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: pathlib.Path, top: bool = False) -> set[str]:
    """Names of the modules that a file imports; at the top of the file only, where asked."""
    nodes = tree_of(path).body if top else ast.walk(tree_of(path))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or node.module == PACKAGE else node.module for name in names}
    return found


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def forbidden(importer: str, imported: str) -> bool:
    if not imported.startswith(PACKAGE + "."):
        return imported.split(".")[0] in ("experiments", "launch", "tests")
    return room(importer) in ALLOWED and room(imported) not in ALLOWED[room(importer)]


def test_every_edge_is_allowed():
    edges = [(name, imported) for name, path in MODULES.items() for imported in imports(path)]
    assert len(edges) > 100 and ("fedjax_lab.engine.sync", "fedjax_lab.engine.exchange") in edges
    wrong = [f"{a} -> {b}" for a, b in edges if forbidden(a, b) and not (a.endswith("__main__") and room(b) in ALLOWED)]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "importer, imported, wrong",
    [
        ("fedjax_lab.engine.sync", "fedjax_lab.parts.wires.topk", True),
        ("fedjax_lab.engine.sync", "fedjax_lab.registry", True),
        ("fedjax_lab.methods.optimization.fedprox", "fedjax_lab.methods.optimization.fedavg", True),
        ("fedjax_lab.methods.optimization.fedprox", "fedjax_lab.parts.oracles.directions", False),
        ("fedjax_lab.parts.wires.topk", "fedjax_lab.engine.sync", True),
        ("fedjax_lab.data.source", "fedjax_lab.engine.mesh", True),
        ("fedjax_lab.run", "experiments.train", True),
        ("fedjax_lab.run", "fedjax_lab.engine.sync", False),
        ("fedjax_lab.tree", "fedjax_lab.keys", True),
    ],
)
def test_the_check_sees_what_it_should(importer, imported, wrong):
    assert forbidden(importer, imported) == wrong


def test_the_top_of_a_file_imports_nothing_heavy():
    wrong = [
        f"{name} -> {imported}"
        for name, path in MODULES.items()
        if not name.endswith("__main__")
        for imported in imports(path, top=True)
        if imported.split(".")[0] not in OUTSIDE | {PACKAGE} | set(sys.stdlib_module_names)
    ]
    assert not wrong, wrong


def test_importing_the_library_is_light():
    code = "import sys, fedjax_lab.registry as r; r.catalog()\nimport fedjax_lab.data.sources, fedjax_lab.models, fedjax_lab.engine.sync\n"
    code += f"print(*[m for m in {HEAVY} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (out.returncode, out.stdout.strip()) == (0, ""), out.stdout + out.stderr[-2000:]


def callback_bodies(tree: ast.Module):
    """The functions that a file hands to pure_callback: lambdas, and functions of the same file by name."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("pure_callback"):
            yield functions.get(node.args[0].id) if isinstance(node.args[0], ast.Name) else node.args[0]


def jax_names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"jnp", "jax", "lax", "optax", "tree"}


def test_callbacks_are_numpy_only():
    bodies = [(name, body) for name, path in MODULES.items() for body in callback_bodies(tree_of(path))]
    wrong = [name for name, body in bodies if body is None or jax_names(body)]
    assert not wrong, wrong
    bad = ast.parse("def f(x):\n    return jnp.sum(x)\njax.pure_callback(f, s, x)\njax.pure_callback(lambda x: np.sum(x), s, x)")
    assert [bool(jax_names(body)) for body in callback_bodies(bad)] == [True, False]


def test_nobody_prints_but_the_command_lines():
    speakers = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert all(name.endswith("__main__") or room(name) == "metrics" for name in speakers), speakers


def test_method_files_hold_mathematics_only():
    words = {"jit", "pmap", "shard_map", "device_put", "open", "debug", "pure_callback"}
    wrong = [
        f"{name}: {word}"
        for name, path in MODULES.items()
        if room(name) == "methods" and not name.endswith("__main__")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        for word in {ast.unparse(node.func).split(".")[-1]} & words
    ]
    assert not wrong, wrong
