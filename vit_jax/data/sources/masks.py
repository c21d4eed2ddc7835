"""A folder of images with masks as a data set: [train|val|test/]images/NAME.jpg with masks/NAME.png.

`classes.json`, beside these folders, may name the classes, and say what the masks' values mean:

    {"names": ["sky", "road"], "colors": [[128, 128, 128], [128, 64, 128]], "ignore": 255}

A mask is a grey or a palette image whose values are the classes, or an image in the colours of `classes.json`. The
value `ignore`, by default 255, and a colour that is not in the list belong to no class.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.sources import folder
from vit_jax.data.sources.dataset import Dataset, Example

CLASSES_FILE = "classes.json"
_MASKS_READ = 256  # evenly spaced, to count the classes where no file names them
_CLASSES_AT_MOST = 255  # 255 itself belongs to none


@dataclass(frozen=True)
class Classes:
    """What the values of a data set's masks mean."""

    names: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()  # one for each name; (): masks hold numbers
    ignore: int = decoding.VOID

    def decode(self, encoded: bytes) -> UInt8[np.ndarray, "h w"]:
        """The class of each pixel, `decoding.VOID` where it has none; raises `BrokenImage`."""
        mask = self._from_colors(encoded) if _is_coloured(encoded) else decoding.decode_mask(encoded)
        if self.ignore != decoding.VOID:
            mask = np.where(mask == self.ignore, decoding.VOID, mask)
        return self.check(mask)

    def check(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The mask; raises `BrokenImage` if it has an unknown class, or none at all."""
        known = mask[mask != decoding.VOID]
        if not known.size:
            raise decoding.BrokenImage(
                "its mask is void everywhere, so that nothing can be learned or measured; remove the image, or let "
                "data.max_bad_fraction pass over it"
            )
        if self.names and known.max() >= len(self.names):
            raise decoding.BrokenImage(
                f"its mask has the value {known.max()}, but the {len(self.names)} classes are 0 to "
                f"{len(self.names) - 1}, and {self.ignore} is void; name all classes in {CLASSES_FILE}"
            )
        return mask

    def _from_colors(self, encoded: bytes) -> UInt8[np.ndarray, "h w"]:
        if not self.colors:
            raise decoding.BrokenImage(
                f'its mask is in colour (RGB): list the colour of each class under "colors" in {CLASSES_FILE}, or '
                "store class numbers as a grey or palette PNG"
            )
        pixels = decoding.decode(encoded, 3).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        codes = np.array([(r << 16) + (g << 8) + b for r, g, b in self.colors], np.int32)
        order = np.argsort(codes)
        place = np.minimum(np.searchsorted(codes[order], pixels), len(codes) - 1)
        return np.where(codes[order][place] == pixels, order[place], decoding.VOID).astype(np.uint8)


def _is_coloured(encoded: bytes) -> bool:
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.mode in ("RGB", "RGBA")
    except OSError:
        return False  # `decode_mask` says what is wrong


def read_classes(path: Path) -> Classes:
    """What a file `classes.json` says; without the file nothing is known. Raises `UserError` for one that is wrong."""
    if not path.is_file():
        return Classes()
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(map(str, content["names"]))
        colors = tuple((int(r), int(g), int(b)) for r, g, b in content.get("colors", ()))
        ignore = int(content.get("ignore", decoding.VOID))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(
            f'{path} cannot be read ({type(fault).__name__}: {fault}); expected {{"names": ["sky", ...]}}, and perhaps '
            '"colors": [[r, g, b], ...] and "ignore": 255'
        ) from fault
    if len(set(names)) < len(names) or not 2 <= len(names) <= _CLASSES_AT_MOST:
        raise UserError(f"{path} names {len(names)} classes; expected 2 to {_CLASSES_AT_MOST} different names")
    if colors and (len(colors) != len(names) or len(set(colors)) < len(colors)):
        raise UserError(
            f"{path} has {len(set(colors))} different colours for {len(names)} classes; give each class one of its own"
        )
    return Classes(names, colors, ignore)


def find_masks(name: str, data_dir: Path) -> Path | None:
    """The folder of this name, as it is or in `data_dir`, if it is one of images with masks."""
    for root in (Path(os.path.expanduser(name)), data_dir / name):
        if _pairs_in(root) or _pairs_in(root / "train"):
            return root
    return None


def _pairs_in(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "masks").is_dir()


def open_masks(name: str, root: Path) -> Dataset:
    """The images and masks below `root`; without train/ and test/ (or val/) folders a fifth becomes the test split.

    Images come in the order of a hash of their names, so that any slice of a split is a sample of it, of a video, too.
    Raises `UserError` for an image without a mask, and where the layout is another.
    """
    classes = read_classes(root / CLASSES_FILE)
    try:
        folders = {} if _pairs_in(root) else folder.split_folders(root)
        found = {split: _paired(path) for split, path in (folders or {"all": root}).items()}
    except OSError as fault:
        raise UserError(f"cannot read the folder {root}: {fault}") from fault
    if not folders:
        pairs = found["all"]
        test = max(1, (len(pairs) + 2) // 5)
        found = {"train": pairs[test:], "test": pairs[:test]}
    if empty := [split for split, pairs in found.items() if not pairs]:
        raise UserError(f"{root}: the split {empty[0]!r} has no image; expected images/NAME.jpg and masks/NAME.png")
    names = classes.names or _counted(classes, found["train"])
    classes = Classes(names, classes.colors, classes.ignore)
    shape = folder.image_shape(root, [str(image.relative_to(root)) for pairs in found.values() for image, _ in pairs])
    sizes = {split: len(pairs) for split, pairs in found.items()}
    return Dataset(name, names, shape, sizes, partial(_MaskSource, classes, found), fields=("image", "mask"))


Pairs = list[tuple[Path, Path]]  # image and mask


def _paired(path: Path) -> Pairs:
    """The images of a split with their masks, of the same name but for the extension."""
    masks = {Path(file).relative_to(path / "masks").with_suffix(""): Path(file) for file in _images(path / "masks")}
    images = {Path(file).relative_to(path / "images").with_suffix(""): Path(file) for file in _images(path / "images")}
    if lacking := sorted(set(images) - set(masks)):
        raise UserError(
            f"{images[lacking[0]]} has no mask: there is no {path / 'masks' / lacking[0]}.png; add it, or remove the "
            f"image ({len(lacking)} of {len(images)} lack one)"
        )
    order = sorted(images, key=lambda name: folder.hash_of(name.as_posix()))
    return [(images[name], masks[name]) for name in order]


def _images(path: Path) -> list[str]:
    return list(folder.images_below(path)) if path.is_dir() else []


def _counted(classes: Classes, pairs: Pairs) -> tuple[str, ...]:
    """Names for the values of some masks, those that no file names."""
    rows = np.unique(np.linspace(0, len(pairs) - 1, _MASKS_READ).astype(int))
    largest = 1
    for _, path in (pairs[row] for row in rows):
        try:
            mask = classes.decode(path.read_bytes())
        except decoding.BrokenImage as fault:
            raise UserError(f"{path}: {fault}") from fault
        largest = max(largest, int(mask[mask != decoding.VOID].max()))
    return tuple(f"class {value}" for value in range(largest + 1))


@dataclass(frozen=True)
class _MaskSource:
    classes: Classes
    splits: Mapping[str, Pairs]
    split: str

    def __len__(self) -> int:
        return len(self.splits[self.split])

    def read(self, index: int) -> Example:
        image, mask = self.splits[self.split][index]
        return {"image": image.read_bytes(), "mask": self.classes.decode(mask.read_bytes())}

    def describe(self, index: int) -> str:
        return str(self.splits[self.split][index][0])
