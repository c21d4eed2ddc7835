"""A lock in the folder of a run: who trains there, so that a second start does not.

The file names host, process and start. Whether the holder still lives is certain on its own machine, by its process id
and start time. From another machine it is seen by the file's time stamp, which the holder renews: no clocks are
compared, a new start only watches whether it changes. So it works on network file systems, where `flock` may not.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vit_jax.command import UserError

FILE = "lock.json"
BEAT_SECONDS = 5.0  # the holder renews the time stamp so often
SILENCE_SECONDS = 45.0  # a holder on another machine whose stamp stands still for so long is gone
LOOK_SECONDS = 0.5


class Lock:
    """The lock of a folder, held by this process."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self._token = path, token
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beats.start()

    def is_held(self) -> bool:
        """Whether no other process took it, as one does that takes this one for dead."""
        holder = _read(self.path)
        return not holder or holder.get("token") == self._token  # the folder may be gone for a moment, or unreadable

    def release(self) -> None:
        self._ended.set()
        self._beats.join()
        if (_read(self.path) or {}).get("token") == self._token:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Lock]:
    """Holds the lock of a folder, which is made where it is missing; raises `UserError` that names who has it.

    A folder that was made for the lock, and holds nothing else in the end, goes with it.
    """
    there = folder.exists()
    lock = _take(folder)
    try:
        yield lock
    finally:
        lock.release()
        if not there:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _take(folder: Path) -> Lock:
    path, token = folder / FILE, secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not _create(path, {**_this_process(), "token": token}):
            _remove(path, _await_end(path))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {folder}: {error.strerror}; give another one") from error
    return Lock(path, token)


def _create(path: Path, holder: Mapping[str, Any]) -> bool:
    """Whether the file is made: it was not there."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(holder) + "\n")
    except OSError:  # the disk is full
        path.unlink(missing_ok=True)
        raise
    return True


def _await_end(path: Path) -> dict[str, Any] | None:
    """The holder, once it is gone; None if it let go by itself. Raises `UserError` if it lives."""
    holder = _read(path)
    if holder == {}:  # it may be just made
        time.sleep(LOOK_SECONDS)
        holder = _read(path)
    if holder is None:
        return None
    alive = _is_alive(holder)
    if alive is None:
        alive = _beats(path)
    if alive:
        raise UserError(
            f"{path.parent} is in use: process {holder.get('pid')} on {holder.get('host')} trains there since "
            f"{holder.get('time')}; wait for its end, or give another --workdir"
        )
    text = "the training in %s by process %s on %s did not end in order: this one takes its place"
    logging.getLogger(__name__).info(text, path.parent, holder.get("pid"), holder.get("host"))
    return holder


def _remove(path: Path, gone: Mapping[str, Any] | None) -> None:
    """Takes the lock of a holder that is gone away. Another one stays: that of a start that was faster."""
    if gone is None or _read(path) != gone:
        return
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != gone:  # another start was faster since: this is its lock
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def _is_alive(holder: Mapping[str, Any]) -> bool | None:
    """Whether the process that the lock names lives; None where this machine cannot know."""
    me = _this_process()
    if me["job"] and me["job"] == holder.get("job") and me["restarts"] > int(holder.get("restarts") or 0):
        return False  # SLURM ended this job before it put it into the queue again
    if not me["started"] or any(holder.get(key) != me[key] for key in ("host", "processes", "boot")):
        return None  # the name of a machine may be that of others, too
    return _started(holder.get("pid")) == holder.get("started")


def _beats(path: Path) -> bool:
    """Whether the time stamp changes within `SILENCE_SECONDS`; opened anew, a network file system looks anew."""
    before, began = _stamp(path), time.monotonic()
    while time.monotonic() - began < SILENCE_SECONDS:
        time.sleep(LOOK_SECONDS)
        if _stamp(path) != before:
            return path.exists()
    return False


def _stamp(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds the lock; None if nobody, and {} where the file does not say, as in the moment that it is made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "processes": _link("/proc/self/ns/pid"),  # containers may share a host's name, but not its process ids
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _started(pid: Any) -> str:
    """When a process of this machine started, in ticks since the boot; "" where there is none, or it is a zombie."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
