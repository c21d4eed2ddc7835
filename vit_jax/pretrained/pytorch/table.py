"""Gathers the entries of a layout in PyTorch's conventions, and checks each array's shape against the others'.

Linear layers are stored as [out in], convolutions as [out in height width]. Shapes: `d` width, `a` heads, `e` size per
head, `c` channels.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained.layout import Convert, Entry, identity

Shape = tuple[int, ...]
Part = tuple[int, int]  # which of how many equal parts of an array, along its first axis
WHOLE: Part = (0, 1)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Table:
    """Entries so far, and the shapes of the arrays that they read; `prefix` begins the keys of those to come."""

    layout: str  # for messages
    shapes: Mapping[str, Shape] | None  # None: a file to be written, there is nothing to check
    prefix: str = ""
    entries: list[Entry] = field(default_factory=list)

    def inside(self, prefix: str) -> "Table":
        """The same table for keys that begin with `prefix`."""
        return replace(self, prefix=self.prefix + prefix)

    def has(self, key: str) -> bool:
        """Whether the file has this array."""
        return self.prefix + key in (self.shapes or {})

    def shape(self, key: str, letters: str) -> Shape:
        """The shape of an array, one size for each of the space-separated letters; raises `UserError` for another."""
        key = self.prefix + key
        if key not in (self.shapes or {}):
            raise UserError(f"{self.layout}: {key} is missing; is the file complete?")
        assert self.shapes is not None
        if len(self.shapes[key]) != len(letters.split()):
            raise UserError(f"{self.layout}: {key} has the shape {self.shapes[key]}, not [{letters}]")
        return self.shapes[key]

    def add(
        self, ours: str, key: str, shape: Shape, convert: Convert = identity, invert: Convert = identity, *, part=WHOLE
    ) -> None:
        """One entry; `shape` is the stored one of this part of the array."""
        expected = (shape[0] * part[1], *shape[1:])
        key = self.prefix + key
        if self.shapes is not None and key not in self.shapes:
            raise UserError(f"{self.layout}: {key} is missing, which the other arrays imply; is the file complete?")
        if self.shapes is not None and self.shapes[key] != expected:
            raise UserError(
                f"{self.layout}: {key} has the shape {self.shapes[key]}, but the other arrays imply {expected}"
            )
        self.entries.append(Entry(ours, key, _of_part(convert, part), invert))

    def linear(self, ours: str, key: str, inputs: int, outputs: int, *, part: Part = WHOLE) -> None:
        """A linear layer with bias."""
        self.add(f"{ours}/kernel", f"{key}.weight", (outputs, inputs), np.transpose, np.transpose, part=part)
        self.add(f"{ours}/bias", f"{key}.bias", (outputs,), part=part)

    def to_heads(self, ours: str, key: str, d: int, a: int, e: int, *, bias: bool, part: Part = WHOLE) -> None:
        """A projection of the width to heads: kernel [d a e]."""
        self.add(
            f"{ours}/kernel",
            f"{key}.weight",
            (a * e, d),
            lambda array: array.T.reshape(d, a, e),
            lambda array: array.reshape(d, a * e).T,
            part=part,
        )
        if bias:
            self.add(f"{ours}/bias", f"{key}.bias", (a * e,), lambda array: array.reshape(a, e), np.ravel, part=part)

    def from_heads(self, ours: str, key: str, d: int, a: int, e: int) -> None:
        """A projection of heads to the width: kernel [a e d]."""
        self.add(
            f"{ours}/kernel",
            f"{key}.weight",
            (d, a * e),
            lambda array: array.T.reshape(a, e, d),
            lambda array: array.reshape(a * e, d).T,
        )
        self.add(f"{ours}/bias", f"{key}.bias", (d,))

    def convolution(self, ours: str, key: str, size: tuple[int, int], inputs: int, outputs: int) -> None:
        """The kernel of a convolution."""
        self.add(
            f"{ours}/kernel",
            f"{key}.weight",
            (outputs, inputs, *size),
            lambda array: array.transpose(2, 3, 1, 0),
            lambda array: array.transpose(3, 2, 0, 1),
        )

    def norm(self, ours: str, key: str, c: int) -> None:
        """Scale and bias of a layer or group norm."""
        self.add(f"{ours}/scale", f"{key}.weight", (c,))
        self.add(f"{ours}/bias", f"{key}.bias", (c,))

    def batch_norm(self, ours: str, key: str, c: int) -> None:
        """Scale, bias and statistics of a batch norm."""
        self.norm(f"params/{ours}", key, c)
        self.add(f"batch_stats/{ours}/mean", f"{key}.running_mean", (c,))
        self.add(f"batch_stats/{ours}/var", f"{key}.running_var", (c,))

    def finish(self, ignored: Sequence[str]) -> tuple[Entry, ...]:
        """The entries; raises `UserError` if the file has an array that none of them reads, nor `ignored` matches."""
        read = {entry.theirs for entry in self.entries}
        unknown = re.compile("|".join(ignored) or r"(?!)")
        rest = [key for key in self.shapes or {} if key not in read and not unknown.fullmatch(key)]
        if rest:
            more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
            raise UserError(f"{self.layout}: no model here has a place for {', '.join(sorted(rest)[:3])}{more}")
        return tuple(self.entries)


def _of_part(convert: Convert, part: Part) -> Convert:
    return convert if part == WHOLE else lambda array: convert(np.split(array, part[1])[part[0]])


def count(exists: Callable[[int], bool]) -> int:
    """How many numbers from 0 on `exists`."""
    return next(number for number in itertools.count() if not exists(number))


def settings(family: str, fields: Mapping[str, Any], **variant: Any) -> dict[str, Any]:
    """`models.settings` of these sizes, by the name of the table's row that has all of them, else by the family's."""
    rows = (models.settings(name) for name in models.names(f"{family}/*"))
    name = next((row["name"] for row in rows if fields.items() <= row.items()), family)
    return models.settings(name, **fields, **variant)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side file's size, in which one number means a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def per_channel(values: int | float | Sequence[int | float], channels: int) -> tuple[float, ...]:
    """A mean or deviation for each channel; given for other numbers of channels, their average."""
    given = (float(values),) if isinstance(values, int | float) else tuple(map(float, values))
    return given if len(given) == channels else (float(np.mean(given)),) * channels
