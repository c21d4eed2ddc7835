"""A tiny prepared data set, made once for all cases."""

import functools
import tempfile
from pathlib import Path

from tests.data import archives
from vit_jax.data.prepare import prepare


@functools.cache
def _kept() -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory()
    root = Path(folder.name)
    archives.write("mnist", root / "archives")
    prepare("mnist", root / "data", str(root / "archives"), checksum=False)
    return folder


def tiny_mnist() -> Path:
    """The data folder with it."""
    return Path(_kept().name) / "data"
