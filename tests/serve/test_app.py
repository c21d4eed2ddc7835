"""The HTTP interface over a model that tells bright from dark: answers, limits, refusals, batches."""

import asyncio
import base64
import dataclasses
import re
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from tests.serve.clients import form, garbage, png  # noqa: E402
from vit_jax.command import UserError  # noqa: E402
from vit_jax.data import Preprocessing  # noqa: E402
from vit_jax.export import About, Exported  # noqa: E402
from vit_jax.serve import served  # noqa: E402
from vit_jax.serve.app import make_app  # noqa: E402
from vit_jax.serve.batcher import Batcher, Busy  # noqa: E402
from vit_jax.serve.served import Served  # noqa: E402
from vit_jax.serve.uploads import Limits, read_uploads  # noqa: E402

LIMITS = Limits(bytes=200_000, pixels=1_000_000, images=5, explained=2, seconds=5.0, together=2)


def brightness(images: np.ndarray) -> np.ndarray:
    bright = images.mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def explain(images: np.ndarray, method: str, target: int) -> np.ndarray:
    return np.full((1, 2, 3), target, np.float32)


class Rig:
    """The application, with what it computed."""

    def __init__(self, compute=brightness, capacity: int = 8, limits: Limits = LIMITS) -> None:
        self.sizes: list[int] = []

        def counted(images: np.ndarray) -> np.ndarray:
            self.sizes.append(len(images))
            return compute(images)

        view = Preprocessing((4, 6), "stretch", 3)
        model = Served("tiny/1", ("dark", "bright </script>"), view, counted, ("rollout",), explain)
        self.batcher = Batcher(counted, max_batch=4, capacity=capacity)
        self.client = TestClient(make_app(model, self.batcher, limits, 2), raise_server_exceptions=False)

    def post(self, body: bytes, kind: str, query: str = ""):
        return self.client.post(f"/predict{query}", content=body, headers={"content-type": kind})


@pytest.fixture
def rig():
    made = Rig()
    with made.client:
        yield made


def test_a_form_of_many_images(rig):
    answer = rig.post(*form(png(255), png(51), png(0), name="ä.png"))
    assert answer.status_code == 200
    top = [one["top"] for one in answer.json()["predictions"]]
    assert [one["name"] for one in answer.json()["predictions"]] == ["ä.png"] * 3
    assert [best[0]["class"] for best in top] == ["bright </script>", "dark", "dark"]
    assert top[1][0]["probability"] == pytest.approx(0.8) and top[1][1]["probability"] == pytest.approx(0.2)
    assert sum(rig.sizes) in (4, 5) and set(rig.sizes) <= {1, 2, 4}  # filled up


def test_json_of_base64(rig):
    text = base64.b64encode(png(255)).decode()
    answer = rig.client.post("/predict?top=1", json={"images": [text, f"data:image/png;base64,{text}"]})
    assert [len(one["top"]) for one in answer.json()["predictions"]] == [1, 1]


def test_where_it_looked(rig):
    one = rig.post(*form(png(0)), "?explain=rollout").json()["predictions"][0]
    assert one["view"].startswith("data:image/png;base64,")
    levels = []
    for query in ("?explain=rollout", "?explain=rollout&target=bright+%3C/script%3E"):
        heat = rig.post(*form(png(0)), query).json()["predictions"][0]["heat"].partition(",")[2]
        from vit_jax.data import decoding

        levels.append(int(decoding.decode(base64.b64decode(heat), 1).max()))
    assert levels == [0, 255]  # of the most probable class, number 0, and of the other one
    for query in ("?explain=magic", "?explain=rollout&target=cat", "?top=0", "?top=-1", "?top=x"):
        answer = rig.post(*form(png()), query)
        assert answer.status_code == 400 and "error" in answer.json(), query


def test_few_images_are_explained_at_once(rig):
    refused = rig.post(*form(*[png()] * 3), "?explain=rollout")
    assert refused.status_code == 422 and "3 images to explain; expected at most 2" in refused.json()["error"]
    answer = rig.post(*form(png(), png()), "?explain=rollout")
    assert all("heat" in one for one in answer.json()["predictions"]) and rig.post(*form(*[png()] * 3)).is_success
    described = rig.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["parameters"]
    assert any("at most 2 images" in one["description"] for one in described)


