"""Ways in which well-known data sets lie in folders, other than a folder for each split and each class.

- Intel's scenes: `seg_train/seg_train/CLASS/`, `seg_test/seg_test/CLASS/`: one word before each split, and twice.
- Dogs against cats: `train/cat.0.jpg`: the class is in the files' names.
- Tiny ImageNet: `val/images/`, with the classes in `val/val_annotations.txt`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_jax.command import UserError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERED = re.compile(r"(?P<label>[^.]+)\.\d+")  # "cat.0" of cat.0.jpg


def split_of(word: str) -> str:
    """The split that a word stands for; "" where it is none."""
    return _SPLITS.get(word.lower(), "")


def splits_of(folders: Sequence[Path]) -> dict[Path, str]:
    """Those of the folders that hold a split, and which.

    A word before all of them (`seg_train`, `seg_test`) is passed over, if both train and another split have it: a
    folder `bullet_train` alone is a class.
    """
    plain = {path: _SPLITS[path.name.lower()] for path in folders if path.name.lower() in _SPLITS}
    if plain:
        return plain
    by_word: dict[str, dict[Path, str]] = {}
    for path in folders:
        word, _, split = re.sub("[-_]", " ", path.name.lower()).rpartition(" ")
        if word and split in _SPLITS:
            by_word.setdefault(word, {})[path] = _SPLITS[split]
    whole = [found for found in by_word.values() if "train" in found.values() and len(set(found.values())) > 1]
    return whole[0] if len(whole) == 1 else {}


def inner(folder: Path, folders: Sequence[Path]) -> Path:
    """The folder of the same name in the folder, if that is all it holds; else the folder itself."""
    return folders[0] if [path.name for path in folders] == [folder.name] else folder


def by_file_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Files called CLASS.NUMBER.EXTENSION by their class; none where one is called otherwise, or all are of one."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(os.path.splitext(name)[0])
        if match is None:
            return {}
        found.setdefault(match["label"], []).append(name)
    return found if len(found) > 1 else {}


def annotations(folder: Path) -> Path:
    """Where a split's folder may list its images with their classes."""
    return folder / f"{folder.name}_annotations.txt"


def annotated(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """The classes, and the images of each, that the annotations list: lines of FILE, CLASS and more, between tabs."""
    path, found = annotations(folder), dict[str, list[Path]]()
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error}); expected lines of FILE and CLASS, a tab between"
        ) from error
    for row in rows:
        if len(row) < 2 or Path(row[0]).name != row[0]:
            raise UserError(f"{path} holds {row[0][:80]!r}; expected lines of FILE and CLASS, with a tab between")
        found.setdefault(row[1], []).append(folder / "images" / row[0])
    if missing := [file for files in found.values() for file in files if not file.is_file()]:
        raise UserError(
            f"{path} lists {len(missing):,} images that are not there, such as {missing[0]}; unpack it again"
        )
    if not found:
        raise UserError(f"{path} is empty; unpack the data set again")
    yield from found.items()
