"""The images of a request: found in its body, within the limits, and decoded; whatever else it holds is refused."""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from vit_jax.data import Preprocessing
from vit_jax.data.decoding import BrokenImage, header_shape

MOST_NAME = 200  # letters of a file's name that are repeated in the answer


@dataclass(frozen=True)
class Limits:
    """What a request may hold."""

    bytes: int = 20 * 2**20  # of its body
    pixels: int = 50_000_000  # of an image, before it is made smaller
    images: int = 64
    explained: int = 4  # images of a request that asks where the model looked: each takes many passes
    seconds: float = 60.0  # that a body may take to come
    together: int = 8  # bodies of the greatest size, or as many bytes of smaller ones, that are held at once


@dataclass(frozen=True)
class Upload:
    """A file as it came."""

    name: str
    content: bytes


class Budget:
    """The bytes of bodies that may be in memory at once."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.left = limits, limits.bytes * limits.together

    @contextlib.contextmanager
    def held(self, request: Request) -> Iterator[None]:
        """Takes what the request declares, or the most where it does not, and gives it back at the end.

        Raises `HTTPException`: 413 for a body that is too long, 429 where so much is held already.
        """
        size = _declared(request, self.limits.bytes)
        if size > self.left:
            raise HTTPException(429, "too many uploads are under way already; try again", {"Retry-After": "1"})
        self.left -= size
        try:
            yield
        finally:
            self.left += size


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """The files of a request, multipart or JSON; raises `HTTPException` for what is neither, or too much."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    readers = {"application/json": _of_json, "multipart/form-data": _of_form}
    if kind not in readers:
        raise HTTPException(415, f"content type {kind or 'none'!r}; expected {' or '.join(readers)}")
    try:
        async with asyncio.timeout(limits.seconds):
            body = await _body(request, limits.bytes)
    except TimeoutError as late:
        message = f"the body took longer than {limits.seconds:g} seconds"
        raise HTTPException(408, message, {"Connection": "close"}) from late
    found = await readers[kind](request, body, limits)
    if not 1 <= len(found) <= limits.images:
        raise HTTPException(422, f"{len(found)} images; expected 1 to {limits.images}")
    return found


def decode(upload: Upload, preprocessing: Preprocessing, limits: Limits) -> UInt8[np.ndarray, "h w c"]:
    """The image at the model's size; raises `HTTPException`. Its size is read from its header before it is decoded."""
    try:
        height, width, _ = header_shape(upload.content)
        if height * width > limits.pixels:
            raise HTTPException(
                413, f"{upload.name!r} has {width} x {height} pixels; expected at most {limits.pixels:,}"
            )
        return preprocessing(upload.content, draft=True)
    except BrokenImage as fault:
        raise HTTPException(422, f"{upload.name!r} is no image that can be read: {fault}") from fault
    except (ValueError, OSError, MemoryError) as fault:
        raise HTTPException(422, f"{upload.name!r} cannot be read: {type(fault).__name__}") from fault


def _declared(request: Request, most: int) -> int:
    """How many bytes the body has by its header; without one, as many as it may have."""
    declared = request.headers.get("content-length", str(most))
    if not declared.isdecimal() or int(declared[:20]) > most:
        raise HTTPException(413, f"a body of {declared[:20]} bytes; expected at most {most:,}")
    return int(declared)


async def _body(request: Request, most: int) -> bytes:
    """The whole body; refused as soon as it is too long, whatever its header says."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"the body is longer than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


async def _of_json(request: Request, body: bytes, limits: Limits) -> list[Upload]:
    """`{"images": [base64, ...]}`; data: addresses are taken, too."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise HTTPException(400, f"the body is no JSON: {str(fault)[:100]}") from fault
    images = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise HTTPException(422, 'expected {"images": [base64, ...]}')
    try:
        return [Upload(f"image {i}", _decoded(image)) for i, image in enumerate(images)]
    except (binascii.Error, ValueError) as fault:
        raise HTTPException(422, f"an image is no base64: {fault}") from fault


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)


async def _of_form(request: Request, body: bytes, limits: Limits) -> list[Upload]:
    """All files of the form, whatever their fields are called."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    again = Request(request.scope, receive)
    try:
        async with again.form(max_files=limits.images, max_fields=limits.images) as form:  # raises 400 for what is none
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [Upload(_writable(file.filename or ""), await file.read()) for file in files]
    except (ValueError, LookupError) as fault:  # its charset is none, or cannot write these names
        raise HTTPException(400, "the form's names cannot be read; send them in UTF-8") from fault


def _writable(name: str) -> str:
    """A file's name, cut, as text that an answer can hold: half of a pair of surrogates is none."""
    return name[:MOST_NAME].encode("utf-8", "replace").decode()
