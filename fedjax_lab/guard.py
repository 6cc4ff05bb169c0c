"""What keeps a folder's files safe: written whole, by one process at a time, which hears a SIGTERM in time."""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from etils import epath


def write(file: epath.Path, content: str | bytes) -> None:
    """A whole file or none."""
    part = file.parent / f".{file.name}.tmp"
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(file)


@contextlib.contextmanager
def alone(folder: epath.Path) -> Iterator[None]:
    """Keeps other processes out, where the file system can; the lock ends with the process.

    Raises:
      ValueError: another process has it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # no such locks here, or no local folder
        yield
        return
    try:
        with contextlib.suppress(OSError):  # nor perhaps here
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"--workdir={folder}: another process is writing there") from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def on_sigterm(act: Callable[..., None]) -> Iterator[None]:
    """Has SIGTERM call `act` instead of ending the process; a signal reaches the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, act)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
