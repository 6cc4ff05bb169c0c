"""The public names are those of tests/api.txt, say what they take, give and refuse, and their examples run."""
from __future__ import annotations

import ast
import doctest
import inspect
import json
import pathlib
import re
import textwrap

import api
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_lab
from fedjax_lab import registry, tree
from fedjax_lab.local import Work, batches, descend, gradient
from fedjax_lab.types import ClientData, Method, Result, View, Wire

ROOT = pathlib.Path(__file__).parents[1]
PUBLIC = dict(api.public())
OWN = {name: thing for name, thing in PUBLIC.items() if getattr(thing, "__module__", "").startswith("fedjax_lab")}
FUNCTIONS = {name: thing for name, thing in OWN.items() if inspect.isfunction(thing)}
METHODS = {f"{name}.{k}": v for name, thing in OWN.items() if inspect.isclass(thing) for k, v in vars(thing).items()
           if not k.startswith("_") and (inspect.isfunction(v) or isinstance(v, property))}


def test_the_list_is_the_one_that_was_promised():
    written, now = api.FILE.read_text().splitlines(), api.text().splitlines()
    gone, new = sorted(set(written) - set(now)), sorted(set(now) - set(written))
    assert written == now, f"the public names changed. Gone: {gone}; new: {new}. If this is meant, run python tests/api.py and commit tests/api.txt"


def test_it_is_small_and_nothing_else_is_offered():
    assert len(PUBLIC) < 90 and set(dir(fedjax_lab)) == {*fedjax_lab.HERE, *fedjax_lab.THERE, "__version__"}
    assert fedjax_lab.many.train is PUBLIC["fedjax_lab.many.train"]
    with pytest.raises(AttributeError, match="no attribute 'trian'; public: .*train.*types"):
        fedjax_lab.trian  # noqa: B018


def imported(code: str) -> set[str]:
    """The dotted names of the library that a program imports or reads from it."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fedjax_lab"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fedjax_lab":
            found.add(f"fedjax_lab.{node.attr}")
    return found


def shown() -> dict[str, str]:
    """The programs that a user reads: those of the README, and the notebooks."""
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = {f"README {number}": code for number, code in enumerate(readme)}
    for path in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb")):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        found[path.name] = "\n".join("".join(source) for source in cells)
    return found


@pytest.mark.parametrize("name", shown())
def test_what_users_are_shown_is_public(name):
    modules = {f"fedjax_lab.{module}" for module in fedjax_lab.THERE}
    assert imported(shown()[name]) <= {*PUBLIC, *modules, "fedjax_lab.__version__"}


def raises_value_error(function) -> bool:
    """Whether the function's own body refuses something."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    return any(isinstance(node, ast.Raise) and "ValueError" in ast.unparse(node) for node in ast.walk(body))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_says_what_a_function_takes_and_refuses(name):
    function, text = FUNCTIONS[name], inspect.getdoc(FUNCTIONS[name])
    assert text and "\n>>> " in text, "an example is missing"
    prose = "\n".join(line for line in text.splitlines() if not line.startswith((">>>", "...")))
    missing = [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", prose)]
    assert not missing, f"nothing is said of {missing}"
    assert "Raises:" in text or not raises_value_error(function)


@pytest.mark.parametrize("name", [*OWN, *METHODS])
def test_everything_public_is_described(name):
    thing = {**OWN, **METHODS}[name]
    assert inspect.getdoc(thing), name


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiled programs that the examples share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def given(programs, tmp_path, monkeypatch):
    """What the examples find: the usual imports, and what a method and its `local` are given (see local.py)."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry.catalog()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    monkeypatch.chdir(tmp_path)
    x, y = np.eye(4, dtype=np.float32), np.arange(4)
    people = fedjax_lab.from_arrays(x, y, [[0, 1, 2], [3]], x, y, key=jax.random.key(0))
    view = View(jax.tree.map(jnp.asarray, people.train), jnp.int32(0), 3)
    data = ClientData(jnp.int32(0), jnp.int32(0), view, view, jnp.asarray(people.counts[0]), jnp.int32(100))
    task = fedjax_lab.classification("linear", nn.Dense(4), data.train.whole())
    names = {"fedjax_lab": fedjax_lab, "jax": jax, "jnp": jnp, "np": np, "nn": nn, "tree": tree, "batches": batches, "descend": descend,
             "gradient": gradient, "Method": Method, "Result": Result, "Wire": Wire}
    return names | {"data": data, "task": task, "params": task.init(jax.random.key(0)), "work": Work(0.5, 2, 0, 2, optax.sgd(0.5))}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_example_runs(name, given):
    function = FUNCTIONS[name]
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(function), {**function.__globals__, **given}, name, None, 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert tried and not failed, "".join(said)
