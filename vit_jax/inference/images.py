"""Images in whatever form a caller has them, as batches at the size that a model wants."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vit_jax.command import UserError
from vit_jax.data import Preprocessing
from vit_jax.data.files import find_images, read_images

# A file, a Pillow image of any mode, or an array uint8 [h w], [h w 1] or [h w 3].
Picture: TypeAlias = str | Path | Image.Image | np.ndarray
# One file or image, a folder (searched at any depth), an array uint8 [n h w c], or a list of files, images and arrays.
Images: TypeAlias = Picture | Sequence[Picture]
Pictures: TypeAlias = Sequence[Picture] | np.ndarray  # one entry for each image

# Pillow's modes that a file keeps as they are; TIFF has those of 32 bits.
KEPT_AS = {**dict.fromkeys(("1", "L", "LA", "I;16", "P", "RGB", "RGBA"), "PNG"), "I": "TIFF", "F": "TIFF"}


@dataclass(frozen=True)
class Batch:
    """Some images on their way to a model."""

    images: UInt8[np.ndarray, "n h w c"]
    files: tuple[str, ...] = ()  # one for each image; () where they did not come from files
    broken: dict[str, str] = field(default_factory=dict)  # files that are left out -> what is wrong with them


def one_by_one(images: Images) -> Pictures:
    """One entry for each image: of a folder its files. Raises `UserError` where there is none."""
    if isinstance(images, str | Path):
        return find_images([str(images)])
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(
            f"images are {images.dtype}{list(images.shape)}, expected uint8[n h w c]; of one image give image[None]"
        )
    return images


def all_files(pictures: Pictures) -> bool:
    """Whether every image is a file."""
    return not isinstance(pictures, np.ndarray) and all(isinstance(picture, str | Path) for picture in pictures)


def batches(
    pictures: Pictures, preprocessing: Preprocessing, batch_size: int, threads: int, *, draft: bool = False
) -> Iterator[Batch]:
    """The images in order, `batch_size` in every batch but the last, at the size of the preprocessing.

    Files are decoded ahead on `threads` threads; broken ones are left out, and named in their batch. Arrays that have
    the preprocessing's height and width stay as they are, but for their channels. `draft`: see `Preprocessing`.
    """
    if all_files(pictures):
        names = [str(picture) for picture in pictures]
        for good, images, broken in read_images(names, preprocessing, batch_size, threads, draft=draft):
            yield Batch(images, tuple(names[i] for i in good), {names[i]: fault for i, fault in broken.items()})
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            yield Batch(np.stack(list(pool.map(lambda picture: _pixels(picture, preprocessing), part))))


def _pixels(picture: Picture, preprocessing: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    try:
        if isinstance(picture, str | Path):
            return preprocessing(Path(picture).read_bytes())
        if isinstance(picture, Image.Image):
            return preprocessing(_encoded(picture))
        if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
            fits = picture.shape[:2] == preprocessing.size
            whole = dataclasses.replace(preprocessing, crop_fraction=1.0) if fits else preprocessing
            return whole(picture[..., None] if picture.ndim == 2 else picture)
    except (OSError, ValueError) as fault:
        raise UserError(f"{_named(picture)} cannot be used as an image: {fault}") from fault
    raise UserError(f"{_named(picture)} is no image: expected a file, a Pillow image or an array uint8[h w c]")


def _encoded(image: Image.Image) -> bytes:
    """As a file, so that its mode, its transparency and its orientation mean what they mean in any other file."""
    upright, file = ImageOps.exif_transpose(image), io.BytesIO()
    kept = upright if upright.mode in KEPT_AS else upright.convert("RGB")
    kept.save(file, KEPT_AS[kept.mode], compress_level=0)
    return file.getvalue()


def _named(picture: object) -> str:
    if isinstance(picture, np.ndarray):
        return f"{picture.dtype}{list(picture.shape)}"
    return str(picture)
