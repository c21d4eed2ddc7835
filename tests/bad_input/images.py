"""Images that are damaged, disguised or strange."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bad_input.case import READ, Case
from tests.data.images import encoded, photo
from vit_jax.data import Preprocessing
from vit_jax.data.files import find_images, read_images

VIEW = Preprocessing((4, 5), "crop", 3)
PIXELS = photo(40, 48)
# Those that Pillow writes and reads; SPIDER has floats alone. A Pillow that lacks one skips its cases.
FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP", "PCX", "PNG", "PPM"),
    *("QOI", "SGI", "TGA", "TIFF", "WEBP", "XBM"),
)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B")


def of_file(path: Path | str) -> str | None:
    """What is wrong with an image file, by which predictions leave it out."""
    [(good, images, broken)] = read_images(find_images([str(path)]), VIEW, 8, 1)
    assert images.shape == (len(good), *VIEW.shape) and images.dtype == np.uint8
    assert len(good) + len(broken) == 1
    return broken.get(0)


def named(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], str | None]:
    def door(folder: Path) -> str | None:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        return of_file(path)

    return door


def in_mode(mode: str) -> Image.Image:
    image = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]), "RGBA")
    if mode in ("F", "I", "I;16", "I;16B"):
        return Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).convert(mode)
    return image.convert("RGB" if mode in ("LAB", "HSV", "CMYK", "YCbCr", "P", "1") else "RGBA").convert(mode)


def saved(kind: str) -> dict[str, bytes]:
    """The files of a format, by the modes that it can hold; icons of few pixels."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    found = {}
    for mode in MODES:
        file = io.BytesIO()
        try:
            in_mode(mode).resize((16, 16) if kind == "ICNS" else (48, 40)).save(file, kind)
        except (OSError, ValueError, KeyError):
            continue
        if (kind, mode) == ("ICNS", "P"):  # Pillow does not read what it writes
            continue
        found[mode] = file.getvalue()
    return found


def every_mode(kind: str) -> Callable[[Path], str | None]:
    """Reads a format in each mode; none but floating-point pixels, which have no range, may be refused."""

    def door(folder: Path) -> str | None:
        refused = {}
        for mode, content in saved(kind).items():
            if fault := named(f"{mode.replace(';', '')}.{kind}", content)(folder):
                refused[mode] = fault
        assert all("floating-point pixels" in fault for fault in refused.values()), refused
        return None

    return door


