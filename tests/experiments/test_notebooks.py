"""The notebooks are well-formed, start alike, and run from top to bottom at tiny size, their own last cell included."""
from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess

import matplotlib.pyplot as plt
import pytest

from fedjax_lab import registry

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks"
BOOKS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.ipynb"))}
PICTURES = {"composition": 3, "own_method": 0, "participation": 2, "quickstart": 1, "schedules": 2, "sweep": 1}
QUICK = ("quickstart",)


def code(book) -> list[str]:
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_all_are_here():
    assert list(BOOKS) == sorted(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_is_well_formed_small_and_without_outputs(name):
    """What nbformat 4.5 demands of the cells that are used here."""
    book = BOOKS[name]
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"} and (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3" and book["metadata"]["language_info"] == {"name": "python"}
    for cell in book["cells"]:
        run = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("code", "markdown") and set(cell) == {"cell_type", "id", "metadata", "source"} | run
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"]) and cell["metadata"] == {}
        assert cell["source"] and all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")
        assert cell.get("execution_count") is None and cell.get("outputs", []) == []
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and (FOLDER / f"{name}.ipynb").stat().st_size < 10_000
    assert book["cells"][0]["cell_type"] == "markdown" and "assert " in code(book)[-1]


def test_the_first_cell_is_the_same_and_does_nothing_where_the_library_is(monkeypatch):
    (first,) = {code(book)[0] for book in BOOKS.values()}
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    exec(first, {})
    assert not calls
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="SOURCE"):
        exec(first, {})
    exec(first.replace('SOURCE = ""', 'SOURCE = "https://host/lab.git"'), {})
    clone, install = calls
    assert clone[:2] == ["git", "clone"] and clone[-2:] == ["https://host/lab.git", "fedjax_lab_source"]
    assert install[1] == "fedjax_lab_source/launch/colab.py" and (FOLDER.parents[1] / "launch" / "colab.py").exists()


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in PICTURES])
def test_it_runs(name, programs, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry.catalog()))  # what a notebook registers is its own
    monkeypatch.setenv("FEDJAX_LAB_TINY", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.figure(number) for number in plt.get_fignums() if plt.figure(number) not in shown))
    try:
        space: dict = {"__name__": "__main__"}
        for cell in code(BOOKS[name]):
            exec(compile(cell, f"{name}.ipynb", "exec"), space)
        assert len(shown) == PICTURES[name] and all(axes.has_data() for figure in shown for axes in figure.axes)
    finally:
        plt.close("all")
