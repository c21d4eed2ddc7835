"""Data sets of Hugging Face `datasets`: Arrow and Parquet files, on a disk or from the Hub, read at random."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vit_jax.command import UserError
from vit_jax.data.decoding import BrokenImage
from vit_jax.data.sources.dataset import Dataset, Example, MissingDataset
from vit_jax.data.sources.layouts import split_of
from vit_jax.data.sources.sampled import sampled_shape
from vit_jax.text import listed

SAVED = ("dataset_dict.json", "state.json")  # of a folder that `save_to_disk` wrote
LABELS = ("label", "labels", "fine_label", "cls")  # columns, where none has classes with names


class Table:
    """The examples of one split: rows of an Arrow table, whose images stay encoded."""

    def __init__(self, name: str, split: str, rows: Any, image: str, labels: Int[np.ndarray, " n"] | None) -> None:
        self._name, self._split, self._rows, self._image, self._labels = name, split, rows, image, labels

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        found = self._rows[index][self._image]
        content = found if isinstance(found, bytes) else _content(found)
        return {"image": content} if self._labels is None else {"image": content, "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        return f"{self._name} {self._split} row {index}"

    def labels(self) -> Int[np.ndarray, " n"]:
        return np.full(len(self), -1) if self._labels is None else self._labels


def _content(found: Mapping[str, Any] | None) -> bytes:
    """The bytes of a row's image, in the table or in a file that it names."""
    if not found or not (found.get("bytes") or found.get("path")):
        raise BrokenImage("the row has no image")
    return found.get("bytes") or Path(found["path"]).read_bytes()


def open_huggingface(name: str, data_dir: Path) -> Dataset:
    """The data set in `hf/PLACE`: a folder, in `data_dir` or not, or ORGANISATION/NAME[:CONFIG] on the Hub.

    A folder holds what `save_to_disk` wrote, or Parquet or Arrow files whose names say their splits. Labels are a
    `ClassLabel`, or a column called label of whole numbers or of names; a data set without any has images alone.
    Raises `MissingDataset`, or `UserError` for one that cannot be used.
    """
    place = name.removeprefix("hf/")
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name} needs another package: pip install 'vit_jax[hf-datasets]'") from error
    splits = _splits(name, _load(datasets, name, place, data_dir))
    features = next(iter(splits.values())).features
    image, label = _image_column(name, datasets, features), _label_column(datasets, features)
    if label and hidden(splits, label):
        logging.getLogger(__name__).warning("%s: the split test has no labels (-1) and is passed over", name)
        splits.pop("test")
    labels, classes = _labels(name, splits, label) if label else ({}, ())
    sources = {}
    for split, rows in splits.items():
        rows = rows.select_columns([image])
        if isinstance(features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        sources[split] = Table(name, split, rows, image, labels.get(split))
    sizes = {split: len(source) for split, source in sources.items()}
    fields = ("image", "label") if label else ("image",)
    shape = sampled_shape(name, list(sources.values()))
    return Dataset(name, classes, shape, sizes, sources.__getitem__, fields=fields)


def _load(datasets: Any, name: str, place: str, data_dir: Path) -> Any:
    """What the package reads there: a data set, or one for each split."""
    folder = next((p for p in (data_dir / place, Path(os.path.expanduser(place))) if p.is_dir()), None)
    try:
        if folder is None and (place.startswith(("./", "../", "/", "~")) or place.count("/") > 1):
            raise MissingDataset(f"data set {name!r}: there is no folder {place}, nor {data_dir / place}")
        if folder is not None and any((folder / file).exists() for file in SAVED):
            return datasets.load_from_disk(str(folder))
        if folder is not None:
            return datasets.load_dataset(str(folder.absolute()))
        repository, _, config = place.partition(":")
        return datasets.load_dataset(repository, config or None)
    except UserError:
        raise
    except Exception as error:
        text = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        where = f"in {folder}" if folder else f"in {data_dir}, nor could it be fetched from the Hub"
        raise MissingDataset(f"data set {name!r} is not readable {where} ({text})") from error


def _splits(name: str, loaded: Any) -> dict[str, Any]:
    """The tables by our names of their splits; raises `UserError` where none of them trains."""
    given = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    splits = {split_of(str(split)): rows for split, rows in given.items() if split_of(str(split)) and len(rows)}
    if "train" not in splits:
        raise UserError(f"{name} has the splits {', '.join(map(str, given))}, none of them train; expected train")
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _image_column(name: str, datasets: Any, features: Mapping[str, Any]) -> str:
    """The column of images: declared as such, or of structures with `bytes`, or called image."""
    declared = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    stored = [column for column, kind in features.items() if isinstance(kind, dict) and "bytes" in kind]
    named = [column for column in ("image", "img", "jpg", "png") if column in features]
    called = [column for column in named if "binary" in str(getattr(features[column], "dtype", ""))]
    if not (found := [*declared, *stored, *called]):
        raise UserError(f"{name} has no column of images, only {listed(features)}; expected an Image called image")
    return found[0]


def _label_column(datasets: Any, features: Mapping[str, Any]) -> str:
    """The column of the classes; "" where there is none."""
    declared = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return next(iter([*declared, *(column for column in LABELS if column in features)]), "")


def hidden(splits: Mapping[str, Any], column: str) -> bool:
    """Whether validation has labels and test has none: -1, as where a competition keeps them."""
    if not {"validation", "test"} <= splits.keys():
        return False
    return set(splits["test"].select_columns([column])[:][column]) == {-1}


def _labels(
    name: str, splits: Mapping[str, Any], column: str
) -> tuple[dict[str, Int[np.ndarray, " n"]], tuple[str, ...]]:
    """The labels of each split as numbers, and the classes' names."""
    found = {split: rows.select_columns([column])[:][column] for split, rows in splits.items()}
    named = getattr(next(iter(splits.values())).features[column], "names", None)
    for split, values in found.items():
        if None in values:
            raise UserError(f"{name} {split} row {values.index(None)} has no {column}; add it, or leave the row out")
    kinds = {type(value) for values in found.values() for value in values}
    if kinds == {str}:
        names = sorted({value for values in found.values() for value in values})
        numbers = {text: i for i, text in enumerate(names)}
        return {split: np.array([numbers[v] for v in values]) for split, values in found.items()}, tuple(names)
    if kinds != {int}:
        split, values = next(iter(found.items()))
        raise UserError(
            f"{name} {split} row 0 has {column}={values[0]!r}; expected a whole number, or a name, of a class"
        )
    numbers_of = {split: np.array(values) for split, values in found.items()}
    classes = tuple(named or map(str, range(max(int(x.max()) for x in numbers_of.values()) + 1)))
    for split, values in numbers_of.items():
        if len(bad := np.flatnonzero((values < 0) | (values >= len(classes)))):
            row = int(bad[0])
            raise UserError(f"{name} {split} row {row} has {column}={values[row]}, outside 0..{len(classes) - 1}")
    return numbers_of, classes
