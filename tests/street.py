"""Tiny pictures with masks, on disk: sky above a road, a house and a car, of 3 classes and a void stripe."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("sky", "road", "car")
COLORS = np.array([[70, 120, 220], [90, 90, 90], [200, 30, 40]], np.uint8)
VOID = 255


def pair(number: int, size: tuple[int, int] = (24, 32)) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [h w 3] and its mask uint8 [h w], a function of the number."""
    rng = np.random.default_rng(number)
    h, w = size
    mask = np.zeros(size, np.uint8)
    mask[rng.integers(h // 3, h // 2) :] = 1
    y, x = rng.integers(h // 3, h - 6), rng.integers(0, w - 8)
    mask[y : y + 5, x : x + 7] = 2
    image = np.clip(COLORS[mask].astype(int) + rng.integers(-30, 31, (*size, 3)), 0, 255).astype(np.uint8)
    mask[-1] = VOID
    return image, mask


def write(root: Path, counts: dict[str, int], size: tuple[int, int] = (24, 32), classes: bool = True) -> Path:
    """A data set of so many pairs in each split: `root/SPLIT/images/N.png` and `masks/N.png`; "" is no split."""
    for i, (split, count) in enumerate(counts.items()):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = pair(100 * i + number, size)
            Image.fromarray(image).save(root / split / "images" / f"{number:02}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number:02}.png")
    if classes:
        (root / "classes.json").write_text(json.dumps({"names": NAMES}))
    return root
