"""Reports of real runs, opened in a real browser."""

import base64
import json
import signal
import time

import pytest

from tests import browser as browsers
from tests import tiny
from tests.conftest import REAL_DATA
from vit_jax import compare, config, main, models
from vit_jax.report import page
from vit_jax.workdir import Workdir

pytestmark = pytest.mark.slow
VIEWS = [(width, theme) for width in (1400, 390) for theme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsers.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def show(browser, path, width, theme):
    """Opens the page in a window of this width; a phone where it is narrow."""
    browser.get("about:blank")  # instead of the browser's own first page, which asks for much
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.get(path.resolve().as_uri())
    wait(browser, "return document.documentElement.dataset.ready && document.querySelector('#charts path')")


def wait(browser, script, seconds=60):
    """What the script returns, as soon as that is something."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.1)
    raise AssertionError(f"still nothing: {script}")


def assert_quiet(browser, path):
    """No error on the console, and no request but for the page itself."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "chrome:"))] == [path.resolve().as_uri()]


def count(browser, selector):
    return browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def click(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(a) A run of digits, whose report `main` left."""
    folder = tmp_path_factory.mktemp("a") / "digits"
    assert main.start(tiny.spec("vit"), folder, ["log.every_steps=2"]).finished
    return Workdir(folder).report_file


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """(b) Fashion-MNIST, a ViT against a CNN."""
    if not (REAL_DATA / "fashion_mnist").is_dir():
        pytest.skip(f"needs Fashion-MNIST in {REAL_DATA}")
    folder = tmp_path_factory.mktemp("b")
    small = ["data.train=train[:600]", "data.validation=train[600:700]", "data.test=test[:200]", "train.steps=12"]
    for name, fields in {
        "vit": models.settings("vit", patch_size=(7,), width=8, depth=1, mlp_dim=16, num_heads=2),
        "cnn": models.settings("cnn", stages=((5,),), dense_widths=(17,)),
    }.items():
        c = config.default()
        c.model, c.data.name, c.data.data_dir = fields, "fashion_mnist", str(REAL_DATA)
        c.train.batch_size, c.log.every_steps, c.evaluate.every_steps, c.augment.flip = 40, 2, 4, 0.5
        assert main.start(c, folder / name, small).finished
    page.main([str(folder / "vit"), str(folder / "cnn"), "--out", str(folder / "report.html")])
    return folder / "report.html"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """(c) A comparison of three seeds, whose report `compare` left."""
    out = tmp_path_factory.mktemp("c") / "sweep"
    sweep = ["--sweep", "data.limit=60,180", "--evaluate", "corruption.kind=none,noise"]
    flags = [*sweep, "--evaluate", "corruption.severity=1,5", "--config.log.every_steps=2"]
    assert compare.main([tiny.spec("cnn"), "--seeds", "3", *flags, "--out", str(out)]) == 0
    return out / "report.html"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(d) A run that was interrupted, whose report `main` left."""
    folder = tmp_path_factory.mktemp("d") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(14, signal.SIGTERM, patch)
        assert main.start(tiny.spec("vit"), folder, ["log.every_steps=2"]).exit_code == 143
    return Workdir(folder).report_file


@pytest.mark.parametrize("name", ["digits", "fashion", "sweep", "stopped"])
def test_a_report_opens_everywhere(browser, name, request):
    path = request.getfixturevalue(name)
    for width, theme in VIEWS:
        show(browser, path, width, theme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, background.strip("rgb()").split(",")))
        assert (brightness > 600) is (theme == "light")
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('#charts > div')].map(d => [d.querySelector('h3').textContent, "
            "Math.max(0, ...[...d.querySelectorAll('path')].map(p => p.getTotalLength())), "
            "d.querySelectorAll('circle').length])"
        )
        assert {"Loss", "Accuracy", "Learning rate", "Gradient norm"} <= {title for title, *_ in drawn}
        assert all(length > 50 for title, length, _ in drawn if title in ("Loss", "Learning rate", "Gradient norm"))
        assert all(length > 50 or points for _, length, points in drawn)  # a single validation is a point
        assert_quiet(browser, path)


def test_a_cell_of_the_confusion_opens_its_images(browser, digits):
    show(browser, digits, 1400, "light")
    found = json.loads(digits.with_name("confusion.json").read_text())["matrix"]
    seen = 0
    for i, j in [(i, j) for i, row in enumerate(found) for j, n in enumerate(row) if n][:20]:
        click(browser, f'[data-cell="{i},{j}"]')
        text = browser.execute_script("return document.querySelector('.cell').innerText")
        assert f"{found[i][j]} image" in text and str(i) in text
        widths = browser.execute_script("return [...document.querySelectorAll('.cell img')].map(i => i.naturalWidth)")
        assert len(widths) <= min(6, found[i][j])
        seen += len(widths)
    assert seen > 5
    wait(browser, "return [...document.querySelectorAll('.cell img')].every(i => i.naturalWidth === 8)")
    assert_quiet(browser, digits)


def test_tables_sort_by_a_click(browser, digits):
    show(browser, digits, 1400, "light")
    read = (
        "return [...document.querySelectorAll('#classes tbody tr')].map(r => parseFloat(r.cells[2].dataset.value || 2))"
    )
    before = browser.execute_script(read)
    click(browser, "#classes thead th:nth-child(3)")
    down = browser.execute_script(read)
    click(browser, "#classes thead th:nth-child(3)")
    assert down == sorted(before, reverse=True) and browser.execute_script(read) == sorted(before)


def test_curves_zoom_hide_and_change_their_axis(browser, sweep):
    show(browser, sweep, 1400, "light")
    first = "document.querySelector('#charts .chart')"
    lines = browser.execute_script(f"return {first}.querySelectorAll('path').length")
    assert lines == 12 and count(browser, "#legend button") == 2  # 2 groups x 3 seeds, training and validation
    click(browser, "#legend button")
    assert browser.execute_script(f"return {first}.querySelectorAll('path').length") == 6
    label = f"return [...{first}.querySelectorAll('text')].at(-1).textContent"
    assert browser.execute_script(label) == "step"
    for value, expected in {"epochs": "epoch", "seconds": "seconds", "flops": "FLOPs"}.items():
        browser.execute_script(
            "const s = document.getElementById('axis'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
            value,
        )
        assert browser.execute_script(label) == expected
    drag = (
        f"const s = {first}.querySelector('svg'), b = s.getBoundingClientRect(), send = (t, x) => s.dispatchEvent("
        "new PointerEvent(t, {pointerType: 'mouse', clientX: b.left + x * b.width, clientY: b.top + 50}));"
        "send('pointerdown', .4); send('pointermove', .6);"
    )
    browser.execute_script(drag)
    assert browser.execute_script("return !document.getElementById('tip').hidden")
    browser.execute_script(drag + "send('pointerup', .6)")
    assert browser.execute_script("return !document.getElementById('whole').hidden")
    assert count(browser, "#plots > div") == 2  # data.limit, corruption
    assert_quiet(browser, sweep)


def test_predictions_of_another_run_can_be_chosen(browser, fashion):
    show(browser, fashion, 1400, "dark")
    read = "return document.querySelector('.matrix').innerText"
    before = browser.execute_script(read)
    browser.execute_script(
        "const s = document.getElementById('which'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script(read) != before and count(browser, "#augmentation img") > 20
    click(browser, "#theme")
    assert "rgb(246" in browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_it_prints(browser, fashion):
    show(browser, fashion, 1400, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
