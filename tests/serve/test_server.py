"""The server as a process of its own: many clients, garbage, its memory, its end, its description, a browser."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.browser import browser
from tests.conftest import REAL_DATA, REPOSITORY
from tests.serve.clients import ask, form, garbage, hammer, png
from vit_jax import command, inference
from vit_jax.command import UserError
from vit_jax.serve import command as serving

for needed in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(needed, reason="the extra [serve] is not installed")


@contextlib.contextmanager
def serving_process(*flags: str | Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Its address, once it is ready, and the process."""
    words = [sys.executable, "-m", "vit_jax.serve", "--port", "0", *map(str, flags)]
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        yield url, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


@pytest.fixture(scope="module")
def server(run) -> Iterator[tuple[str, subprocess.Popen]]:
    with serving_process("--workdir", run, "--max_mb", 1, "--max_images", 16) as found:
        yield found


def test_flags_that_do_not_fit(tmp_path):
    for flags, message in (
        (["--workdir", "x", "--max_batch", "0"], "--max_batch 0 is not positive"),
        (["--workdir", "x", "--port", "70000"], "a port to 65535"),
        (["--exported", "x.onnx", "--config.data.image_size=9"], "an exported file is as it is"),
        (["--exported", str(tmp_path / "x.onnx")], "is no exported model"),
        ([], "--workdir"),
    ):
        with pytest.raises(UserError, match=message):
            serving.main(flags)


@pytest.mark.slow
def test_it_answers_as_the_predictor(server, run):
    rng = np.random.default_rng(3)
    pictures = [Image.fromarray(rng.integers(0, 256, (11, 13, 3), np.uint8)) for _ in range(5)]
    files = [encoded(picture) for picture in pictures]
    expected = inference.load(run).predict(pictures).top(2)
    status, answer = ask(server[0], *form(*files), "/predict?top=2")
    assert status == 200
    for one, best in zip(answer["predictions"], expected, strict=True):
        assert [found["class"] for found in one["top"]] == [name for name, _ in best]
        np.testing.assert_allclose([found["probability"] for found in one["top"]], [p for _, p in best], rtol=1e-4)
    body = json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()
    assert ask(server[0], body, "application/json")[0] == 200


def encoded(picture: Image.Image) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_many_clients_lose_nothing(server):
    statuses, _ = hammer(server[0], 16, 4, *form(png()))
    assert set(statuses) == {200} and statuses[200] > 16


@pytest.mark.slow
def test_a_thousand_garbage_uploads_leave_nothing_behind(server):
    url, process = server
    before, answered = 0, 0
    for body, kind in garbage(2000, 2**20):
        try:
            status, answer = ask(url, body, kind)
        except ConnectionError:  # refused before all of it was sent
            assert len(body) > 2**20
            continue
        assert 400 <= status < 500 and set(answer) == {"error"}, (answered, status, kind, body[:60])
        answered += 1
        if answered == 300:
            before = resident(process.pid)
        if answered == 1000:
            break
    assert answered == 1000
    assert resident(process.pid) < before + 30 * 2**20, "memory grows"
    assert ask(url, *form(png()))[0] == 200


def resident(pid: int) -> int:
    """Bytes of memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_sigterm_ends_what_is_under_way_and_then_the_server(run):
    with serving_process("--workdir", run) as (url, process):
        found: list = []
        clients = [threading.Thread(target=lambda: found.append(hammer(url, 1, 2, *form(png())))) for _ in range(3)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == command.TERMINATED
        for client in clients:
            client.join()
        statuses = sum((statuses for statuses, _ in found), start=found[0][0].__class__())
        assert statuses[200] and not {500, 503} & set(statuses)
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("form_", ["onnx", "stablehlo"])
def test_an_exported_file_is_served(run, form_, tmp_path):
    pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")
    from vit_jax.export import command as exporting

    assert exporting.main(["--workdir", str(run), "--format", form_, "--out", str(tmp_path)]) == 0
    with serving_process("--exported", tmp_path) as (url, _):
        status, answer = ask(url, *form(png()))
    assert status == 200 and len(answer["predictions"][0]["top"]) == 3


@pytest.mark.slow
def test_its_description_holds(server):
    """schemathesis makes requests of the description. JSON schema knows no images: other base64 may be refused."""
    tool = Path(sys.executable).with_name("schemathesis")
    if not tool.exists():
        pytest.skip("schemathesis is not installed")
    words = [tool, "run", f"{server[0]}/openapi.json", "--max-examples", "30", "--seed", "1", "--no-color"]
    words += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:]


DROP = """
const [text, name] = arguments, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
const data = new DataTransfer(), place = document.getElementById("drop");
data.items.add(new File([bytes], name, {type: "image/png"}));
for (const kind of ["dragover", "drop"])
  place.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: data}));
