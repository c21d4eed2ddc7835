"""How an image leaves the host, the same each time it is read; `crop.RandomCrop` takes its place in training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from vit_jax.data import decoding, resizing


@dataclass(frozen=True)
class Preprocessing:
    """An image's size, how it is brought to that size, and its channels."""

    size: tuple[int, int]
    resize: Literal["crop", "stretch"]
    channels: int
    crop_fraction: float = 1.0  # the image is scaled to size / crop_fraction, and the centre taken
    interpolation: resizing.Interpolation = "bilinear"
    draft: bool = False  # of every image, as `__call__` does of one

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels)

    def __call__(self, encoded: bytes | np.ndarray, *, draft: bool = False) -> UInt8[np.ndarray, "h w c"]:
        """The image, decoded and brought to its size.

        `draft` has the JPEG decoder reduce photos several times too large, which is three to four times as fast: to
        1/2, 1/4 or 1/8, so that at least `decoding.DRAFT_MARGIN` times the size remains. Photos differ by 0.3 levels
        of 255 in the mean then, and by 6 at most.
        """
        extent = None
        if (draft or self.draft) and isinstance(encoded, bytes):
            height, width = resizing.covering(self.size, self.crop_fraction)
            at_least = (decoding.DRAFT_MARGIN * height, decoding.DRAFT_MARGIN * width)
            image, extent = decoding.decode_reduced(encoded, self.channels, at_least)
        else:
            image = decoding.decode(encoded, self.channels)
        return resizing.resize(image, self.size, self.resize, self.crop_fraction, self.interpolation, extent)

    def mask(self, encoded: bytes | np.ndarray) -> UInt8[np.ndarray, "h w"]:
        """The image's mask, cut and scaled as the image is; of each pixel's place the nearest class."""
        mask = decoding.decode_mask(encoded)
        return resizing.resize_mask(mask, self.size, self.resize, self.crop_fraction, self.interpolation)
