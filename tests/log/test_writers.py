"""Metric files are exact and survive an interruption."""

import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vit_jax import log
from vit_jax.command import UserError


def write_steps(workdir, steps, **options):
    writer = log.MetricsWriter(workdir, tensorboard=False, **options)
    for step in steps:
        writer.write(step, {"train/loss": step / 7})
    writer.close()


def test_metrics_read_back_exactly(tmp_path):
    writer = log.MetricsWriter(tmp_path, tensorboard=False)
    writer.write(50, {"train/loss": 0.1 + 0.2, "train/lr": np.float32(1e-3), "a": jnp.float32(1.5), "count": 7})
    writer.write(51, {"x": math.nan, "y": math.inf, "z": -math.inf})
    first, second = log.read_metrics(tmp_path / "metrics.jsonl")  # not closed: each write is on disk at once
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()[1]
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 51, "x": "nan", "y": "inf", "z": "-inf"}  # strict
    assert first == {"step": 50, "train/loss": 0.1 + 0.2, "train/lr": float(np.float32(1e-3)), "a": 1.5, "count": 7}
    assert list(first) == ["step", "train/loss", "train/lr", "a", "count"]
    assert math.isnan(second["x"])
    assert (second["y"], second["z"]) == (math.inf, -math.inf)


class Broken:
    """A tracker that works at every third call, or never."""

    def __init__(self, ever):
        self.calls, self.ever, self.ended = [], ever, []

    def write(self, step, scalars):
        self.calls.append(step)
        if not self.ever or len(self.calls) % 3:
            raise ConnectionError("no route")

    def picture(self, step, name, picture):
        raise ConnectionError("no route")

    def close(self, ending):
        self.ended.append(ending)
        raise ConnectionError("no route")


def test_a_tracker_that_fails_ends_no_training_and_is_told_once(tmp_path, caplog, monkeypatch):
    sometimes, never = Broken(True), Broken(False)
    monkeypatch.setattr(log.writers, "open_trackers", lambda *given: [sometimes, never])
    writer = log.MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 8):
        writer.write(step, {"train/loss": 0.5})
    writer.close("failed")
    assert len(log.read_metrics(tmp_path / "metrics.jsonl")) == 7
    assert sometimes.calls == [1, 2, 3, 4, 5, 6, 7] and never.calls == [1, 2, 3]  # then given up
    assert sometimes.ended == ["failed"] and caplog.text.count("Broken does not take metrics (no route)") == 2


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "step"), st.floats(), max_size=3))
def test_metrics_round_trip_for_any_name_and_value(tmp_path_factory, scalars):
    folder = tmp_path_factory.mktemp("run")
    writer = log.MetricsWriter(folder, tensorboard=False)
    writer.write(1, scalars)
    writer.close()
    np.testing.assert_equal(log.read_metrics(folder / "metrics.jsonl"), [{"step": 1} | scalars])


def test_resume_drops_later_steps_and_keeps_the_rest_byte_for_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(tmp_path, [10, 20, 30])
    first_two = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    write_steps(tmp_path, [], resume_step=20)
    assert path.read_bytes() == first_two
    write_steps(tmp_path, [30, 40], resume_step=20)
    assert [record["step"] for record in log.read_metrics(path)] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    "torn", [b'{"step": 30, "tra', b'{"step": 30', b'{"step": 30, "train/\xc3', b"\x00\x00\x00", b"3"]
)
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_steps(tmp_path, [10, 20])
    with path.open("ab") as file:
        file.write(torn)
    assert [record["step"] for record in log.read_metrics(path)] == [10, 20]  # a report reads while training writes
    write_steps(tmp_path, [30], resume_step=25)
    assert [record["step"] for record in log.read_metrics(path)] == [10, 20, 30]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "a": 1.0}')
    write_steps(tmp_path, [20], resume_step=10)
    assert [record["step"] for record in log.read_metrics(path)] == [10, 20]


def test_a_new_run_forgets_what_lies_there(tmp_path):
    write_steps(tmp_path, [0, 10])
    write_steps(tmp_path, [5])
    assert [record["step"] for record in log.read_metrics(tmp_path / "metrics.jsonl")] == [0, 5]


def test_reading_names_a_damaged_line_and_a_missing_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="does not exist"):
        log.read_metrics(path)
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        log.read_metrics(path)


# TensorBoard


def events(workdir):
    """The events of all files, oldest first, read by the record framing: length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            found.append(Event.FromString(data[offset + 12 : offset + 12 + length]))
            offset += 12 + length + 4
    return found


def test_tensorboard_files_hold_the_scalars_at_once(tmp_path):
    writer = log.MetricsWriter(tmp_path)
    writer.write(50, {"train/loss": 2.5, "val/accuracy": math.nan})
    version, start, event = events(tmp_path)
    writer.close()
    assert version.file_version == "brain.Event:2"
    assert event.step == 50
    assert [value.tag for value in event.summary.value] == ["train/loss", "val/accuracy"]
    assert event.summary.value[0].simple_value == 2.5
    assert math.isnan(event.summary.value[1].simple_value)


def test_tensorboard_drops_later_steps_on_resume(tmp_path):
    for resume_step in (0, 20):  # within one second: two files nevertheless
        writer = log.MetricsWriter(tmp_path, resume_step=resume_step)
        writer.write(resume_step + 10, {"a": 1.0})
        writer.close()
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in starts] == [(1, 1), (21, 1)]  # 1: START
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [10, 30]


def test_pictures_of_a_run_that_has_ended_stand_beside_its_scalars(tmp_path):
    write_steps(tmp_path, [10])
    picture = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    log.write_pictures(tmp_path, 10, {"confusion": picture}, tensorboard=True)
    *_, start, event = events(tmp_path)
    assert (start.step, event.step) == (11, 10)  # nothing at this step or before it is dropped
    [value] = event.summary.value
    assert (value.tag, value.image.height, value.image.width) == ("confusion", 5, 7)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as read:
        np.testing.assert_array_equal(np.asarray(read)[..., 0], np.asarray(picture))
    log.write_pictures(tmp_path / "none", 10, {"confusion": picture}, tensorboard=False)
    assert not (tmp_path / "none").exists()


def test_an_inactive_writer_creates_nothing(tmp_path):
    writer = log.MetricsWriter(tmp_path / "run", active=False)
    writer.write(1, {"a": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []
