"""A data set of examples: named splits, and TFDS's split syntax over them."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from types import SimpleNamespace
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from vit_jax.command import UserError


class MissingDataset(UserError):
    """No data set of that name is built in, prepared, or a folder; says how to get it."""


class Example(TypedDict, total=False):
    """What a source knows of one image: its `fields`."""

    image: UInt8[np.ndarray, "h w c"] | bytes  # decoded, or as its file's bytes
    label: int
    mask: UInt8[np.ndarray, "h w"] | bytes  # the class of each pixel; `decoding.VOID` belongs to none


@runtime_checkable
class Source(Protocol):
    """Random access to examples in a fixed order; may be read from several threads and pickled."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example: ...

    def describe(self, index: int) -> str:
        """Where the image comes from, for error messages: a path, or "cifar10 train record 17"."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A source that knows its labels without opening the images."""

    def labels(self) -> Int[np.ndarray, " n"]: ...


def read_labels(source: Source) -> Int[np.ndarray, " n"]:
    """The label of every image, as stored: of unlabelled ones -1. Raises `UserError` for what cannot be read."""
    if isinstance(source, Labelled):
        return source.labels()
    return np.fromiter((source.read(i).get("label", -1) for i in range(len(source))), np.int64, len(source))


@dataclass(frozen=True)
class Images:
    """A source whose labels are known: one image for each, by its row."""

    known_labels: Int[np.ndarray, " n"]
    image: Callable[[int], UInt8[np.ndarray, "h w c"] | bytes]
    describe: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.known_labels)

    def read(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return {"image": self.image(index), "label": int(self.known_labels[index])}

    def labels(self) -> Int[np.ndarray, " n"]:
        return self.known_labels


@dataclass(frozen=True)
class Dataset:
    """What is known before any image is read."""

    name: str
    class_names: tuple[str, ...]  # by label, or by value of the masks
    image_shape: tuple[int, int, int]  # h, w, c; (0, 0, c) where sizes differ between images
    splits: Mapping[str, int]  # images in each named split
    open_split: Callable[[str], Source]  # opens one of `splits`, whole
    folders: tuple[str, ...] = ()  # whose sub-folders are its classes
    fields: tuple[str, ...] = ("image", "label")  # of every example; "mask" may be another

    def source(self, spec: str) -> Source:
        """The images of `spec`: "train", "train[:90%]", "train[100:]", "train[:50%]+test"; raises `UserError`."""
        slices = self._slices(spec)
        opened = {split: self.open_split(split) for split in dict(slices)}
        if len(slices) == 1 and len(slices[0][1]) == self.splits[slices[0][0]]:
            return opened[slices[0][0]]
        return Rows(*((opened[split], rows) for split, rows in slices))

    def size(self, spec: str) -> int:
        """The number of images in `spec`, without opening it; raises `UserError`."""
        return sum(len(rows) for _, rows in self._slices(spec))

    def overlap(self, spec: str, other: str) -> int:
        """The number of images that are in both; raises `UserError`."""
        pairs = product(self._slices(spec), self._slices(other))
        both = (range(max(a.start, b.start), min(a.stop, b.stop)) for (x, a), (y, b) in pairs if x == y)
        return sum(map(len, both))

    def _slices(self, spec: str) -> list[tuple[str, range]]:
        """The summands of `spec`, in order: split and rows."""
        slices = [(spec, range(self.splits[spec]))] if spec in self.splits else self._parse(spec)
        if not all(rows for _, rows in slices):
            raise UserError(f"split {spec!r} of {self.name} selects no image: {self._sizes()}")
        return slices

    def _parse(self, spec: str) -> list[tuple[str, range]]:
        from tensorflow_datasets.core import ReadInstruction  # 0.5 s, for slices and sums only

        infos = {split: SimpleNamespace(num_examples=size) for split, size in self.splits.items()}
        slices = []
        try:
            for part in spec.split("+"):
                asked = ReadInstruction.from_spec(part.strip())
                for found in asked.to_absolute(infos):
                    stop = infos[found.splitname].num_examples if found.to is None else found.to
                    # "[-1%:]" of 40 images rounds to "[0:]", which is all of them; it asked for the last 0.
                    rounded_to_0 = found.from_ is None and (getattr(asked, "from_", None) or 0) < 0
                    slices.append((found.splitname, range(stop if rounded_to_0 else found.from_ or 0, stop)))
        except (ValueError, NotImplementedError, AttributeError) as fault:  # AttributeError: "train[3shard]"
            raise UserError(
                f"split {spec!r} of {self.name}: expected a split, a slice or a sum, such as train, train[:90%] or "
                f"train[100:]+test[:50], within {self._sizes()}"
            ) from fault
        return slices

    def _sizes(self) -> str:
        return ", ".join(f"{split} ({size:,} images)" for split, size in self.splits.items())


class Rows:
    """Some rows of other sources, one source after another; `labels` take the place of the stored ones."""

    def __init__(self, *parts: tuple[Source, Sequence[int] | np.ndarray], labels: np.ndarray | None = None):
        self._parts, self._labels = parts, labels
        self._ends = list(accumulate(len(rows) for _, rows in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Example:
        source, row = self._locate(index)
        example = source.read(row)
        return example if self._labels is None else {**example, "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        source, row = self._locate(index)
        return source.describe(row)

    def labels(self) -> Int[np.ndarray, " n"]:
        if self._labels is not None:
            return self._labels
        return np.concatenate([read_labels(source)[np.asarray(rows)] for source, rows in self._parts])

    def _locate(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        source, rows = self._parts[part]
        return source, int(rows[index - self._ends[part]])  # negative: counted from the part's end
