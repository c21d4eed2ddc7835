"""Resizes images and masks on the host: where a part of an image comes to lie, and Pillow's filters."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_MOST_PIXELS = 2**26  # of a scaled image that is then cut: that of a strip could fill the memory


def resize(
    image: UInt8[np.ndarray, "h w c"],
    size: tuple[int, int],
    how: Literal["stretch", "crop"],
    crop_fraction: float = 1.0,
    interpolation: Interpolation = "bilinear",
    extent: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "_ _ c"]:
    """The image at `size` (h, w), by Pillow's filters, which antialias; the same array where it fits already.

    "stretch" ignores the aspect: scales to size / crop_fraction. "crop" keeps it: scales until the image just covers
    size / crop_fraction. The centre is then taken. With a crop fraction or bicubic "crop" gives the very pixels of the
    code that published weights are evaluated with (Hugging Face's with Pillow; timm and torchvision may cut one pixel
    further down or right).
    `extent`: the (h, w) that the image fills, of `decode_reduced`.
    """
    extent = extent or (float(image.shape[0]), float(image.shape[1]))
    if extent == size and crop_fraction == 1:
        return image
    resampling = Image.Resampling[interpolation.upper()]
    box, whole = _box(extent, size, how, crop_fraction, interpolation)
    if whole:
        y, x = ((long - wanted) // 2 for long, wanted in zip(whole, size, strict=True))
        scaled = as_image(image).resize(whole[::-1], resampling, (0, 0, extent[1], extent[0]))
        return from_image(scaled.crop((x, y, x + size[1], y + size[0])))
    left, top, right, bottom = box
    if all(edge.is_integer() for edge in box) and (bottom - top, right - left) == size:
        return image[int(top) : int(bottom), int(left) : int(right)]
    return from_image(as_image(image).resize(size[::-1], resampling, box))


def resize_mask(
    mask: UInt8[np.ndarray, "h w"],
    size: tuple[int, int],
    how: Literal["stretch", "crop"],
    crop_fraction: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "_ _"]:
    """The mask at `size`, each pixel the nearest one of the place where `resize` puts the image's."""
    height, width = map(float, mask.shape)
    return nearest(mask, size, _box((height, width), size, how, crop_fraction, interpolation)[0])


def nearest(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int], box: Box) -> UInt8[np.ndarray, "_ _"]:
    """The part of the mask in the box, at `size` (h, w)."""
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST, box))


def covering(size: tuple[int, int], crop_fraction: float) -> tuple[int, int]:
    """The (h, w) that the image is scaled to cover, of which `size` is the centre."""
    height, width = size
    # A fraction that was read from a file as size / covering may lose the last bit.
    return int(height / crop_fraction + 1e-6), int(width / crop_fraction + 1e-6)


def _box(
    given: tuple[float, float], size: tuple[int, int], how: str, fraction: float, interpolation: Interpolation
) -> tuple[Box, tuple[int, int] | None]:
    """The part of the image that is seen, and the (h, w) to scale the whole to first; None: resize the part alone.

    Where the part is resized at once, bilinear pixels are those of scaling and cutting, within one level; Pillow's
    bicubic ones are not, as it may filter rows before columns then.
    """
    covered = covering(size, fraction)
    whole = covered if how == "stretch" else _scaled(given, covered)
    small = whole[0] * whole[1] <= _MOST_PIXELS
    at_once = how == "crop" and not (small and (fraction < 1 or interpolation != "bilinear"))
    if at_once:  # of the longer side the fraction is rounded, not dropped
        scale = max(wanted / side for wanted, side in zip(covered, given, strict=True))
        height, width = (max(wanted, round(side * scale)) for wanted, side in zip(covered, given, strict=True))
        whole = height, width
    (top, bottom), (left, right) = (
        ((long - wanted) // 2 * side / long, ((long - wanted) // 2 + wanted) * side / long)
        for long, wanted, side in zip(whole, size, given, strict=True)
    )
    return (left, top, right, bottom), None if at_once else whole


def _scaled(given: tuple[float, float], covered: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) of the whole image when it just covers `covered`; of the longer side the fraction is dropped."""
    _, axis = max((wanted / side, axis) for axis, (wanted, side) in enumerate(zip(covered, given, strict=True)))
    height, width = given
    return int(covered[axis] * height / given[axis]), int(covered[axis] * width / given[axis])


def as_image(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Pillow's image of these pixels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def from_image(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a grey or colour image."""
    return np.asarray(image).reshape(image.height, image.width, -1)
