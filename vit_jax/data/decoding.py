"""Decodes images and masks on the host: from a file's bytes to uint8 [h w c], or [h w]."""

import contextlib
import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vit_jax.data import jpeg
from vit_jax.data.resizing import Box, Interpolation, as_image, from_image

with contextlib.suppress(ImportError):  # photos of phones (.heic), where the package for them is installed
    from pillow_heif import register_heif_opener

    register_heif_opener()

VOID = 255  # in a mask: no class
DRAFT_MARGIN = 2  # times a wanted size: what a JPEG decoder that reduces an image leaves at least
Part = tuple[int, int, int, int]  # top, left, height, width

# Pillow's modes that hold no colour. 16-bit grey comes as "I;16" (any byte order), or as "I" from PGM and TIFF files.
_GREY_16_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", "La", *_GREY_16_BIT)
_EXIF_BOX = b"JpgTiffExif->JP2"  # the UUID of the box with the EXIF block of a JPEG 2000 file
_REDUCIBLE = ("JPEG", "MPO")  # while they are decoded


class BrokenImage(ValueError):
    """The bytes are no image, an incomplete one, or one of a kind that has no 8-bit form."""


def decode(encoded: bytes | UInt8[np.ndarray, "h w _"], channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The image upright, its transparent parts on white, 16-bit grey scaled to 8; of an animation the first frame.

    `channels`: 1 grey, 3 RGB (grey repeated), 0 as stored (1 for grey images, else 3). An array is taken as decoded
    and returned without a copy where its channels fit. Raises `BrokenImage`, never returns half an image.
    """
    if channels not in (0, 1, 3):
        raise ValueError(f"{channels=}; expected 0 (as stored), 1 (grey) or 3 (RGB)")
    image = encoded if isinstance(encoded, np.ndarray) else _decode_file(encoded)[0]
    return _with_channels(image, channels)


def decode_reduced(
    encoded: bytes, channels: int, at_least: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w c"], tuple[float, float]]:
    """`decode`, but a JPEG file comes at 1/2, 1/4 or 1/8 of its size where that is no smaller than `at_least` (h, w).

    Also the (h, w) that the image fills: of a reduced one, part of the last row and column may lie outside.
    """
    image, extent = _decode_file(encoded, at_least)
    return _with_channels(image, channels), extent


def decode_part(
    encoded: bytes | UInt8[np.ndarray, "h w _"],
    channels: int,
    choose: Callable[[tuple[int, int]], Part],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "_ _ c"]:
    """`decode`, a cut, and a resize to `size` (h, w), but only the part that is cut is converted.

    `choose` gets the (h, w) of the upright image and says what is cut; it may be asked twice. A JPEG file is decoded
    at 1/2, 1/4 or 1/8 of its size where at least `DRAFT_MARGIN` times `size` then remains of the part. Raises
    `BrokenImage`.
    """
    if isinstance(encoded, np.ndarray):
        top, left, height, width = choose(encoded.shape[:2])
        part, box = encoded[top : top + height, left : left + width], (0.0, 0.0, float(width), float(height))
    else:
        part, box = _decode_part(encoded, choose, size)
    part = _with_channels(part, channels)
    return from_image(as_image(part).resize(size[::-1], Image.Resampling[interpolation.upper()], box))


def decode_mask(encoded: bytes | UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel: the value of a grey image, the entry of one with a palette, 0 or 1 of one bit.

    An array is returned as it is. Raises `BrokenImage`.
    """
    if isinstance(encoded, np.ndarray):
        return encoded
    with _opened(encoded) as image:
        if image.mode not in ("1", "L", "P"):
            raise BrokenImage(
                f"a mask of mode {image.mode}; expected 8-bit grey values or a palette, one entry a class"
            )
        return np.asarray(_upright(image)).astype(np.uint8)


def header_shape(file: Path | bytes) -> tuple[int, int, int]:
    """The (h, w, c) that `decode` will return as stored, from a file's header alone; raises `BrokenImage`."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            _note_exif(image, file)
            width, height = image.size
            # A PNG may carry its EXIF block behind the pixels; getexif would decode the image to reach it.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.format != "TIFF" and jpeg.orientation(image) >= 5
            shape = (width, height) if turned else (height, width)
            return *shape, 1 if image.mode in _GREY else 3
    except Exception as fault:
        raise BrokenImage(_reason(fault) if isinstance(file, bytes) else f"{file}: {_reason(fault)}") from fault


def _decode_file(
    encoded: bytes, at_least: tuple[int, int] | None = None
) -> tuple[UInt8[np.ndarray, "h w c"], tuple[float, float]]:
    if size := jpeg.shape(encoded):
        divisor = jpeg.divisor(size, at_least) if at_least else 1
        pixels = jpeg.decode(encoded, divisor)
        if pixels is not None:
            return pixels, (size[0] / divisor, size[1] / divisor)
    with _opened(encoded) as image:
        extent = _reduce(image, at_least) if at_least else None
        pixels = _pixels(_upright(image))
        return pixels, extent or (float(pixels.shape[0]), float(pixels.shape[1]))


def _decode_part(
    encoded: bytes, choose: Callable[[tuple[int, int]], Part], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w c"], Box]:
    """The whole pixels around the part, and the box (left, top, right, bottom) in them that is the part."""
    if whole := jpeg.shape(encoded):
        part = choose(whole)
        divisor = jpeg.divisor(whole, _at_least(size, whole, part))
        pixels = jpeg.decode(encoded, divisor)
        if pixels is not None:
            (x0, y0, x1, y1), box = _around(part, (1 / divisor, 1 / divisor), pixels.shape[:2])
            return pixels[y0:y1, x0:x1], box
    with _opened(encoded) as image:
        extent = None
        if image.format in _REDUCIBLE:  # and then the header tells how the image lies
            whole = image.size[::-1] if jpeg.orientation(image) < 5 else image.size
            extent = _reduce(image, _at_least(size, whole, choose(whole)))
        image = _upright(image)
        given = image.size[::-1]
        whole = whole or given
        part = choose(whole)
        down, across = (a / b for a, b in zip(extent or given, whole, strict=True))
        around, box = _around(part, (down, across), given)
        return _pixels(image.crop(around)), box


def _at_least(size: tuple[int, int], whole: tuple[int, int], part: Part) -> tuple[int, int]:
    """The (h, w) that the whole image must keep for `DRAFT_MARGIN` times `size` to remain of the part."""
    height, width = (DRAFT_MARGIN * a * b / c for a, b, c in zip(size, whole, part[2:], strict=True))
    return math.ceil(height), math.ceil(width)


def _around(part: Part, scale: tuple[float, float], given: tuple[int, int]) -> tuple[tuple[int, int, int, int], Box]:
    """Whole pixels around a part of an image that was scaled (down, across) to `given`, and the part's box in them.

    Both as (left, top, right, bottom).
    """
    (top, left, height, width), (down, across) = part, scale
    x, y, right, bottom = left * across, top * down, (left + width) * across, (top + height) * down
    around = (int(x), int(y), min(given[1], math.ceil(right)), min(given[0], math.ceil(bottom)))
    return around, (x - int(x), y - int(y), right - int(x), bottom - int(y))


@contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            _note_exif(image, encoded)
            yield image
    except BrokenImage:
        raise
    except Exception as fault:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise BrokenImage(_reason(fault) if encoded else "the file is empty") from fault


def _note_exif(image: Image.Image, file: Path | bytes) -> None:
    """Finds the EXIF block of a JPEG 2000 file, which Pillow does not: it lies in a box of its own."""
    if image.format != "JPEG2000" or "exif" in image.info:
        return
    encoded = file if isinstance(file, bytes) else file.read_bytes()
    at = 0
    while at + 8 <= len(encoded):
        size, kind = struct.unpack(">I4s", encoded[at : at + 8])
        start = at + 8
        if size == 1:
            size, start = int.from_bytes(encoded[start : start + 8], "big"), start + 8
        end = len(encoded) if size == 0 else at + size
        if kind == b"uuid" and encoded[start : start + 16] == _EXIF_BOX:
            image.info["exif"] = b"Exif\0\0" + encoded[start + 16 : end]
            return
        if end <= at:  # damaged, or a bare codestream, which has no boxes
            return
        at = end


def _reduce(image: Image.Image, at_least: tuple[int, int]) -> tuple[float, float] | None:
    """Has a JPEG decoder reduce the image as it goes; the (h, w) that the image then fills, None where that is all.

    A turned image whose sides are no multiples stays whole: its incomplete row or column would come first.
    """
    if image.format not in _REDUCIBLE:
        return None
    orientation = jpeg.orientation(image)
    height, width = at_least if orientation < 5 else at_least[::-1]
    size = stored_width, stored_height = image.size
    largest = jpeg.divisor((stored_height, stored_width), (height, width))
    for divisor in (d for d in (8, 4, 2) if d <= largest):
        whole = all(side % divisor == 0 for side in size)
        if whole or orientation == 1:
            image.draft(None, (stored_width // divisor, stored_height // divisor))
            return None if whole else (stored_height / divisor, stored_width / divisor)
    return None


def _upright(image: Image.Image) -> Image.Image:
    """The image loaded, and turned as EXIF says."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a loaded image of any mode, grey modes with one channel, all others with three."""
    if image.mode in _GREY_16_BIT:
        values = np.asarray(image)  # 0..65535
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImage(f"grey values {values.min()}..{values.max()} exceed 16 bits")
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise BrokenImage("floating-point pixels have no defined range; store the image with 8 or 16 bits")
    grey = image.mode in _GREY
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
        return np.asarray(flat)[..., :1] if grey else np.asarray(flat)
    wanted = "L" if grey else "RGB"
    pixels = np.asarray(image if image.mode == wanted else image.convert(wanted))
    return pixels[..., None] if grey else pixels


def _with_channels(image: UInt8[np.ndarray, "h w _"], channels: int) -> UInt8[np.ndarray, "h w c"]:
    given = image.shape[-1]
    if given not in (1, 3):
        raise ValueError(f"an image array has 1 or 3 channels, not {given}: shape {image.shape}")
    if channels in (0, given):
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    return from_image(as_image(image).convert("L"))


def _reason(fault: Exception) -> str:
    if isinstance(fault, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    return str(fault) or type(fault).__name__
