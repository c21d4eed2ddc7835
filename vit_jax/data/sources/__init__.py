"""Opens a data set by name: `digits`, `synthetic`, a folder of images, or a prepared TFDS ArrayRecord data set."""

import os
from pathlib import Path

from vit_jax.command import UserError
from vit_jax.data.sources import arrays, folder, tfds
from vit_jax.data.sources.dataset import Dataset, MissingDataset, Source, read_labels

__all__ = ["Dataset", "MissingDataset", "Source", "open_dataset", "read_labels"]


def open_dataset(name: str, data_dir: Path) -> Dataset:
    """The data set called `name`, its metadata read and no image yet; `data_dir` holds the prepared TFDS data sets.

    `digits` and `synthetic[/HxWxC/CLASSES/TRAIN_IMAGES]` are built in. A name that starts with `./`, `../`, `/` or
    `~` is a folder of images. Any other is looked up in `data_dir`, then taken as a folder where one of that name
    exists. Raises `MissingDataset`, or `UserError` for a data set that is there but cannot be used.
    """
    if not name:
        raise UserError("the data set's name is empty; give one, such as digits, cifar10 or ./folder_of_images")
    if name == "digits":
        return arrays.open_digits()
    if name.split("/")[0] == "synthetic":
        return arrays.open_synthetic(name)
    if name in (".", "..") or name.startswith(("./", "../", "/", "~")):
        return folder.open_folder(name)
    try:
        return tfds.open_prepared(name, data_dir)
    except MissingDataset:
        if os.path.isdir(name):
            return folder.open_folder(name)
        raise
