"""Opens a data set by name; `register` adds a kind of data set."""

import os
from collections.abc import Callable
from pathlib import Path

from vit_jax.command import UserError
from vit_jax.data.sources import arrays, folder, huggingface, masks, tfds, tfds_masks, webdataset
from vit_jax.data.sources.dataset import Dataset, Example, MissingDataset, Rows, Source, read_labels
from vit_jax.names import claim

__all__ = ["Dataset", "Example", "MissingDataset", "Rows", "Source", "open_dataset", "read_labels", "register"]

Opener = Callable[[str, Path], Dataset]
_OPENERS: list[tuple[Callable[[str], bool], Opener]] = []


def register(names: str | Callable[[str], bool], opener: Opener) -> None:
    """Has `opener(name, data_dir)` open the data sets called `names` or `names`/..., or for which `names(name)` holds.

    Of several that fit, the one registered last is asked. Raises `UserError` for a name that is taken.
    """
    if isinstance(names, str):
        others = (other for fits, other in _OPENERS[1:] if fits(names))  # the first takes any name
        claim("data set", names, opener, next(others, None))
    fits = (lambda name: name.split("/")[0] == names) if isinstance(names, str) else names
    _OPENERS.append((fits, opener))


def open_dataset(name: str, data_dir: Path) -> Dataset:
    """The data set called `name`, its metadata read and no image yet; `data_dir` holds the prepared TFDS data sets.

    `digits` and `synthetic[/HxWxC/CLASSES/TRAIN_IMAGES]` are built in. A name that starts with `./`, `../`, `/` or
    `~` is a folder of images. Any other is looked up in `data_dir`, then taken as a folder where one of that name
    exists. Folders `images/` and `masks/` in it make it a data set with masks, which may lie in `data_dir`, too;
    `masks/NAME` is a TFDS data set with its masks instead of its labels; `webdataset/PLACE` are tar shards, and
    `hf/NAME` is a data set of Hugging Face. Raises `MissingDataset`, or `UserError` for a
    data set that is there but cannot be used.
    """
    if not name:
        raise UserError("the data set's name is empty; give one, such as digits, cifar10 or ./folder_of_images")
    opener = next(opener for fits, opener in reversed(_OPENERS) if fits(name))
    return opener(name, data_dir)


def _open_prepared_or_folder(name: str, data_dir: Path) -> Dataset:
    if root := masks.find_masks(name, data_dir):
        return masks.open_masks(name, root)
    try:
        return tfds.open_prepared(name, data_dir)
    except MissingDataset:
        if os.path.isdir(name):
            return folder.open_folder(name)
        raise


def _open_folder(name: str, data_dir: Path) -> Dataset:
    root = masks.find_masks(name, data_dir)
    return masks.open_masks(name, root) if root else folder.open_folder(name)


register(lambda name: True, _open_prepared_or_folder)
register(
    lambda name: name in (".", "..") or name.startswith(("./", "../", "/", "~")),
    _open_folder,
)
register("masks", lambda name, data_dir: tfds_masks.open_prepared_masks(name.removeprefix("masks/"), data_dir))
register("webdataset", webdataset.open_webdataset)
register("hf", huggingface.open_huggingface)
register("synthetic", lambda name, data_dir: arrays.open_synthetic(name))
register("digits".__eq__, lambda name, data_dir: arrays.open_digits())
