"""Masks as pictures: PNG files with a palette, and overlays on the image."""

import colorsys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.augment import VOID

GOLDEN = 0.618034  # turns of the colour circle from class to class: any few neighbours lie far apart


def palette(k: int) -> UInt8[np.ndarray, "256 3"]:
    """A colour for each of k classes; black for all other values, `VOID` too."""
    colors = np.zeros((VOID + 1, 3), np.uint8)
    for i in range(k):
        rgb = colorsys.hsv_to_rgb((0.58 + i * GOLDEN) % 1, 0.5 + 0.4 * (i % 2), 0.95 - 0.2 * (i % 3))
        colors[i] = np.round(np.multiply(rgb, 255))
    return colors


def coloured(masks: UInt8[np.ndarray, "*n h w"], k: int) -> UInt8[np.ndarray, "*n h w 3"]:
    """The masks in the colours of their classes."""
    return palette(k)[masks]


def save_mask(path: Path, mask: UInt8[np.ndarray, "h w"], k: int) -> None:
    """Writes a PNG whose values are the classes, and whose palette shows them."""
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.reshape(-1))
    image.putpalette(palette(k).reshape(-1).tolist())
    image.save(path)


def overlay(
    image: UInt8[np.ndarray, "h w c"], mask: UInt8[np.ndarray, "h w"], k: int, share: float = 0.55
) -> UInt8[np.ndarray, "h w 3"]:
    """The image under the colours of its classes, which have this share; void parts stay as they are."""
    rgb = np.broadcast_to(image, (*mask.shape, 3)).astype(np.float32)
    mixed = (1 - share) * rgb + share * coloured(mask, k)
    return np.round(np.where((mask == VOID)[..., None], rgb, mixed)).astype(np.uint8)
