"""Prepared TFDS data sets in ArrayRecord files, read without TensorFlow and without the network."""

import difflib
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vit_jax.command import UserError
from vit_jax.data.sources.dataset import Dataset, Example, MissingDataset

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_FORMAT = "array_record"
_RECORDS_READ = 256  # at once, for their labels


def open_prepared(name: str, data_dir: Path) -> Dataset:
    """The data set `NAME[/CONFIG][:VERSION]` in `data_dir`, by default its newest version; images stay encoded.

    Raises `MissingDataset`, or `UserError` where what is prepared is damaged, in another format, or has no images
    with labels.
    """
    builder = open_builder(name, data_dir)
    image_key, label_key = _keys(name, builder.info)
    return Dataset(
        name,
        tuple(builder.info.features[label_key].names),
        image_shape(builder.info.features[image_key]),
        {split: info.num_examples for split, info in builder.info.splits.items()},
        partial(_RecordSource, name, builder, image_key, label_key),
    )


def open_builder(name: str, data_dir: Path) -> Any:
    """TFDS's reader of a data set that is prepared; raises as `open_prepared`."""
    folder = _find(name, data_dir)
    if folder is None:
        raise MissingDataset(_missing(name, data_dir))
    return _builder(name, folder, data_dir)


def image_shape(feature: Any) -> tuple[int, int, int]:
    """h, w, c of a feature's images; (0, 0, c) where sizes differ."""
    height, width, channels = (side or 0 for side in feature.shape)
    return *((height, width) if height and width else (0, 0)), 1 if channels == 1 else 3


def open_records(name: str, builder: Any, split: str) -> Any:
    """Random access to the bytes of a split's records; raises `UserError` where a file is missing."""
    absent = [path.name for path in builder.info.splits[split].filepaths if not path.exists()]
    if absent:
        raise UserError(f"{name} {split}: {absent[0]} is not in {builder.data_path}; prepare the data set again")
    return builder.as_data_source(split).data_source


class Records:
    """One split's records, each with the image's bytes as TFDS stored them."""

    def __init__(self, name: str, builder: Any, split: str):
        self._name, self._split = name, split
        self._records = open_records(name, builder, split)

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, index: int) -> str:
        return f"{self._name} {self._split} record {index}"

    def parse(self, index: int) -> tuple[bytes, Any]:
        """The image's bytes and the target; raises `UserError` for a record that is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        try:
            return self._parsed(self._records[index])
        except Exception as fault:  # checksums: RuntimeError and others, by the kind of damage
            raise UserError(f"the record cannot be read ({fault}); prepare the data set again") from fault

    def _parsed(self, record: bytes) -> tuple[bytes, Any]:
        raise NotImplementedError


class _RecordSource(Records):
    """Images with labels."""

    def __init__(self, name: str, builder: Any, image_key: str, label_key: str, split: str):
        super().__init__(name, builder, split)
        self._image_key, self._label_key = image_key, label_key
        self._classes = builder.info.features[label_key].num_classes

    def read(self, index: int) -> Example:
        image, label = self.parse(index)
        if not 0 <= label < self._classes:
            raise UserError(f"label {label} is outside 0..{self._classes - 1}; is the split {self._split} labelled?")
        return {"image": image, "label": label}

    def _parsed(self, record: bytes) -> tuple[bytes, int]:
        """The image's bytes and the label.

        TFDS's own way to NumPy arrays takes twice as long on one thread, and with two, which wait for each other in
        Python, five times.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        feature = tf_example_pb2.Example.FromString(record).features.feature
        return feature[self._image_key].bytes_list.value[0], feature[self._label_key].int64_list.value[0]

    def labels(self) -> Int[np.ndarray, " n"]:
        """The label of every record: reads them all, some 40,000 a second."""
        labels = np.empty(len(self), np.int64)
        for start in range(0, len(self), _RECORDS_READ):
            rows = range(start, min(start + _RECORDS_READ, len(self)))
            try:
                for row, record in zip(rows, self._records.__getitems__(list(rows)), strict=True):
                    labels[row] = self._parsed(record)[1]
            except Exception as fault:  # as in `read`
                raise UserError(
                    f"{self._name} {self._split}: records {rows.start} to {rows.stop - 1} cannot all be read for their "
                    f"labels ({fault}); prepare the data set again"
                ) from fault
        return labels


