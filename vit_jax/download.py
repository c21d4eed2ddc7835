"""Files from the network: resumed where they broke off, checked against a checksum, complete or absent.

`fetch` writes to PATH.part (and PATH.part.tag: which version of the file that is) and renames it when it is whole.
"""

import fcntl
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vit_jax.command import UserError

CHUNK_BYTES = 1 << 18
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)

Show = Callable[[int, int], None]


def cache_dir() -> Path:
    """Where what was fetched, or took long to find, is kept: $VIT_JAX_CACHE, else ~/.cache/vit_jax."""
    return Path(os.path.expanduser(os.environ.get("VIT_JAX_CACHE") or "~/.cache/vit_jax"))


class _Dropped(Exception):
    """The connection ended before the file did; what came is kept, and another try may get the rest."""


def fetch(
    url: str,
    path: Path,
    sha256: str = "",
    md5: str = "",
    *,
    attempts: int = 4,
    pause_seconds: float = 1.0,
    timeout_seconds: float = 30.0,
) -> Path:
    """Puts the file at `url` into `path` and returns `path`; does nothing where it already lies there, whole.

    A file with another checksum is replaced; without any checksum an existing file counts as whole. A dropped
    connection is tried again after `pause_seconds`, twice that, ..., `attempts` times without progress; a later call
    resumes as well. Processes that want the same file wait for the one that fetches it.

    Raises:
        UserError: no such file or server, no network, a wrong checksum, or `path` cannot be written.
    """
    path = Path(path)
    try:
        if matches(path, sha256, md5):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path):
            if not matches(path, sha256, md5):  # another process may have fetched it meanwhile
                _fetch_checked(_Download(url, path, attempts, pause_seconds, timeout_seconds), sha256, md5)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; choose another folder or make room") from error
    return path


