"""The HTTP interface: a page, predictions, health, metrics, and its own description."""

import asyncio
import base64
import contextlib
import functools
import importlib.resources
import io
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit_jax.data.resizing import as_image
from vit_jax.serve import openapi
from vit_jax.serve.batcher import Batcher, Busy
from vit_jax.serve.served import Served
from vit_jax.serve.uploads import Budget, Limits, Upload, decode, read_uploads

# The page is whole in itself: nothing but its own code runs, and nothing is fetched from elsewhere.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


class Metrics:
    """What `GET /metrics` tells."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vit_jax_requests", "Requests, by path and status", ["path", "status"], registry=self.registry
        )
        self.images = Counter("vit_jax_images", "Images that were classified", registry=self.registry)
        self.batches = Counter("vit_jax_batches", "Batches that were computed", registry=self.registry)
        self.compute = Histogram("vit_jax_batch_seconds", "Seconds that a batch took", registry=self.registry)
        self.latency = Histogram(
            "vit_jax_predict_seconds", "Seconds from a request to its answer", registry=self.registry
        )
        waiting = Gauge("vit_jax_waiting_images", "Images that wait", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)
        batcher.watch = self.batch

    def batch(self, images: int, seconds: float) -> None:
        self.batches.inc()
        self.images.inc(images)
        self.compute.observe(seconds)


@dataclass(frozen=True)
class Query:
    """The query of `POST /predict`, checked."""

    top: int
    explain: str
    target: int  # a class's number; -1: of each image the most probable

    @classmethod
    def of(cls, request: Request, served: Served) -> "Query":
        given = request.query_params
        top, method, target = given.get("top", "5"), given.get("explain", ""), given.get("target", "")
        if not (top.isascii() and top.isdecimal() and int(top[:9]) >= 1):
            raise HTTPException(400, f"top={top[:50]!r} is not a positive number")
        if method not in ("", *served.methods):
            raise HTTPException(400, f"explain={method[:50]!r} is not one of {', '.join(served.methods) or '(none)'}")
        if target and target not in served.class_names:
            raise HTTPException(400, f"target={target[:50]!r} is no class of this model")
        return cls(int(top[:9]), method, served.class_names.index(target) if target else -1)


def make_app(served: Served, batcher: Batcher, limits: Limits, threads: int = 4) -> ASGIApp:
    """The application; `batcher` computes `served.probabilities`."""
    metrics, decoders = Metrics(batcher), ThreadPoolExecutor(threads, "decode")
    description = openapi.describe(served, limits)
    page, docs, budget = make_page(served), openapi.as_page(description), Budget(limits)

    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        query = Query.of(request, served)
        with budget.held(request):
            uploads = await read_uploads(request, limits)
            if query.explain and len(uploads) > limits.explained:
                raise HTTPException(422, f"{len(uploads)} images to explain; expected at most {limits.explained}")
            with _places(batcher, len(uploads)):
                images = await _decoded(uploads, served, limits, decoders)
                rows = await asyncio.gather(*map(batcher.submit, images))
                answer = await _answer(uploads, images, rows, query, served, batcher)
        metrics.latency.observe(time.perf_counter() - start)
        return JSONResponse(answer)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": served.name})

    async def show_metrics(request: Request) -> Response:
        return Response(exposition.generate_latest(metrics.registry), media_type=exposition.CONTENT_TYPE_PLAIN_0_0_4)

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    async def show_docs(request: Request) -> Response:
        return HTMLResponse(docs, headers={"Content-Security-Policy": POLICY})

    async def describe(request: Request) -> Response:
        return JSONResponse(description)

    async def refuse(request: Request, fault: Exception) -> Response:
        if isinstance(fault, HTTPException):
            return JSONResponse({"error": fault.detail}, fault.status_code, fault.headers)
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

    routes = [
        Route("/", show_page),
        Route("/predict", predict, methods=["POST"]),
        Route("/healthz", health),
        Route("/metrics", show_metrics),
        Route("/openapi.json", describe),
        Route("/docs", show_docs),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()
        decoders.shutdown()

    handlers: Any = {HTTPException: refuse, Exception: refuse}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    return _counted(app, metrics, {route.path for route in routes})


@contextlib.contextmanager
def _places(batcher: Batcher, images: int) -> Iterator[None]:
    """Places in the queue, or the answer 429."""
    try:
        batcher.reserve(images)
    except Busy as busy:
        raise HTTPException(429, "too many images wait already; try again", {"Retry-After": "1"}) from busy
    try:
        yield
    finally:
        batcher.release(images)


def _counted(app: ASGIApp, metrics: Metrics, paths: set[str]) -> ASGIApp:
    """Counts each answer by its path, unknown ones together, and its status.

    It stands around the whole application: what answers 500 is the outermost of Starlette's own layers.
    """

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path") if scope.get("path") in paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await app(scope, receive, counted)

    return count


async def _decoded(
    uploads: list[Upload], served: Served, limits: Limits, pool: ThreadPoolExecutor
) -> list[UInt8[np.ndarray, "h w c"]]:
    """The images, decoded in threads; all have ended when one of them is refused."""
    loop, work = (
        asyncio.get_running_loop(),
        functools.partial(decode, preprocessing=served.preprocessing, limits=limits),
    )
    found = await asyncio.gather(*(loop.run_in_executor(pool, work, one) for one in uploads), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if isinstance(one, np.ndarray)]


async def _answer(
    uploads: list[Upload],
    images: list[UInt8[np.ndarray, "h w c"]],
    rows: list[Float[np.ndarray, " k"]],
    query: Query,
    served: Served,
    batcher: Batcher,
) -> dict[str, Any]:
    """The best classes of each image, and where the model looked, if that was asked."""
    found: list[dict[str, Any]] = []
    for upload, row in zip(uploads, rows, strict=True):
        best = np.argsort(-row, kind="stable")[: query.top]
        top = [{"class": served.class_names[i], "probability": float(row[i])} for i in best]
        found.append({"name": upload.name, "top": top})
    if query.explain and served.explain is not None:
        for one, image, row in zip(found, images, rows, strict=True):
            target = query.target if query.target >= 0 else int(row.argmax())
            heat = await batcher.alone(functools.partial(served.explain, image[None], query.explain, target))
            one["view"], one["heat"] = picture(image), picture(_levels(heat[0]))
    return {"predictions": found}


def _levels(heat: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 1"]:
    return np.round(255 * np.clip(np.nan_to_num(heat), 0, 1)).astype(np.uint8)[..., None]


def picture(image: UInt8[np.ndarray, "h w c"]) -> str:
    """The image as a data: address."""
    file = io.BytesIO()
    as_image(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def make_page(served: Served) -> str:
    """The page, with what it must know of the model."""
    import json

    text = importlib.resources.files("vit_jax.serve").joinpath("page.html").read_text(encoding="utf-8")
    known = {"model": served.name, "methods": served.methods, "classes": len(served.class_names)}
    return text.replace("/*MODEL*/null", json.dumps(known).replace("<", "\\u003c"))
