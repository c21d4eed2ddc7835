"""Which images a run has: how many, where its folder may lie beside them, and that they stay the same."""

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vit_jax.command import UserError


def test_a_limit_beyond_all_images_is_told(tmp_path):
    assert (
        "data.limit=181: all 180 training images are used"
        in tiny.start(tmp_path, "cnn", "data.limit=181", "train.steps=2")[1]
    )


def add(photos: Path, numbers: range) -> None:
    """Images of three classes."""
    for number in numbers:
        folder = photos / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 7, 3), number, np.uint8)).save(folder / f"{number}.png")


def test_workdirs_that_would_lose_checkpoints_or_images(tmp_path):
    with pytest.raises(UserError, match=r"lr\[1\]: checkpoints cannot be kept under a name with \[, \], \* or \?"):
        tiny.start(tmp_path / "lr[1]", "cnn")
    add(tmp_path / "photos", range(30))
    for place in ("photos", "photos/run"):
        with pytest.raises(UserError, match=r"lies in .*photos, whose folders are classes; give one elsewhere"):
            tiny.start(tmp_path / place, "cnn", f"data.name={tmp_path}/photos")
    assert {path.name for path in (tmp_path / "photos").iterdir()} == set("abc")
    add(tmp_path / "divided" / "train", range(60))
    add(tmp_path / "divided" / "test", range(9))
    assert tiny.start(tmp_path / "divided" / "run", "cnn", f"data.name={tmp_path}/divided", "train.steps=2")[0] == 0
    with pytest.raises(UserError, match=r"lies in .*divided/test, whose folders are classes"):
        tiny.start(tmp_path / "divided" / "test" / "run", "cnn", f"data.name={tmp_path}/divided")


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path):
    """A folder that has grown is divided anew."""
    photos, workdir = tmp_path / "photos", tmp_path / "run"
    add(photos, range(90))
    flags = (f"data.name={photos}", "train.batch_size=8")
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        assert tiny.start(workdir, "cnn", *flags)[0] == 143
    add(photos, range(90, 120))
    expected = "65 images to train, now 86, 7 images to validation, now 10, 18 images to test, now 24; bring the former"
    with pytest.raises(UserError, match=expected):
        tiny.start(workdir, "cnn", *flags)
    for number in range(90, 120):
        (photos / "abc"[number % 3] / f"{number}.png").unlink()
    assert tiny.start(workdir, "cnn", *flags)[0] == 0
