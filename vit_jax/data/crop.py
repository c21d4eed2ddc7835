"""Random crops of large images, cut while they are decoded: from all their pixels, not from what a resize left."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from vit_jax.data import decoding, resizing

ATTEMPTS = 10  # to draw a part that fits


@dataclass(frozen=True)
class RandomCrop:
    """A random part of one image, at the model's input size.

    The distribution is that of `augment.random_resized_crop`: area and aspect (width : height) as given, each position
    equally likely; if none of 10 draws fits, as much of the middle as the aspects allow. What is drawn is a function of
    (seed, step, row in the batch) alone: see `at`.
    """

    size: tuple[int, int]  # h, w
    channels: int
    area: tuple[float, ...]  # smallest and largest fraction of the image's
    aspect: tuple[float, float]
    interpolation: resizing.Interpolation = "bilinear"
    draw: tuple[int, int, int] = (0, 0, 0)  # seed, step, row

    def at(self, seed: int, step: int, row: int) -> "RandomCrop":
        """The crop of the image in one row of a step's batch."""
        return replace(self, draw=(seed, step, row))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels)

    def __call__(self, encoded: bytes | np.ndarray) -> UInt8[np.ndarray, "h w c"]:
        """The part, decoded and brought to its size; a JPEG decoder reduces what is several times too large.

        Parts of 160-pixel photos, the smallest that are reduced, differ by 0.6 to 0.8 levels of 255 in the mean then,
        and by 18 at most (with a `DRAFT_MARGIN` of 1: by 1.5 to 1.8, and 51).
        """
        return decoding.decode_part(encoded, self.channels, self.part, self.size, self.interpolation)

    def mask(self, encoded: bytes | np.ndarray) -> UInt8[np.ndarray, "h w"]:
        """The same part of the image's mask; of each pixel's place the nearest class."""
        mask = decoding.decode_mask(encoded)
        top, left, height, width = map(float, self.part(mask.shape))
        return resizing.nearest(mask, self.size, (left, top, left + width, top + height))

    def part(self, shape: tuple[int, int]) -> decoding.Part:
        """What is taken of an image of this (h, w), in whole pixels."""
        seed, step, row = self.draw
        # The counter keeps these draws apart from those of `batching.epoch_order`, whose key is alike.
        rng = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, row, 1]))
        (down, across), *attempts = rng.random((1 + ATTEMPTS, 2)).tolist()
        (small, large), (narrow, wide) = self.area, map(math.log, self.aspect)
        for share, shift in attempts:
            area = (small + (large - small) * share) * shape[0] * shape[1]
            ratio = math.exp(narrow + (wide - narrow) * shift)
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= shape[0] and 0 < width <= shape[1]:
                return int(down * (shape[0] - height + 1)), int(across * (shape[1] - width + 1)), height, width
        return self._middle(shape)

    def _middle(self, shape: tuple[int, int]) -> decoding.Part:
        narrow, wide = self.aspect
        height, width = (
            min(shape[0], max(1, round(shape[1] / narrow))),
            min(shape[1], max(1, round(shape[0] * wide))),
        )
        return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width
