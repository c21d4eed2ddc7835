"""Pictures of what a model is shown."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from vit_jax.command import UserError
from vit_jax.report import augmentations

CONFIG = str(REPOSITORY / "configs" / "digits.py")


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_a_sheet_has_a_row_unchanged_and_rows_augmented(tmp_path):
    out = tmp_path / "sheet.png"
    shape = ["--images", "3", "--rows", "2", "--height", "40"]
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape]) == 0
    wide, tall = size(out)
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape[:3], "4", *shape[4:]]) == 0
    assert size(out)[0] == wide and size(out)[1] > tall


def test_without_augmentation_all_rows_are_the_first(tmp_path):
    out = tmp_path / "sheet.png"
    off = [f"--config.augment.{field}" for field in ("crop_padding=0", "flip=0", "rotation=0", "zoom=()", "shear=0")]
    off += ["--config.augment.translation=()", "--config.augment.erasing=0", "--config.data.name=synthetic/8x8x3/3/50"]
    augmentations.main(["--config", CONFIG, "--out", str(out), "--rows", "1", "--height", "32", *off])
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    half = len(pixels) // 2
    first, second = (
        np.unique(part.reshape(-1, 3), axis=0, return_counts=True) for part in (pixels[:half], pixels[half:])
    )
    coloured = [{tuple(c): n for c, n in zip(*part, strict=True) if len(set(c)) > 1} for part in (first, second)]
    assert coloured[0] == coloured[1] and len(coloured[0]) > 10


@pytest.mark.parametrize(("flags", "expected"), [(["--rows", "0"], "must be positive"), ([], "cannot write")])
def test_mistakes(tmp_path, flags, expected):
    with pytest.raises(UserError, match=expected):
        augmentations.main(["--config", CONFIG, "--out", str(tmp_path / "nowhere" / "sheet.png"), *flags])
