"""A source of random images, some of which may be broken."""

import numpy as np

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