"""


# The first of two answers comes last; then the server is busy.
CLICKS = """
const done = arguments[0], real = window.fetch, wait = ms => new Promise(done => setTimeout(done, ms));
const seen = {rejected: 0}, names = () => [...document.querySelectorAll("article .name")].map(name => name.textContent);
const chosen = () => document.querySelector(".chosen .name").textContent;
window.addEventListener("unhandledrejection", () => seen.rejected++);
const method = document.getElementById("method");
const card = document.querySelector("article");
method.value = "grad_cam"; method.onchange();
(async () => {
  while (document.querySelector("article") === card) await wait(50);
  let asked = 0, answered = 0;
  window.fetch = async (...given) => {
    const mine = asked++, answer = await real(...given);
    while (mine === 0 && !answered) await wait(50);
    answered++;
    return answer;
  };
  const rows = document.querySelectorAll("article li");
  seen.clicked = names()[2];
  rows[1].click(); rows[2].click();
  while (answered < 2) await wait(50);
  await wait(300);
  seen.chosen = chosen();
  window.fetch = async () => new Response('{"error": "busy"}', {status: 429});
  document.querySelectorAll("article li")[0].click();
  await wait(300);
  seen.status = document.getElementById("status").textContent;
  window.fetch = real;
  done(seen);
})();
"""


def drop(page, image: bytes, name: str) -> None:
    page.execute_script(DROP, base64.b64encode(image).decode(), name)


def first_rows(page) -> list[str]:
    """The classes of the newest image, the best first."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 60).until(lambda page: page.find_elements(By.CSS_SELECTOR, "article .name"))
    return [name.text for name in page.find_element(By.TAG_NAME, "article").find_elements(By.CLASS_NAME, "name")]


@pytest.mark.slow
def test_an_image_is_dropped_in_a_browser(tmp_path, tmp_path_factory):
    """A real image, and the class that the page says is the one that the model says."""
    real = REAL_DATA / "fashion_mnist"
    if not real.is_dir():
        pytest.skip(f"no Fashion-MNIST in {REAL_DATA}")
    given = ("data.name=fashion_mnist", f"data.data_dir={REAL_DATA}", "train.steps=60", "train.batch_size=40")
    run = tiny.finished(tmp_path_factory, "cnn", *given)
    predictor = inference.load(run)
    from vit_jax.export import compare

    images, labels = compare.split(predictor.config, predictor.preprocessing, "test", 40)
    right = np.flatnonzero(predictor.logits(images).argmax(axis=1) == labels)
    assert len(right) > 10
    chosen, expected = encoded(Image.fromarray(images[right[0]][..., 0])), predictor.class_names[labels[right[0]]]
    with serving_process("--workdir", run) as (url, _), browser(tmp_path / "profile") as page:
        page.get(url)
        drop(page, chosen, "boot.png")
        assert first_rows(page)[0] == expected
        page.set_script_timeout(60)
        seen = page.execute_async_script(CLICKS)
        assert seen["chosen"] == seen["clicked"] and "busy" in seen["status"] and seen["rejected"] == 0, seen
        assert page.get_log("browser") == [], "console errors"
        drop(page, b"no image", "notes.txt")
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(page, 60).until(lambda page: "no image" in page.find_element("id", "status").text)