def first_half(kind: str) -> Callable[[Path], str | None]:
    def door(folder: Path) -> str | None:
        content = next(content for mode, content in saved(kind).items() if mode in ("RGB", "1", "P", "L"))
        return named(f"x.{kind}", content[: len(content) // 2])(folder)

    return door


def png(width: int, height: int, *, body: bytes = b"", crc: int = 0) -> bytes:
    """A PNG whose header says so; `crc` is added to the header's checksum."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes, off: int = 0) -> bytes:
        check = (zlib.crc32(kind + content) + off) & 0xFFFFFFFF
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    parts = [chunk(b"IHDR", header, crc), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)) for i in range(4)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=50)
    return file.getvalue()


def with_exif(content: bytes) -> bytes:
    return encoded(PIXELS, "JPEG", exif=b"Exif\0\0" + content)


def jpeg(**options: object) -> bytes:
    return encoded(PIXELS, "JPEG", **options)


def wide(width: int, height: int) -> Callable[[], bytes]:
    return lambda: encoded(Image.new("L", (width, height)), "PNG")


def linked(to: str) -> Callable[[Path], str | None]:
    def door(folder: Path) -> str | None:
        (folder / "x.png").symlink_to(to)
        return of_file(folder / "x.png")

    return door


def long_path(folder: Path) -> str | None:
    return of_file(folder / ("a" * 5000))


def at_home(folder: Path) -> str | None:
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(folder)
    try:
        (folder / "my photo.png").write_bytes(encoded(PIXELS))
        return of_file("~/my photo.png")
    finally:
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)


def not_utf8(folder: Path) -> str | None:
    path = os.path.join(os.fsencode(folder), b"caf\xe9 \xff.png")
    with open(path, "wb") as file:
        file.write(encoded(PIXELS))
    return of_file(os.fsdecode(path))


def missing(folder: Path) -> str | None:
    return of_file(folder / "no.png")


TIFF_BOMB = struct.pack("<2sHIH", b"II", 42, 8, 2) + b"".join(
    struct.pack("<HHII", tag, 4, 1, 100_000) for tag in (256, 257)
)

CASES = [
    *(Case("Formats", f"{kind}, in each mode that it holds (but floats)", READ, every_mode(kind)) for kind in FORMATS),
    *(Case("Truncated files", f"{kind}, its first half", "", first_half(kind)) for kind in FORMATS),
    Case("Image files", "an empty file", "the file is empty", named("x.png", b"")),
    Case("Image files", "one byte", "not an image", named("x.jpg", b"\xff")),
    Case("Image files", "1 x 1 pixel", READ, named("x.png", lambda: encoded(PIXELS[:1, :1]))),
    Case("Image files", "20,000 x 1 pixels", READ, named("x.png", wide(20_000, 1))),
    Case("Image files", "1 x 20,000 pixels", READ, named("x.png", wide(1, 20_000))),
    Case(
        "Image files", "20,000 x 20,000 pixels by its header", "exceeds limit of", named("x.png", png(20_000, 20_000))
    ),
    Case(
        "Image files", "2,147,483,647 pixels wide by its header", "exceeds limit of", named("x.png", png(2**31 - 1, 9))
    ),
    Case("Image files", "a TIFF of 100,000 x 100,000 pixels", "", named("x.tif", TIFF_BOMB)),
    Case("Image files", "0 x 0 pixels by its header", "", named("x.png", png(0, 0))),
    Case("Image files", "a wrong checksum in the header", "", named("x.png", png(4, 4, body=bytes(52), crc=1))),
    Case("Image files", "fewer pixels than its header says", "truncated", named("x.png", png(64, 64, body=bytes(99)))),
    Case("Image files", "a PNG called .jpg", READ, named("x.jpg", encoded(PIXELS))),
    Case("Image files", "a JPEG called .png", READ, named("x.png", jpeg())),
    Case("Image files", "an image without an extension, given by name", READ, named("photo", encoded(PIXELS))),
    Case("Image files", "a web page called .jpg", "not an image", named("x.jpg", b"<!doctype html><p>404")),
    Case(
        "Image files",
        "an SVG called .png",
        "not an image",
        named("x.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ),
    Case("Image files", "text called .bmp", "not an image", named("x.bmp", b"BMW is a car")),
    Case("Image files", "random bytes", "not an image", named("x.webp", bytes(range(256)) * 9)),
    Case("Image files", "zeros", "not an image", named("x.gif", bytes(4096))),
    Case("Image files", "a JPEG with bytes behind its end", READ, named("x.jpg", jpeg() + b"garbage" * 99)),
    Case("Image files", "a JPEG of four inks (CMYK)", READ, named("x.jpg", encoded(in_mode("CMYK"), "JPEG"))),
    Case("Image files", "a progressive JPEG", READ, named("x.jpg", jpeg(progressive=True))),
    Case("Image files", "an animated GIF: its first picture", READ, named("x.gif", animated("GIF"))),
    Case("Image files", "an animated PNG: its first picture", READ, named("x.png", animated("PNG"))),
    Case("Image files", "an animated WebP: its first picture", READ, named("x.webp", animated("WEBP"))),
    Case("Image files", "a TIFF of several pages: the first", READ, named("x.tif", animated("TIFF"))),
    *(
        Case("Image files", f"turned by EXIF, orientation {n}", READ, named("x.jpg", jpeg(orientation=n)))
        for n in (3, 6, 8)
    ),
    Case("Image files", "an orientation that there is not (9)", READ, named("x.jpg", jpeg(orientation=9))),
    Case("Image files", "a damaged EXIF block", READ, named("x.jpg", with_exif(b"MM\0*\0\0\0\x08\xff\xff\x01"))),
    Case("Image files", "an EXIF block of one byte", READ, named("x.jpg", with_exif(b"M"))),
    Case("Image files", "16 bits of grey", READ, named("x.png", encoded(in_mode("I;16")))),
    Case(
        "Image files", "floating-point pixels", "have no defined range", named("x.tif", encoded(in_mode("F"), "TIFF"))
    ),
    Case("Image files", "a palette with transparency", READ, named("x.gif", encoded(in_mode("RGBA"), "GIF"))),
    Case("Paths", "a name with blanks in the home folder (~)", READ, at_home),
    Case("Paths", "emoji and accents in the name", READ, named("ü 😀 名.png", encoded(PIXELS))),
    Case("Paths", "a name that is not UTF-8", READ, not_utf8),
    Case("Paths", "a name of 255 bytes", READ, named("a" * 251 + ".png", encoded(PIXELS))),
    Case("Paths", "a path of 5,000 bytes", "is not there", long_path),
    Case("Paths", "a file that is not there", "is not there; expected an image file or a folder", missing),
    Case("Paths", "a link to nothing", "is not there", linked("nowhere.png")),
    Case("Paths", "a link to itself", "is not there", linked("x.png")),
]
