"""A source of random images, some of which may be broken; a photo, and files of images."""

import io

import numpy as np
from PIL import Image

from vit_jax.data import Example

SHAPE = (5, 7, 3)


class Images:
    """Random images with a label and a mask each; reading one of `broken` raises."""

    def __init__(self, count: int, broken=(), shape=SHAPE):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        self.broken = set(broken)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Example:
        if index in self.broken:
            raise OSError("no such sector")
        pixels = self.pixels[index]
        return {"image": pixels, "label": index % 11, "mask": pixels[..., 0] // 16}

    def describe(self, index: int) -> str:
        return f"image {index}"


def photo(height: int, width: int, scale: float = 37) -> np.ndarray:
    """A picture without much detail, as JPEG likes it: waves."""
    y, x = np.mgrid[:height, :width] / scale
    return np.rint(127 + 120 * np.stack([np.sin(y + x), np.cos(x), np.sin(y)], -1)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", orientation: int = 0, **options) -> bytes:
    """The bytes of an image file."""
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:  # as EXIF says
        exif[0x0112] = orientation
        options["exif"] = exif
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()