def matches(path: Path, sha256: str = "", md5: str = "") -> bool:
    """Whether `path` is a file with these checksums (hex; '' is not checked)."""
    return path.is_file() and all(
        _digest(path, kind) == given.lower() for kind, given in (("sha256", sha256), ("md5", md5)) if given
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one process or thread at a time past, by the lock file PATH.lock, which a dying holder gives back.

    File systems without locks (some cluster mounts) let everyone past: callers must stay correct, if wasteful, then.
    """
    name = path.with_name(path.name + ".lock")
    while True:
        with open(name, "a") as lock:
            _lock(lock.fileno(), path)
            if _is_still(name, lock.fileno()):  # else the last holder has removed it, and a new one counts
                try:
                    yield
                finally:
                    name.unlink(missing_ok=True)
                return


@contextmanager
def progress(what: str, unit: str = "bytes") -> Iterator[Show]:
    """Yields `show(done, total)` (total 0: unknown): a bar on a terminal, elsewhere a line every `LINE_SECONDS`."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, unit)
        return
    from rich import progress as rich_progress

    amount = [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    if unit != "bytes":
        amount = [rich_progress.MofNCompleteColumn(), rich_progress.TextColumn(unit)]
    columns = [rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(), *amount]
    with rich_progress.Progress(*columns, rich_progress.TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _lines(what: str, unit: str) -> Show:
    due = time.monotonic() + LINE_SECONDS

    def show(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + LINE_SECONDS
        name, scale, digits = ("MB", 1e6, 1) if unit == "bytes" else (unit, 1, 0)
        of = f" of {total / scale:.{digits}f}" if total else ""
        percent = f" ({100 * done // total} %)" if total else ""
        print(f"{what}: {done / scale:.{digits}f}{of} {name}{percent}", file=sys.stderr, flush=True)

    return show


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that is at work on {path}", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # this file system has no locks


def _is_still(name: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), name.stat())
    except FileNotFoundError:
        return False


class _Download:
    """One file on its way: `receive` goes on until PATH.part is whole or the attempts are spent."""

    def __init__(self, url: str, path: Path, attempts: int, pause_seconds: float, timeout_seconds: float):
        self.url, self.path = url, path
        self.part = path.with_name(path.name + ".part")
        self.tag = path.with_name(path.name + ".part.tag")
        self.attempts, self.pause_seconds, self.timeout_seconds = attempts, pause_seconds, timeout_seconds
        self.way_out = f"check the address and the network, or fetch it elsewhere and put it at {path}"

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def receive(self) -> None:
        most, tries = self.size(), 0
        with progress(self.path.name) as show:
            while True:
                try:
                    return self._request(show)
                except _Dropped as dropped:
                    tries = 1 if self.size() > most else tries + 1
                    most = max(most, self.size())
                    if tries >= self.attempts:
                        raise UserError(
                            f"{self.url} broke off {tries} times ({dropped}); run again to resume at byte "
                            f"{self.size()}, or fetch it elsewhere and put it at {self.path}"
                        ) from dropped
                time.sleep(self.pause_seconds * 2 ** (tries - 1))

    def _request(self, show: Show) -> None:
        """One request for what is missing; a server that knows no ranges, or has another version, sends it all."""
        kept, tag = self.size(), self.tag.read_text() if self.tag.exists() else ""
        headers = {"User-Agent": "vit_jax"}
        if kept and tag:
            headers |= {"Range": f"bytes={kept}-", "If-Range": tag}
        response = self._open(headers, kept)
        if response is None:
            return
        with response, open(self.part, "ab") as part:
            start, total = _extent(response)
            if start not in (0, kept):
                raise _Dropped(f"asked for byte {kept}, got byte {start}")
            part.truncate(start)
            if start == 0:
                self.tag.write_text(_validator(response))
            for chunk in _chunks(response):
                part.write(chunk)
                show(part.tell(), total)
            if total and part.tell() != total:
                raise _Dropped(f"{part.tell()} of {total} bytes")

    def _open(self, headers: dict[str, str], kept: int) -> Any:
        """The response, or None where nothing is missing."""
        try:
            request = urllib.request.Request(self.url, headers=headers)
            return urllib.request.urlopen(request, timeout=self.timeout_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{kept}"):
                return None
            if error.code == 416:  # what is kept is longer than the file
                self.forget()
            if error.code == 416 or error.code in WORTH_ANOTHER_TRY:
                raise _Dropped(f"status {error.code}") from error
            raise UserError(f"{self.url} answered {error.code} {error.reason}; {self.way_out}") from error
        except (http.client.InvalidURL, ValueError) as error:
            raise UserError(f"{self.url} is not an address ({error}); expected https://...") from error
        except (http.client.HTTPException, OSError) as error:  # URLError is an OSError and wraps another in `reason`
            reason = getattr(error, "reason", error)
            lost = isinstance(reason, (http.client.HTTPException, TimeoutError, ConnectionError))
            if lost and not isinstance(reason, ConnectionRefusedError):
                raise _Dropped(str(reason) or type(reason).__name__) from error
            raise UserError(f"cannot reach {self.url} ({reason}); {self.way_out}") from error


def _fetch_checked(download: _Download, sha256: str, md5: str) -> None:
    """Receives, checks and renames; an old part that leads to a wrong checksum gets one fresh start."""
    began_with = download.size()
    download.receive()
    if began_with and not matches(download.part, sha256, md5):
        download.forget()
        download.receive()
    if not matches(download.part, sha256, md5):
        kind, expected = ("sha256", sha256) if sha256 else ("md5", md5)
        found = _digest(download.part, kind)
        download.forget()
        raise UserError(
            f"{download.url} has {kind} {found}, expected {expected}: it is damaged or another file; try again, "
            f"or fetch it elsewhere and put it at {download.path}"
        )
    os.replace(download.part, download.path)
    download.forget()


def _extent(response: Any) -> tuple[int, int]:
    """First byte of the body within the file, and the file's size (0: unknown)."""
    ranged = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and ranged:
        return int(ranged[1]), 0 if ranged[2] == "*" else int(ranged[2])
    return 0, int(response.headers.get("Content-Length") or 0)


def _validator(response: Any) -> str:
    """What If-Range may name: a strong ETag (RFC 9110, s. 13.1.5), else the date, else ''."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _chunks(response: Any) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK_BYTES):
            yield chunk
    except (http.client.HTTPException, OSError) as error:
        raise _Dropped(str(error) or type(error).__name__) from error
