"""TensorBoard event files of a run, made of the rows of its metrics.jsonl.

An event file is a sequence of TFRecords (length, its checksum, data, their checksum), each of them a protobuf `Event` of
tensorflow/core/util/event.proto. A file follows from its rows and the moment that its name holds, so it can be written again at any
time, and a resumed run shows no point twice. Relative time in TensorBoard is the seconds of training.
"""
from __future__ import annotations

import functools
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, float]


def place(folder: Any) -> Any:
    """The run's event file: the one there is, or a name that tells when it was begun. `folder` is a path object."""
    found = sorted(folder.glob("events.out.tfevents.*.fedjax_lab"))
    return found[0] if found else folder / f"events.out.tfevents.{int(time.time()):010d}.fedjax_lab"


def encode(rows: Iterable[Row], file: Any, header: bool = True) -> bytes:
    """The events of these rows in this file; the header opens it.

    >>> import pathlib
    >>> file = pathlib.Path("events.out.tfevents.0000000100.fedjax_lab")
    >>> len(encode([], file)), len(encode([{"round": 3, "seconds": 1.5, "test_loss": 0.25}], file, header=False))
    (42, 76)
    """
    begun = int(file.name.split(".")[3])
    first = [_event(begun, 0, _bytes(3, b"brain.Event:2"))] if header else []
    return b"".join(map(_framed, [*first, *(_event(begun + row["seconds"], row["round"], _bytes(5, _summary(row))) for row in rows)]))


def _summary(row: Row) -> bytes:
    """Every number but the round, under its column's first word, so that TensorBoard shows the columns of a kind together."""
    values = {f"{name.split('_')[0]}/{name}": value for name, value in row.items() if name != "round" and not isinstance(value, str)}
    return b"".join(_bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items())


def _event(wall_time: float, step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + what


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [x >> 1 ^ 0x82F63B78 * (x & 1) for x in table]
    return table


__all__ = ["crc32c", "encode", "place"]
