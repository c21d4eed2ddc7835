"""Data sets that need no file: scikit-learn's digits, and synthetic images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from jaxtyping import Int

from vit_jax.command import UserError
from vit_jax.data.sources.dataset import Dataset, Example, Images

_DIGITS = {"train": 1437, "test": 360}
_TILES = 4  # a synthetic class is a grid of 4 x 4 random tiles: coarse, so that crops and shifts leave it learnable


def open_digits() -> Dataset:
    """scikit-learn's 8x8 handwritten digits, 0..16 scaled to 0..255, in a fixed stratified split."""
    return Dataset("digits", tuple("0123456789"), (8, 8, 1), _DIGITS, _digits)


@cache
def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, stratify=labels, test_size=_DIGITS["test"], random_state=0)
    rows = train if split == "train" else test
    pixels = np.rint(images[rows].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    pixels.setflags(write=False)
    return Images(labels[rows], pixels.__getitem__, f"digits {split} record {{}}".format)


def open_synthetic(name: str) -> Dataset:
    """Learnable images, one random template per class under noise: `synthetic/HxWxC/CLASSES/TRAIN_IMAGES`.

    `synthetic` alone is synthetic/32x32x3/10/1000. The test split is a fifth of the train split's size.
    """
    given = "synthetic/32x32x3/10/1000" if name == "synthetic" else name
    parsed = re.fullmatch(r"synthetic/(\d+)x(\d+)x([13])/(\d+)/(\d+)", given)
    height, width, channels, classes, images = map(int, parsed.groups()) if parsed else (0, 0, 0, 0, 0)
    if min(height, width, classes - 1, images) < 1:
        raise UserError(
            f"data set {name!r}: expected synthetic/HxWxC/CLASSES/TRAIN_IMAGES with C 1 or 3 and at least two "
            "classes, such as synthetic/32x32x3/10/1000"
        )
    splits = {"train": images, "test": max(1, images // 5)}
    shape = (height, width, channels)

    names = tuple(f"class {label}" for label in range(classes))
    return Dataset(name, names, shape, splits, partial(_Synthetic, name, shape, classes, splits))


@dataclass(frozen=True)
class _Synthetic:
    """Each image is a function of split and index alone; labels go round, so that any slice is balanced.

    Nothing is kept of an image: a plan opens billions of them.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    splits: Mapping[str, int]
    split: str

    def __len__(self) -> int:
        return self.splits[self.split]

    def read(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        (height, width, channels), label = self.shape, index % self.classes
        noise = np.random.default_rng((1, self.split == "test", index)).integers(0, 256, self.shape, np.uint8)
        tiles = np.random.default_rng((0, label)).integers(0, 256, (_TILES, _TILES, channels), np.uint8)
        template = tiles[np.arange(height)[:, None] * _TILES // height, np.arange(width) * _TILES // width]
        return {"image": template // 2 + noise // 2, "label": label}

    def labels(self) -> Int[np.ndarray, " n"]:
        return np.arange(len(self)) % self.classes

    def describe(self, index: int) -> str:
        return f"{self.name} {self.split} record {index}"
