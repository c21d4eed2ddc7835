"""Our arrays in PyTorch's conventions.

Linear layers are stored as [out in], convolutions as [out in height width]; several layers may share one array.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from vit_jax.command import UserError
from vit_jax.pretrained.layout import Convert, Entry, Shape

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}  # others: the same


@dataclass(frozen=True)
class Table:
    """The arrays of a file, by our names: `head/kernel`.

    names: theirs of our modules, and of those parameters that have a name of their own. Modules of the same name share
    its arrays, in this order, along the first axis.
    """

    layout: str  # for messages
    shapes: Mapping[str, Shape]
    names: Mapping[str, str]

    def key(self, name: str) -> str:
        """Theirs of an array of ours: `classifier.weight`."""
        module, _, leaf = name.rpartition("/")
        return self.names.get(name) or f"{self.names.get(module, module)}.{LEAVES.get(leaf, leaf)}"

    def has(self, name: str) -> bool:
        """Whether the file has this array."""
        return self.key(name) in self.shapes

    def shape(self, name: str, letters: str) -> Shape:
        """The shape of an array, one size for each of the space-separated letters; raises `UserError` for another."""
        key = self.key(name)
        if key not in self.shapes:
            raise UserError(f"{self.layout}: {key} is missing; is the file complete?")
        if len(self.shapes[key]) != len(letters.split()):
            raise UserError(f"{self.layout}: {key} has the shape {self.shapes[key]}, not [{letters}]")
        return self.shapes[key]

    def outputs(self, module: str) -> int:
        """The outputs of a layer; 0 without it."""
        return self.shapes[self.key(f"{module}/kernel")][0] if self.has(f"{module}/kernel") else 0

    def sharing(self, module: str) -> list[str]:
        """The modules whose arrays lie in one with this one's."""
        return [ours for ours, theirs in self.names.items() if theirs == self.names.get(module)] or [module]

    def entry(self, ours: str, shape: Shape) -> Entry:
        """How an array of ours (`params/head/kernel`), of this shape, is made."""
        name = ours.partition("/")[2]
        module = name.rpartition("/")[0]
        together = self.sharing(module)
        first, *rest = stored_shape(ours, shape)
        convert = from_pytorch(ours, shape)
        if len(together) > 1:
            convert = part(convert, together.index(module), len(together))
        return Entry(ours, self.key(name), (first * len(together), *rest), convert)


def stored_shape(ours: str, shape: Shape) -> Shape:
    """Theirs of an array of ours that has it for itself; `out` projects from several axes, all others to several."""
    if ours.endswith("/bias"):
        return (prod(shape),)
    if not ours.endswith("/kernel"):
        return shape
    if len(shape) == 4:
        return shape[3], shape[2], *shape[:2]
    inputs = prod(shape[:-1]) if ours.endswith("/out/kernel") else shape[0]
    return prod(shape) // inputs, inputs


def from_pytorch(ours: str, shape: Shape) -> Convert:
    """Makes an array of ours, of this shape, from theirs."""
    if ours.endswith("/kernel") and len(shape) == 4:
        return lambda array: array.transpose(2, 3, 1, 0)
    if ours.endswith("/kernel"):
        return lambda array: array.T.reshape(shape)
    return lambda array: array.reshape(shape)


def to_pytorch(ours: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_pytorch`."""
    shape = stored_shape(ours, array.shape)
    if ours.endswith("/kernel") and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.reshape(shape[::-1]).T if ours.endswith("/kernel") else array.reshape(shape)


def part(convert: Convert, index: int, parts: int) -> Convert:
    """Converts one of so many equal parts of an array."""
    return lambda array: convert(np.split(array, parts)[index])
