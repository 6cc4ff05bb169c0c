"""tests/STATUS.md is what the registry says."""
from __future__ import annotations

import pathlib

import status


def test_status_is_current():
    written = (pathlib.Path(__file__).parent / "STATUS.md").read_text()
    assert written == status.table(), "run python tests/status.py"