def test_explanations_are_compiled_before_requests():
    asked: list = []
    view = Preprocessing((4, 6), "stretch", 3)
    heat = lambda images, *given: asked.append((images.shape, *given)) or explain(images, *given)  # noqa: E731
    Served("tiny", ("a",), view, brightness, ("rollout", "grad_cam"), heat).warm_up()
    assert asked == [((1, 4, 6, 3), "rollout", 0), ((1, 4, 6, 3), "grad_cam", 0)]


def test_names_that_no_answer_can_hold(rig):
    body, kind = form(png(), name="\\ud800.png")
    answer = rig.post(body, f"{kind}; charset=unicode_escape")
    assert answer.status_code == 200 and answer.json()["predictions"][0]["name"] == "?.png"
    for charset in ("idna", "punycode", "utf-7", "hex", "nothing", "utf-16", "utf\0"):
        for name in ("a.png", "ä\\ud800.png", "+2AA-.png", "xn--\x80" + 70 * "y"):
            body, kind = form(png(), name=name)
            assert rig.post(body, f"{kind}; charset={charset}".encode()).status_code in (200, 400), (charset, name)


def test_garbage_is_refused_and_the_next_image_is_answered(rig):
    for body, kind in garbage(44, LIMITS.bytes):
        answer = rig.post(body, kind)
        assert 400 <= answer.status_code < 500, (answer.status_code, kind, body[:100])
        assert set(answer.json()) == {"error"} and "Traceback" not in answer.text
    assert rig.post(*form(png())).status_code == 200 and rig.batcher.waiting == 0


def test_limits_say_what_was_expected(rig):
    for given, status, text in (
        (form(*[png()] * 6), 400, "Too many files"),
        (form(png(size=(2000, 501))), 413, "expected at most 1,000,000"),
        ((b"x" * 200_001, "application/json"), 413, "expected at most 200,000"),
        ((b"x", "text/plain"), 415, "expected application/json or multipart/form-data"),
        (form(), 422, "expected 1 to 5"),
    ):
        answer = rig.post(*given)
        assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text


def test_a_body_without_a_length_is_cut_off(rig):
    chunks = (b"x" * 100_000 for _ in range(50))
    answer = rig.client.post("/predict", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_full_queue_answers_429():
    started, go = threading.Event(), threading.Event()

    def slow(images: np.ndarray) -> np.ndarray:
        started.set()
        assert go.wait(30)
        return brightness(images)

    rig = Rig(slow, capacity=2)
    with rig.client:
        first = threading.Thread(target=lambda: answers.append(rig.post(*form(png(), png()))))
        answers: list = []
        first.start()
        assert started.wait(30)
        refused = rig.post(*form(png()))
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        go.set()
        first.join()
        assert answers[0].status_code == 200 and rig.post(*form(png())).status_code == 200


def fails(images: np.ndarray) -> np.ndarray:
    raise RuntimeError("secret")


def forgets(images: np.ndarray) -> np.ndarray:
    return brightness(images)[1:]


@pytest.mark.parametrize("fault", [fails, forgets])
def test_a_fault_of_the_model_is_answered_and_the_server_goes_on(fault):
    computes = iter([fault, brightness])
    rig = Rig(lambda images: next(computes)(images))
    with rig.client:
        answer = rig.post(*form(png(), png()))
        assert answer.status_code == 500 and "secret" not in answer.text
        assert rig.post(*form(png())).status_code == 200 and rig.batcher.waiting == 0
        assert 'vit_jax_requests_total{path="/predict",status="500"} 1.0' in rig.client.get("/metrics").text


def test_whatever_fails_around_the_model_ends_no_more_than_its_batch():
    async def run() -> None:
        batcher = Batcher(brightness, max_batch=4, wait_ms=20.0)
        batcher.start()
        small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
        found = await asyncio.gather(batcher.submit(small), batcher.submit(large), return_exceptions=True)
        assert [type(one) for one in found] == [ValueError, ValueError]  # they make no batch
        batcher.watch = lambda images, seconds: fails(small)
        for _ in range(2):
            np.testing.assert_array_equal(await batcher.submit(small), [1, 0])
        await batcher.stop()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_uploads_that_are_held_have_a_bound():
    """Bodies are not read where those of other requests fill the memory that they may have."""
    started, go = threading.Event(), threading.Event()

    def slow(images: np.ndarray) -> np.ndarray:
        started.set()
        assert go.wait(30)
        return brightness(images)

    rig = Rig(slow, limits=dataclasses.replace(LIMITS, together=1))
    body, kind = form(png(), png() + bytes(150_000))
    with rig.client:
        first = threading.Thread(target=lambda: answers.append(rig.post(body, kind)))
        answers: list = []
        first.start()
        assert started.wait(30)
        for other, status in ((bytes(60_000), 429), ((b"x" for _ in range(9)), 429), (b"x", 400)):
            assert rig.post(other, "application/json").status_code == status  # one without a length may be long
        go.set()
        first.join()
        assert answers[0].status_code == 200 and rig.post(body, kind).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for():
    limits = dataclasses.replace(LIMITS, seconds=0.05)
    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, never)
    with pytest.raises(HTTPException, match="the body took longer than 0.05 seconds") as refused:
        asyncio.run(asyncio.wait_for(read_uploads(request, limits), 30))
    assert refused.value.status_code == 408


