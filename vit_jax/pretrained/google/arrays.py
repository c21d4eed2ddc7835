"""The arrays of a Google .npz under our names, and the shapes that they must have.

Shapes: `d` width, `f` MLP width, `a` heads, `e` size per head, `c` channels.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained.layout import Convert, Entry, Preprocessing, identity

Shape = tuple[int, ...]
NAME = "Google npz"


@dataclass(frozen=True)
class Stored:
    """One array of ours: the key that it is stored under, and its shape after `convert`."""

    key: str
    shape: Shape
    convert: Convert = identity


def sizes(arrays: Mapping[str, Stored], name: str, letters: str) -> Shape:
    """The shape of this array, one size for each of the space-separated letters."""
    if name not in arrays:
        raise UserError(f"{NAME}: {name} is missing; is the file complete?")
    shape = arrays[name].shape
    if len(shape) != len(letters.split()):
        raise UserError(f"{NAME}: {arrays[name].key} has the shape {shape}, not [{letters}]; no model here reads it")
    return shape


def count(arrays: Mapping[str, Stored], numbered: str, first: int) -> int:
    """How many modules `<numbered><number>/` there are; raises `UserError` unless they count up from `first`."""
    pattern = re.compile(re.escape(numbered) + r"(\d+)/")
    numbers = {int(match[1]) for name in arrays if (match := pattern.match(name))}
    gaps = set(range(first, first + len(numbers))) - numbers
    if gaps:
        raise UserError(f"{NAME}: {numbered}{min(gaps)} is missing, but there is {numbered}{max(numbers)}")
    return len(numbers)


def entries(arrays: Mapping[str, Stored], expected: Mapping[str, Shape]) -> tuple[Entry, ...]:
    """An entry for each expected array; raises `UserError` where one is missing or contradicts the others."""
    for name, shape in expected.items():
        if name not in arrays:
            raise UserError(f"{NAME}: {name} is missing; is the file complete?")
        if arrays[name].shape != shape:
            given = arrays[name]
            raise UserError(f"{NAME}: {given.key} has the shape {given.shape}, but the other arrays imply {shape}")
    return tuple(Entry(f"params/{name}", arrays[name].key, arrays[name].convert) for name in expected)


def squeeze_norms(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Scales and biases of group norm as [c]; before Flax 0.3.6 they were stored as [1 1 1 c]."""

    def squeeze(name: str, given: Stored) -> Stored:
        extra = name.endswith(("/scale", "/bias")) and len(given.shape) == 4 and given.shape[:3] == (1, 1, 1)
        return Stored(given.key, given.shape[3:], np.ravel) if extra else given

    return {name: squeeze(name, given) for name, given in arrays.items()}


def norm(name: str, c: int) -> dict[str, Shape]:
    """The shapes of a layer or group norm."""
    return {f"{name}/scale": (c,), f"{name}/bias": (c,)}


def linear(name: str, *kernel: int) -> dict[str, Shape]:
    """The shapes of a kernel and of a bias along its last axis."""
    return {f"{name}/kernel": kernel, f"{name}/bias": kernel[-1:]}


def mlp(name: str, d: int, f: int) -> dict[str, Shape]:
    """The shapes of an MLP of two layers."""
    return linear(f"{name}/Dense_0", d, f) | linear(f"{name}/Dense_1", f, d)


def attention(name: str, d: int, a: int, e: int) -> dict[str, Shape]:
    """The shapes of multi-head attention."""
    shapes = linear(f"{name}/out", a, e, d)
    for part in ("query", "key", "value"):
        shapes |= {f"{name}/{part}/kernel": (d, a, e), f"{name}/{part}/bias": (a, e)}
    return shapes


def bottleneck(name: str, channels: int, c: int) -> dict[str, Shape]:
    """The shapes of convolutions 1x1, 3x3 and 1x1 without biases, from `channels` by way of c to 4 c channels."""
    kernels = {"conv1": (1, 1, channels, c), "conv2": (3, 3, c, c), "conv3": (1, 1, c, 4 * c)}
    return {f"{name}/{conv}/kernel": kernel for conv, kernel in kernels.items()}


def settings(family: str, fields: Mapping[str, Any], **variant: Any) -> dict[str, Any]:
    """`models.settings` of these sizes, by the name of the table's row that has all of them, else by the family's."""
    rows = (models.settings(name) for name in models.names(f"{family}/*"))
    name = next((row["name"] for row in rows if fields.items() <= row.items()), family)
    return models.settings(name, **fields, **variant)


def side(tokens: int) -> int:
    """The side of a square of so many tokens; 0 if they do not form one."""
    root = round(tokens**0.5)
    return root if root * root == tokens else 0


def patch_field(p: int, q: int) -> tuple[int, ...]:
    """The field `patch_size`: one number if the patch is square."""
    return (p,) if p == q else (p, q)


def preprocessing(
    size: tuple[int, int], channels: int, resize: Literal["crop", "stretch"] = "stretch", crop_fraction: float = 1.0
) -> Preprocessing:
    """Pixels from -1 to 1, resized bilinearly: so in every one of these code bases."""
    half = (0.5,) * channels
    return Preprocessing(size, resize, crop_fraction, "bilinear", half, half)
