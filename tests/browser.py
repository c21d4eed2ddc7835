"""A real browser for tests of pages: headless Chromium, as Debian has it, driven by selenium."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


def programs() -> list[str]:
    """Where Chromium and its driver are; installs them where that is allowed, else skips the test."""
    with (Path(tempfile.gettempdir()) / f"vit_jax-browser-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be installing them
        if not all(map(shutil.which, PROGRAMS)) and os.geteuid() == 0 and shutil.which("apt-get"):
            for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "chromium-driver"]):
                subprocess.run(["apt-get", "-q", *words], capture_output=True, timeout=400)
    found = [place for name in PROGRAMS if (place := shutil.which(name))]
    if len(found) < len(PROGRAMS):
        pytest.skip("needs chromium and chromium-driver of Debian: apt-get install chromium chromium-driver")
    return found


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A browser whose settings lie in the folder `profile`; it keeps what the console and the network said."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra [dev]")
    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.set_page_load_timeout(60)
        try:
            yield opened
        finally:
            opened.quit()