def _find(name: str, data_dir: Path) -> Path | None:
    """The folder of the version asked for, else of the newest; None where there is none."""
    place, _, version = name.partition(":")
    folders = [path for path in _versions(data_dir / place) if version in ("", path.name)]
    return max(folders, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def _versions(folder: Path) -> list[Path]:
    names = folder.iterdir() if folder.is_dir() else ()
    return [path for path in names if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").exists()]


def _prepared(data_dir: Path) -> list[str]:
    """Every NAME[/CONFIG]:VERSION in `data_dir`."""
    if not data_dir.is_dir():
        return []
    places = [place for depth in ("*", "*/*") for place in data_dir.glob(depth)]
    found = [(place, version) for place in places for version in _versions(place)]
    return sorted(f"{place.relative_to(data_dir).as_posix()}:{version.name}" for place, version in found)


def _builder(name: str, folder: Path, data_dir: Path) -> Any:
    """TFDS's reader of the folder's metadata."""
    from tensorflow_datasets import builder_from_directory

    from vit_jax.data.prepare import how_to_prepare

    try:
        builder = builder_from_directory(folder)
        info = builder.info
        formats = [known.value for known in (info.file_format, *info.alternative_file_formats)]
        if _FORMAT in formats:
            info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
            return builder
    except Exception as fault:
        raise UserError(f"{name}: the metadata in {folder} cannot be read ({fault}); prepare it again") from fault
    raise UserError(
        f"{name} in {folder} is prepared as {formats[0]}, which cannot be read at random; "
        f"expected {_FORMAT}; {how_to_prepare(name, data_dir)}"
    )


def _keys(name: str, info: Any) -> tuple[str, str]:
    """The features that hold the image and the class: TFDS's supervised pair, else the first of each kind."""
    import tensorflow_datasets as tfds

    features = info.features
    supervised = [key for key in info.supervised_keys or () if isinstance(key, str)]
    keys = [key for key in dict.fromkeys([*supervised, *features]) if key in features]
    images = image_keys(features, keys)
    labels = [key for key in keys if isinstance(features[key], tfds.features.ClassLabel)]
    if not (images and labels):
        raise UserError(
            f"{name} has no {'class label' if images else '8- or 16-bit image'} among its features "
            f"{', '.join(features)}; expected a data set for image classification (masks/{name} reads masks)"
        )
    return images[0], labels[0]


def image_keys(features: Any, keys: Iterable[str]) -> list[str]:
    """Those of the keys that hold images.

    A LabeledImage is a segmentation map; float pixels are not stored as an image that others can decode.
    """
    from tensorflow_datasets.core.features import Image, LabeledImage

    images = (key for key in keys if isinstance(features[key], Image) and not isinstance(features[key], LabeledImage))
    return [key for key in images if np.dtype(features[key].np_dtype).kind == "u"]


def _missing(name: str, data_dir: Path) -> str:
    from vit_jax.data.prepare import PREPARABLE, how_to_prepare

    prepared = _prepared(data_dir)
    known = {place.partition(":")[0] for place in ("digits", "synthetic", *PREPARABLE, *prepared)} - {name}
    similar = ", ".join(difflib.get_close_matches(name.partition(":")[0].lower(), sorted(known)))
    return (
        f"data set {name!r} is not in {data_dir} (prepared there: {', '.join(prepared) or 'nothing'}) and no folder of "
        f"images; {f'similar names: {similar}; ' if similar else ''}{how_to_prepare(name, data_dir)}"
    )
