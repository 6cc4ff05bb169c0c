"""experiments.curves: one picture of several runs."""
from __future__ import annotations

import json

import pytest

from experiments import curves
from fedjax_lab.metrics import curves as pictures


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a run with these accuracies."""

    def make(name: str, method: str, *accuracies: float):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"config": {"method": method}}))
        rows = [{"round": r, "test_accuracy": a, "test_loss": 1 - a, "bytes_up": r, "bytes_down": r, "seconds": r} for r, a in enumerate(accuracies)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def test_the_picture_is_of_these_runs(folder, tmp_path, monkeypatch):
    drawn, real = [], pictures.draw
    monkeypatch.setattr(pictures, "draw", lambda rows, *where: drawn.append(rows) or real(rows, *where))
    one, two, again = folder("a", "fedavg", 0.1, 0.5), folder("b", "scaffold", 0.1, 0.7), folder("c", "fedavg", 0.1, 0.6)
    pixels = []
    for number, runs in enumerate(([one], [one, two], [one, two, again])):
        assert curves.main([*runs, f"--out={tmp_path / f'{number}.png'}"]) == 0
        pixels.append((tmp_path / f"{number}.png").read_bytes())
    assert all(p.startswith(b"\x89PNG") for p in pixels) and len(set(pixels)) == 3
    assert [list(rows) for rows in drawn] == [["fedavg"], ["fedavg", "scaffold"], ["fedavg", "scaffold", again]]
    assert [row["test_accuracy"] for row in drawn[2][again]] == [0.1, 0.6]


@pytest.mark.parametrize("argv, words", [(["--out=x.png"], "runs"), (["W"], "--out"), (["W", "--ot=x.png"], "did you mean 'out'")])
def test_refused(argv, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        curves.main(argv)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_folder_without_a_run(tmp_path, capsys):
    assert curves.main([str(tmp_path), f"--out={tmp_path / 'x.png'}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} holds no run (config.json or metrics.jsonl is missing)\n" and not (tmp_path / "x.png").exists()


def test_the_axis_is_a_column_of_the_rows(folder, tmp_path, capsys, monkeypatch):
    run, points, real = folder("a", "fedbuff", 0.1, 0.5), [], pictures._line
    monkeypatch.setattr(pictures, "_line", lambda axis, rows, against, *more: points.append((against, axis)) or real(axis, rows, against, *more))
    rows = (tmp_path / "a" / "metrics.jsonl")
    assert curves.main([run, "--axis=time", f"--out={tmp_path / 'x.png'}"]) == 2
    assert capsys.readouterr().err == "error: --axis=time: fedbuff has no such column; choose round, or runs under a schedule that has\n"
    rows.write_text(rows.read_text().replace('"round"', '"time": 2.5, "round"'))
    assert curves.main([run, "--axis=time", f"--out={tmp_path / 'x.png'}"]) == 0
    axis = points[0][1]
    assert points[0][0] == "time" and axis.get_xlabel() == "virtual time" and axis.lines[0].get_xdata().tolist() == [2.5, 2.5]
