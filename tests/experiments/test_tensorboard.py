"""Event files against readers that are not ours: Google's protobuf with TensorFlow's own schema, and TensorBoard where it is installed."""
from __future__ import annotations

import importlib.util
import pathlib
import struct

import jax
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields

from fedjax_lab import workdir
from fedjax_lab.metrics import tensorboard

ROWS = [{"round": 0, "seconds": 0.0, "test_loss": 2.5, "bytes_up": 0}, {"round": 300, "seconds": 1.5, "test_loss": -0.25, "train_loss": 1.0, "bytes_up": 2**40}]


def schema():
    """Of tensorflow/core/util/event.proto, what a scalar needs."""
    file, kinds = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tensorflow", syntax="proto3"), descriptor_pb2.FieldDescriptorProto
    fields = {
        "Event": [("wall_time", 1, kinds.TYPE_DOUBLE, ""), ("step", 2, kinds.TYPE_INT64, ""), ("file_version", 3, kinds.TYPE_STRING, ""),
                  ("summary", 5, kinds.TYPE_MESSAGE, "Summary")],
        "Summary": [("value", 1, kinds.TYPE_MESSAGE, "Value")], "Value": [("tag", 1, kinds.TYPE_STRING, ""), ("simple_value", 2, kinds.TYPE_FLOAT, "")],
    }
    for message, members in fields.items():
        made = file.message_type.add(name=message)
        for name, number, kind, of in members:
            label = kinds.LABEL_REPEATED if name == "value" else kinds.LABEL_OPTIONAL
            made.field.add(name=name, number=number, type=kind, label=label, type_name=f".tensorflow.{of}" if of else None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Event"))


def by_protobuf(file):
    data, event, out = file.read_bytes(), schema(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for part, check in ((data[:8], data[8:12]), (data[12:12 + length], data[12 + length:16 + length])):
            crc = tensorboard.crc32c(part)
            assert struct.unpack("<I", check)[0] == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
        out.append(event.FromString(data[12:12 + length]))
        assert not len(unknown_fields.UnknownFieldSet(out[-1]))
        data = data[16 + length:]
    return [(e.step, e.wall_time, e.file_version, {v.tag: v.simple_value for v in e.summary.value}) for e in out]


def by_tensorboard(file):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [(e.step, e.wall_time, e.file_version, {v.tag: v.tensor.float_val[0] for v in e.summary.value}) for e in EventFileLoader(str(file)).Load()]


READERS = [by_protobuf, *([by_tensorboard] if importlib.util.find_spec("tensorboard") else [])]


def points(file):
    """{tag: [(round, value)]}."""
    out = {}
    for step, _, _, values in by_protobuf(file):
        for tag, value in values.items():
            out.setdefault(tag, []).append((step, value))
    return out


def expected(rows):
    return {f"{k.split('_')[0]}/{k}": [(row["round"], pytest.approx(row[k], rel=1e-6)) for row in rows if k in row] for k in rows[-1] if k != "round"}


@pytest.mark.parametrize("reader", READERS)
def test_readers_see_the_rows(reader, tmp_path):
    file = tensorboard.place(tmp_path)
    begun = int(file.name.split(".")[3])
    file.write_bytes(tensorboard.encode(ROWS[:1], file) + tensorboard.encode(ROWS[1:], file, header=False))
    head, first, second = reader(file)
    assert head == (0, begun, "brain.Event:2", {})
    assert first == (0, begun, "", {"seconds/seconds": 0.0, "test/test_loss": 2.5, "bytes/bytes_up": 0.0})
    assert second == (300, begun + 1.5, "", {"seconds/seconds": 1.5, "test/test_loss": -0.25, "train/train_loss": 1.0, "bytes/bytes_up": 2.0**40})


def test_words_are_no_point():
    file = pathlib.Path("events.out.tfevents.0000000100.fedjax_lab")
    assert tensorboard.encode([{**ROWS[0], "privacy": "epsilon at delta=1e-05"}], file) == tensorboard.encode(ROWS[:1], file)


def test_the_checksum():
    """Vectors of RFC 3720, B.4."""
    assert [tensorboard.crc32c(x) for x in (bytes(32), b"\xff" * 32, bytes(range(32)))] == [0x8A9136AA, 0x62A8AB43, 0x46DD794E]


def test_the_flag_writes_it_beside_the_rows(job, plain):
    assert not list(plain.path.glob("events*"))
    done = job("--tensorboard")
    (file,) = done.path.glob("events*")
    rows = workdir.history(str(done.path))
    assert points(file) == expected(rows) and done.rows == plain.rows


@pytest.mark.full
def test_a_resumed_run_shows_no_point_twice(job):
    jax.devices()
    flags = ("--tensorboard", "--rounds=2", "--eval_every=1")
    done = job(*flags)
    (file,) = done.path.glob("events*")
    before = file.read_bytes()
    file.write_bytes(before + before[-40:])  # what a crash may leave
    again = job(*flags, "--rounds=4", f"--workdir={done.path}")
    assert again.status == 0, again.err
    assert [file] == list(done.path.glob("events*")) and points(file) == expected(workdir.history(str(done.path)))
    assert file.read_bytes()[: len(before)] == before
    file.unlink()  # a finished run gets one too
    assert job(*flags, "--rounds=4", f"--workdir={done.path}").status == 0
    assert points(tensorboard.place(done.path)) == expected(workdir.history(str(done.path)))