async def never() -> dict:
    await asyncio.sleep(1000)
    raise AssertionError


def test_only_what_classifies_images_is_served(monkeypatch):
    view = Preprocessing((4, 6), "stretch", 3)
    for names, output, loss, message in (
        (("sky", "road"), "logits", "", "its outputs are no probabilities of "),
        (("sky", "road"), "masks", "softmax", "gives masks, not logits"),
        ((), "features", "", "has no head"),
        (("sky", "road", "car"), "logits", "softmax", r"gives \[1, 2\] numbers for an image"),
    ):
        about = About("vit", 1, output, names, loss, True, (4, 6, 3), view, (), "bilinear", (0.5,), (0.5,))
        monkeypatch.setattr(served, "open_exported", lambda path, about=about: Exported(about, brightness))
        with pytest.raises(UserError, match=message):
            served.open_file(Path("x.onnx"))


def test_health_metrics_page_and_description(rig):
    rig.post(*form(png(), png()))
    rig.post(b"", "text/plain")
    rig.client.get("/nothing")
    assert rig.client.get("/healthz").json() == {"status": "ok", "model": "tiny/1"}
    text = rig.client.get("/metrics").text
    for line in (
        'vit_jax_requests_total{path="/predict",status="200"} 1.0',
        'vit_jax_requests_total{path="/predict",status="415"} 1.0',
        'vit_jax_requests_total{path="other",status="404"} 1.0',
        "vit_jax_images_total 2.0",
        "vit_jax_waiting_images 0.0",
    ):
        assert line in text, line
    page = rig.client.get("/")
    assert '"model": "tiny/1"' in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page.text), "the page fetches nothing from elsewhere"
    described = rig.client.get("/openapi.json").json()
    docs = rig.client.get("/docs").text
    assert all(path in docs for path in described["paths"]) and "429" in docs and "explain" in docs
    assert "</script>" not in docs and "bright" not in docs
    assert {"/predict", "/healthz", "/metrics", "/docs", "/"} == set(described["paths"])
    assert rig.client.get("/predict").status_code == 405


def test_images_of_many_requests_are_computed_together():
    async def run() -> list[int]:
        sizes: list[int] = []

        def compute(images: np.ndarray) -> np.ndarray:
            sizes.append(len(images))
            return brightness(images)

        batcher = Batcher(compute, max_batch=4, wait_ms=50.0)
        batcher.start()
        images = [np.full((2, 2, 3), 20 * i, np.uint8) for i in range(7)]
        rows = await asyncio.gather(*map(batcher.submit, images))
        np.testing.assert_allclose([row[1] for row in rows], [20 * i / 255 for i in range(7)], rtol=1e-6)
        await batcher.stop()
        return sizes

    assert asyncio.run(run()) == [4, 4]


def test_reservations():
    batcher = Batcher(brightness, capacity=3)
    batcher.reserve(2)
    with pytest.raises(Busy):
        batcher.reserve(2)
    batcher.release(2)
    batcher.reserve(3)
    assert Batcher(brightness, max_batch=20).sizes() == [1, 2, 4, 8, 16]
