"""JPEG files by libjpeg-turbo alone: the very pixels that Pillow gives, in less than half of its time.

Upright grey and colour files, which nearly all are. Everything else, and what libjpeg-turbo complains about, is for
Pillow to read or to refuse: these functions return None then.
"""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image

_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # of a file -> of its pixels
_MAY_TURN = (b"Exif\0\0", b"tiff:Orientation")  # without these, no metadata turn the image


def shape(encoded: bytes) -> tuple[int, int] | None:
    """The (h, w) of an upright JPEG file, from its header."""
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    try:
        if any(mark in encoded for mark in _MAY_TURN) and orientation(Image.open(io.BytesIO(encoded))) != 1:
            return None
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except Exception:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error ...
        return None
    too_large = height * width > (Image.MAX_IMAGE_PIXELS or np.inf)  # Pillow warns, or refuses
    return None if too_large or colours not in _COLOURS else (height, width)


def orientation(image: Image.Image) -> int:
    """As EXIF says, 1 (upright) to 8: from 5 on, rows and columns change places."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def divisor(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """How many times smaller a decoder may make an image of `size` (h, w) as it goes: 8, 4, 2, or 1 for not at all."""
    return next((d for d in (8, 4, 2) if all(a // d >= b for a, b in zip(size, at_least, strict=True))), 1)


def decode(encoded: bytes, divisor: int = 1) -> UInt8[np.ndarray, "h w c"] | None:
    """The pixels of a file whose `shape` is known, at 1 / `divisor` of its size, rounded up; c as stored, 1 or 3."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        wanted = -(-height // divisor), -(-width // divisor)
        return simplejpeg.decode_jpeg(encoded, _COLOURS[colours], min_height=wanted[0], min_width=wanted[1])
    except ValueError:
        return None
