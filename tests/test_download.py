"""Downloads against a server that drops connections, knows ranges or not, changes its file, and refuses."""

import hashlib
import multiprocessing
import socket
import threading
import time
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests import serving
from vit_jax import download
from vit_jax.command import UserError

BODY = np.random.default_rng(0).bytes(50_021)
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body` at /file; `drops` says after how many bytes the next responses break off, `codes` what they are."""

    daemon_threads = True

    def __init__(self, body: bytes = BODY, ranges: bool = True, etag: str = '"one"'):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.ranges, self.etag = body, ranges, etag
        self.drops: list[int] = []
        self.codes: list[int] = []
        self.delay_seconds = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.seen: list[str] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.seen.append(asked)
        server.may_answer.wait()
        time.sleep(server.delay_seconds)
        if self.path != "/file" or server.codes:
            self.send_error(server.codes.pop(0) if server.codes else 404)
            return
        start, size = 0, len(server.body)
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        stop = start + server.drops.pop(0) if server.drops else size
        self.wfile.write(server.body[start:stop])


def running(**settings: object) -> AbstractContextManager[Server]:
    return serving.running(Server(**settings))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def fetch(url: str, path: Path, sha256: str = SHA256, **settings: object) -> Path:
    return download.fetch(url, path, sha256, pause_seconds=0.001, **settings)


def test_the_file_arrives_and_nothing_else_stays(tmp_path: Path) -> None:
    with running() as server:
        path = fetch(server.url, tmp_path / "deep" / "file")
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


def test_a_complete_file_is_not_fetched_again_but_another_one_is(tmp_path: Path) -> None:
    with running() as server:
        for kinds in ({"sha256": SHA256}, {"md5": MD5}, {}, {"sha256": SHA256.upper(), "md5": MD5}):
            download.fetch(server.url, tmp_path / "file", **kinds)
        assert len(server.seen) == 1
        (tmp_path / "file").write_bytes(b"something else")
        download.fetch(server.url, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"something else"
        download.fetch(server.url, tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_dropped_connection_resumes_where_it_broke_off(tmp_path: Path) -> None:
    with running() as server:
        server.drops = [10_007, 20_011]
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert server.seen == ["", "bytes=10007-", "bytes=30018-"]


def test_a_later_call_resumes(tmp_path: Path) -> None:
    with running() as server:
        server.drops = [10_007, 0]
        with pytest.raises(UserError, match="broke off 2 times .*run again to resume at byte 10007"):
            fetch(server.url, tmp_path / "file", attempts=2)
        assert not (tmp_path / "file").exists()
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert server.seen == ["", "bytes=10007-", "bytes=10007-"]


def test_a_server_without_ranges_sends_it_all_again(tmp_path: Path) -> None:
    with running(ranges=False) as server:
        server.drops = [10_007]
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert server.seen == ["", "bytes=10007-"]


def test_a_server_without_ranges_that_always_drops_is_given_up(tmp_path: Path) -> None:
    with running(ranges=False) as server:
        server.drops = [10_007] * 20
        with pytest.raises(UserError, match="broke off 3 times"):
            fetch(server.url, tmp_path / "file", attempts=3)
    assert len(server.seen) == 3


def test_attempts_are_counted_without_progress(tmp_path: Path) -> None:
    with running() as server:
        server.drops = [5_003] * 9
        assert fetch(server.url, tmp_path / "file", attempts=2).read_bytes() == BODY
    assert len(server.seen) == 10


def test_a_changed_file_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    with running(body=BODY[::-1], etag='"old"') as server:
        server.drops = [10_007]
        with pytest.raises(UserError, match="broke off"):
            fetch(server.url, tmp_path / "file", sha256="", attempts=1)
        server.body, server.etag = BODY, '"new"'
        assert fetch(server.url, tmp_path / "file", sha256="").read_bytes() == BODY


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_validator_it_starts_again(tmp_path: Path, etag: str) -> None:
    with running(etag=etag) as server:
        server.drops = [10_007]
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert server.seen == ["", ""]


def test_a_damaged_part_gets_one_fresh_start(tmp_path: Path) -> None:
    with running() as server:
        (tmp_path / "file.part").write_bytes(b"x" * 10_007)
        (tmp_path / "file.part.tag").write_text(server.etag)
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert server.seen == ["bytes=10007-", ""]


@pytest.mark.parametrize("part", [BODY, BODY + b"x"])
def test_a_part_as_long_as_the_file_or_longer(tmp_path: Path, part: bytes) -> None:
    with running() as server:
        (tmp_path / "file.part").write_bytes(part)
        (tmp_path / "file.part.tag").write_text(server.etag)
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
    assert len(server.seen) == (1 if part == BODY else 2)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, kind: str) -> None:
    expected = {"sha256": "ab" * 32, "md5": "ab" * 16}[kind]
    found = {"sha256": SHA256, "md5": MD5}[kind]
    with running() as server, pytest.raises(UserError) as caught:
        download.fetch(server.url, tmp_path / "file", **{kind: expected})
    assert f"{kind} {found}, expected {expected}" in str(caught.value)
    assert f"put it at {tmp_path / 'file'}" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert len(server.seen) == 1


def test_a_missing_file_is_not_tried_again(tmp_path: Path) -> None:
    with running() as server, pytest.raises(UserError, match="answered 404 .*put it at .*/file"):
        fetch(server.url + "s", tmp_path / "file")
    assert len(server.seen) == 1
    assert not (tmp_path / "file").exists()


def test_a_busy_server_is_tried_again(tmp_path: Path) -> None:
    with running() as server:
        server.codes = [503, 429]
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY
        server.codes = [503] * 9
        with pytest.raises(UserError, match="status 503"):
            fetch(server.url, tmp_path / "again")


def test_a_silent_server_times_out(tmp_path: Path) -> None:
    with running() as server:
        server.may_answer.clear()
        with pytest.raises(UserError, match="broke off 2 times .*timed out"):
            fetch(server.url, tmp_path / "file", attempts=2, timeout_seconds=0.05)
        server.may_answer.set()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UserError, match="cannot reach http.*refused.*check the address and the network.*put it at"):
        fetch(f"http://127.0.0.1:{port}/file", tmp_path / "file")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match="cannot reach http://host.invalid/file .*not known"):
        fetch("http://host.invalid/file", tmp_path / "file")


@pytest.mark.parametrize("url", ["file", "http://", "nonsense://host/file", "http://host/a b"])
def test_not_an_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch(url, tmp_path / "file")
    assert url in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        fetch("http://127.0.0.1:1/file", tmp_path / "folder" / "file")


def _fetch_in_child(url: str, path: Path) -> None:
    fetch(url, path)


def test_several_processes_fetch_once(tmp_path: Path) -> None:
    with running() as server:
        server.delay_seconds = 0.3
        spawn = multiprocessing.get_context("spawn")
        children = [spawn.Process(target=_fetch_in_child, args=(server.url, tmp_path / "file")) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "file").read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert len(server.seen) == 1


def test_alone_lets_one_thread_at_a_time_past(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(11):
            with download.alone(tmp_path / "thing"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not list(tmp_path.iterdir())


def test_alone_passes_errors_on_and_works_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    with pytest.raises(FileNotFoundError), download.alone(tmp_path / "thing"):
        raise FileNotFoundError("inside")
    monkeypatch.setattr(download.fcntl, "flock", unsupported)
    with running() as server:
        assert fetch(server.url, tmp_path / "file").read_bytes() == BODY


def test_progress_in_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with download.progress("file", "bytes") as show:
        show(1, 2)  # too soon for a line
    monkeypatch.setattr(download, "LINE_SECONDS", 0.0)
    with download.progress("file", "bytes") as show:
        show(34_200_000, 168_500_000)
        show(5_000_000, 0)
    with download.progress("data", "images") as show:
        show(23, 30)
    assert capsys.readouterr().err.splitlines() == [
        "file: 34.2 of 168.5 MB (20 %)",
        "file: 5.0 MB",
        "data: 23 of 30 images (76 %)",
    ]


def test_progress_as_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: behave as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for unit, amount in (("bytes", "34.2/168.5 MB"), ("images", "34200000/168500000")):
        with download.progress("file", unit) as show:
            show(34_200_000, 168_500_000)
        assert amount in capsys.readouterr().err
