"""Clients of a server: requests, many at once, and garbage."""

import contextlib
import http.client
import io
import json
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


def png(level: int = 128, size: tuple[int, int] = (9, 7)) -> bytes:
    """An image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(file, "PNG")
    return file.getvalue()


def form(*files: bytes, name: str = "a.png") -> tuple[bytes, str]:
    """A multipart body, and its content type."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
        + file
        + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def connect(url: str) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60))


def ask(url: str, body: bytes, kind: str, path: str = "/predict") -> tuple[int, dict[str, object]]:
    """`post` on a connection of its own."""
    with connect(url) as connection:
        return post(connection, body, kind, path)


def post(
    connection: http.client.HTTPConnection, body: bytes, kind: str, path: str = "/predict"
) -> tuple[int, dict[str, object]]:
    """The status and the content of the answer."""
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def hammer(url: str, clients: int, seconds: float, body: bytes, kind: str) -> tuple[Counter, float]:
    """The answers' statuses to clients that each ask again and again, and how many answers a second came."""
    statuses: Counter = Counter()
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client() -> None:
        with connect(url) as connection:
            while time.monotonic() < end:
                try:
                    status: object = post(connection, body, kind)[0]
                except Exception as lost:
                    connection.close()
                    status = repr(lost)
                with lock:
                    statuses[status] += 1

    threads, start = [threading.Thread(target=client) for _ in range(clients)], time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, sum(statuses.values()) / (time.monotonic() - start)


def bomb(side: int) -> bytes:
    """A PNG file of a few kilobytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    pixels = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def garbage(n: int, most_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Bodies that are no images, with their content types, of every kind in turn."""
    rng, good = np.random.default_rng(0), png(size=(31, 17))
    kinds = [
        lambda: form(),
        lambda: form(b""),
        lambda: form(good[: rng.integers(1, len(good) - 20)]),
        lambda: form(rng.bytes(rng.integers(1, 5000))),
        lambda: form(bomb(30_000)),
        lambda: form(good, bomb(60_000)),
        lambda: form(b"GIF89a" + rng.bytes(40), name="../../../../etc/passwd"),
        lambda: form(b"#!/bin/sh", name="/etc/passwd\x00.png"),
        lambda: (form(good)[0], "multipart/form-data"),
        lambda: (form(good)[0], "multipart/form-data; boundary=other"),
        lambda: (form(good)[0][:-30], form(good)[1]),
        lambda: (good, "image/png"),
        lambda: (good, "application/json"),
        lambda: (b"", "application/json"),
        lambda: (b"[" * 5000, "application/json"),
        lambda: (b'{"images": ["not base64!"]}', "application/json"),
        lambda: (b'{"images": ["../../etc/passwd"]}', "application/json"),
        lambda: (json.dumps({"images": [7, None]}).encode(), "application/json"),
        lambda: (json.dumps({"images": ["aGVsbG8="] * 1000}).encode(), "application/json"),
        lambda: (b"\xff\xfe" + rng.bytes(50), "application/x-www-form-urlencoded"),
        lambda: form(*[good] * 200),
        lambda: (bytes(most_bytes + 1), "application/json"),
    ]
    for i in range(n):
        yield kinds[i % len(kinds)]()
