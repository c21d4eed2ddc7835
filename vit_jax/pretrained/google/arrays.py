"""The arrays of a Google .npz under our names.

Shapes: `d` width, `f` MLP width, `a` heads, `e` size per head, `c` channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vit_jax.command import UserError
from vit_jax.pretrained.layout import HALF, Convert, Preprocessing, Shape, count, identity, preprocessing

NAME = "Google npz"


@dataclass(frozen=True)
class Stored:
    """One array of ours: the key that it is stored under, and its shape after `convert`."""

    key: str
    shape: Shape
    convert: Convert = identity
    stored_shape: Callable[[Shape], Shape] = lambda shape: shape  # theirs, by ours


class Described(NamedTuple):
    """What a file's arrays tell."""

    arrays: Mapping[str, Stored]  # by our names
    model: dict[str, Any]  # `models.settings`
    grid: tuple[int, int]
    preprocessing: Preprocessing


def sizes(arrays: Mapping[str, Stored], name: str, letters: str) -> Shape:
    """The shape of this array, one size for each of the space-separated letters."""
    if name not in arrays:
        raise UserError(f"{NAME}: {name} is missing; is the file complete?")
    shape = arrays[name].shape
    if len(shape) != len(letters.split()):
        raise UserError(f"{NAME}: {arrays[name].key} has the shape {shape}, not [{letters}]; no model here reads it")
    return shape


def classes(arrays: Mapping[str, Stored]) -> int:
    """The classes of the head; 0 without one."""
    return sizes(arrays, "head/kernel", "d k")[1] if "head/kernel" in arrays else 0


def stage_sizes(arrays: Mapping[str, Stored]) -> tuple[int, ...]:
    """The units of each stage of a ResNet."""
    stages = range(1, count(NAME, arrays, "block", 1, "block") + 1)
    return tuple(count(NAME, arrays, f"block{i}/unit", 1, f"block{i}/unit") for i in stages)


def squeezed(given: Stored, axes: int) -> Stored:
    """The array without its first axes, if these are of size 1."""
    if len(given.shape) <= axes or set(given.shape[:axes]) != {1}:
        return given
    return Stored(
        given.key,
        given.shape[axes:],
        lambda array: array.reshape(array.shape[axes:]),
        lambda shape: (1,) * axes + shape,
    )


def squeeze_norms(arrays: Mapping[str, Stored]) -> dict[str, Stored]:
    """Scales and biases of group norm as [c]; before Flax 0.3.6 they were stored as [1 1 1 c]."""
    ends = ("/scale", "/bias")
    return {name: squeezed(given, 3) if name.endswith(ends) else given for name, given in arrays.items()}


def side(tokens: int) -> int:
    """The side of a square of so many tokens; 0 if they do not form one."""
    root = round(tokens**0.5)
    return root if root * root == tokens else 0


def usual(
    size: tuple[int, int], channels: int, resize: Literal["crop", "stretch"] = "stretch", crop_fraction: float = 1.0
) -> Preprocessing:
    """Pixels from -1 to 1, resized bilinearly: so in every one of these code bases."""
    return preprocessing(size, resize, crop_fraction, "bilinear", HALF, channels)
