"""Whatever befalls a folder, nothing that was there is lost, and the run goes on from what is whole."""
from __future__ import annotations

import errno
import resource

import pytest
from interruption import clocks, contents, go, last, outcome, stopped

from fedjax_lab import guard, resume, workdir


def test_the_rows_follow_the_checkpoint(prepared, whole, tmp_path):
    """What a crash left beyond it is cut off, a line cut short too, and lost lines come back."""
    stopped(tmp_path, prepared, 6)
    file = tmp_path / "metrics.jsonl"
    text = file.read_text()
    for broken in (text + '{"round": 7, "seco', text + '{"round": 7}\n', text[: len(text) // 2], ""):
        file.write_text(broken)
        assert len(workdir.history(str(tmp_path))) <= 4
        with workdir.WorkDir(str(tmp_path), prepared, resume.find(str(tmp_path), prepared.config)):
            assert file.read_text() == text
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole
    file.write_text("{}\n{\n" + text)
    with pytest.raises(ValueError, match="line 2 of metrics.jsonl is damaged"):
        workdir.history(str(tmp_path))
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_the_one_before_is_used(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 6, checkpoint_every=2, keep=3)
    (tmp_path / "checkpoint" / "00000007.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    damaged = last(tmp_path)
    data = [p for p in (damaged / "state").rglob("*") if p.is_file()]
    for file in data:
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning) as warned:
        go(tmp_path, prepared, keep=3)
    text = "\n".join(str(w.message) for w in warned)
    assert f"{damaged} is damaged and passed over" in text and "00000007.orbax-checkpoint-tmp is half-written" in text
    assert outcome(tmp_path) == whole
    aside = damaged.with_name("00000006.damaged")
    assert {p.name for p in aside.iterdir()} >= {"state", "model"} and clocks(tmp_path) == [2, 4, 7]


def test_without_a_whole_checkpoint_it_starts_again(prepared, whole, tmp_path):
    stopped(tmp_path, prepared, 6)
    (last(tmp_path) / "notes" / "metadata").unlink()
    with pytest.warns(UserWarning, match="00000006 is damaged"), pytest.raises(ValueError, match="--resume=must: .* no whole checkpoint"):
        resume.find(str(tmp_path), prepared.config, "must")
    with pytest.warns(UserWarning, match="00000006 is damaged"):
        go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


@pytest.mark.filterwarnings("ignore:.*is half-written")
@pytest.mark.parametrize("what, until", [("row", 6), ("checkpoint", 4)])
def test_a_full_disk_loses_nothing(prepared, whole, tmp_path, what, until):
    stopped(tmp_path, prepared, 3)
    before, limits = contents(last(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "metrics.jsonl").stat().st_size + 1 if what == "row" else 500
    try:
        with pytest.raises(OSError, match=r"cannot be written any more \(File too large.*\); what was written before is kept") as error:
            go(tmp_path, prepared, until, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1])), checkpoint_every=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and contents(tmp_path / "checkpoint" / "00000003") == before
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_a_folder_that_became_read_only_loses_nothing(prepared, whole, tmp_path, monkeypatch):
    stopped(tmp_path, prepared, 3)
    before = contents(tmp_path)

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(guard, "write", refuse)
        with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)"):
            go(tmp_path, prepared)
    assert contents(tmp_path) == before
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole


def test_a_start_that_crashed_at_once(prepared, whole, tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"config": {')
    go(tmp_path, prepared)
    assert outcome(tmp_path) == whole
