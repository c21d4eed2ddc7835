"""The metrics of a run as files: `metrics.jsonl`, one object per line, and TensorBoard event files."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from PIL import Image

from vit_jax.command import UserError
from vit_jax.log.trackers import Ending, Tracker, open_trackers

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
FAULTS = 3  # of a tracker, one after another: each may take minutes, so that it is then given up


class MetricsWriter:
    """Appends scalars to `workdir/metrics.jsonl` and `workdir/tensorboard/`; each write reaches the files at once.

    A line is `{"step": 50, "train/loss": 2.5, ...}`: keys in the order given, floats so that they read back exactly.
    JSON has no non-finite numbers, so they are the strings "nan", "inf" and "-inf"; `read_metrics` turns them back.

    resume_step: the step training continues from, 0 for a new run. What an earlier process wrote about later steps,
      and a line that it did not finish, is dropped. TensorBoard hides its later steps by itself.
    trackers: "wandb", "mlflow": also there, with the run's `config`.
    active: False, for all processes but the first, writes nothing and creates nothing.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] = {},  # noqa: B006 - never changed
        active: bool = True,
    ) -> None:
        self._lines: _Lines | None = None
        self._trackers: list[Tracker] = []
        self._faults: dict[Tracker, int] = {}  # since it last worked; of those that have been warned of
        if not active:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        _forget_after(workdir / FILE, resume_step)
        self._lines = _Lines(workdir / FILE)
        self._trackers = _open(workdir, resume_step, tensorboard, trackers, config)

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Appends one line. `step` is not a name for a scalar; values are numbers or arrays without axes."""
        assert "step" not in scalars
        if self._lines is None:
            return
        values = {name: float(value) for name, value in scalars.items()}
        encoded = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._lines.add(json.dumps({"step": int(step)} | encoded, allow_nan=False, ensure_ascii=False) + "\n")
        for tracker in list(self._trackers):
            self._attempt(tracker, lambda to: to.write(step, values))

    def close(self, ending: Ending = "finished") -> None:
        """Closes the files, and ends the record of trackers so; writing then does nothing."""
        if self._lines is not None:
            self._lines.close()
        for tracker in list(self._trackers):
            self._attempt(tracker, lambda to: to.close(ending))
        self._lines, self._trackers = None, []

    def _attempt(self, tracker: Tracker, do: Callable[[Tracker], None]) -> None:
        """Does it; a fault is a warning, once: `metrics.jsonl` has everything, and training goes on."""
        try:
            do(tracker)
        except Exception as fault:
            if tracker not in self._faults:
                text = "%s does not take metrics (%s); training goes on, and %s has all of them"
                logging.getLogger(__name__).warning(text, type(tracker).__name__.lstrip("_"), fault, FILE)
            self._faults[tracker] = self._faults.get(tracker, 0) + 1
            if self._faults[tracker] == FAULTS and not isinstance(tracker, _EventFile):
                self._trackers.remove(tracker)
        else:
            if tracker in self._faults:
                self._faults[tracker] = 0


def write_pictures(
    workdir: Path,
    step: int,
    pictures: Mapping[str, Image.Image],
    *,
    tensorboard: bool,
    trackers: Sequence[str] = (),
    ending: Ending = "finished",
) -> None:
    """Adds pictures to the TensorBoard files and the trackers of a run that has ended so at this step."""
    for tracker in _open(workdir, step, tensorboard, trackers, {}):
        for name, picture in pictures.items():
            tracker.picture(step, name, picture)
        tracker.close(ending)


def _open(
    workdir: Path, resume_step: int, tensorboard: bool, trackers: Sequence[str], config: Mapping[str, Any]
) -> list[Tracker]:
    events = [_EventFile(workdir / TENSORBOARD, first_step=resume_step + 1)] if tensorboard else []
    return [*events, *open_trackers(trackers, workdir, config)]


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines of a `metrics.jsonl`, as `parse_metrics`."""
    try:
        return parse_metrics(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the folder of a run that has logged a step") from error


def parse_metrics(content: bytes, path: Path) -> list[dict[str, int | float]]:
    """The lines as dicts, non-finite values as floats; an unfinished last line is left out.

    Raises UserError where another line is damaged, with the path of the file.
    """
    records = [_decode(line) for line in content.splitlines()]
    if records and records[-1] is None:
        records.pop()
    for number, record in enumerate(records, start=1):
        if record is None:
            raise UserError(
                f"{path}, line {number}: expected a JSON object with a step; delete the line to read the rest"
            )
    return [record for record in records if record is not None]


def _decode(line: bytes) -> dict[str, int | float] | None:
    """The object in a line, or None where it is not a whole one."""
    try:
        record = json.loads(line.decode())
        return {"step": int(record.pop("step"))} | {name: float(value) for name, value in record.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


class _Lines:
    """A file to which lines are added, each whole or not at all; those that cannot be written wait for the next one."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting, self._warned = path, b"", False
        self._size: int  # of what is written whole
        self._open()

    def add(self, line: str) -> None:
        self._waiting += line.encode()
        try:
            if not self._is_there():
                self._file.close()
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._open()
            if self._file.write(self._waiting) < len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size, self._waiting = self._size + len(self._waiting), b""
        except OSError as fault:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            if not self._warned:
                text = "%s cannot be written (%s): training goes on, and its lines are written as soon as they can be"
                logging.getLogger(__name__).warning(text, self._path, fault.strerror)
            self._warned = True

    def close(self) -> None:
        if self._waiting:
            self.add("")
        self._file.close()
        if self._waiting:
            logging.getLogger(__name__).warning("%s lacks the last %d lines", self._path, self._waiting.count(b"\n"))

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size

    def _is_there(self) -> bool:
        """Whether the name still leads to the open file: a folder may be removed, or come back as another one."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False


def _forget_after(path: Path, last_step: int) -> None:
    """Removes the lines of later steps and damaged lines, in one atomic replacement."""
    old = path.read_bytes() if path.exists() else b""
    new = b"".join(_kept(old, last_step))
    if new == old:
        return
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(new)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _kept(text: bytes, last_step: int) -> Iterator[bytes]:
    for line in text.splitlines():
        record = _decode(line)
        if record is not None and record["step"] <= last_step:
            yield line + b"\n"


class _EventFile:
    """A TensorBoard event file of scalars and pictures.

    tensorboardX's SummaryWriter passes its events through a queue and a thread, and loses what they hold when the
    process is killed; its EventsWriter below it writes directly.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder = folder
        self._writer: Any = self._open()
        # Makes TensorBoard drop what earlier files say about this step and later ones.
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter  # 0.3 s, and only the first process writes

        self._folder.mkdir(parents=True, exist_ok=True)
        # The suffix keeps two processes that start within one second from writing to the same file.
        return EventsWriter(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._add(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]))

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=file.getvalue()
        )
        self._add(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self, ending: Ending = "finished") -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError:
            self._give_up()
            raise

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            self._writer = self._writer or self._open()
            self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
            self._writer.flush()
        except OSError:  # a part may be written: what follows goes into another file
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Closes a file that cannot be written, which its writer does not; an empty one goes."""
        if self._writer is None:
            return
        records, self._writer = self._writer._py_recordio_writer, None
        with contextlib.suppress(OSError):
            records.close()
        with contextlib.suppress(OSError):
            if not os.path.getsize(records.path):
                os.remove(records.path)
