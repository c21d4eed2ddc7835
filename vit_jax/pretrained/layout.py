"""What is known of a file of published weights: its model, and which of its arrays are which of ours.

A layout says how it names each array of ours; `complete` does the rest: the model itself tells which arrays there must
be, and of what shapes.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models, trees
from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.text import listed

Shape = tuple[int, ...]
Convert = Callable[[np.ndarray], np.ndarray]
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and deviation
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5,), (0.5,))  # pixels from -1 to 1


def identity(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


@dataclass(frozen=True)
class Entry:
    """One array of ours, and how it is made of one of theirs."""

    ours: str  # "params/Transformer/encoderblock_0/LayerNorm_0/scale", "batch_stats/..."
    theirs: str
    shape: Shape  # that theirs must have
    convert: Convert = identity


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input; mean and deviation of each channel on the 0..1 scale."""

    size: tuple[int, int]
    resize: Literal["crop", "stretch"]
    crop_fraction: float  # the image is scaled to size / crop_fraction, and its centre taken
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self, where: str) -> None:
        """Raises `UserError` for values with which there is no image."""
        if not all(isinstance(side, int) and side > 0 for side in self.size):
            raise UserError(f"{where}: images of the size {self.size}; expected two positive whole numbers")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"{where}: {self.crop_fraction:g} of an image is taken; expected a share up to 1")
        if not (np.isfinite((*self.mean, *self.std)).all() and min(self.std) > 0):
            raise UserError(f"{where}: mean={self.mean}, std={self.std}; expected finite numbers, std above 0")


def preprocessing(
    size: tuple[int, int],
    resize: Literal["crop", "stretch"],
    crop_fraction: float,
    interpolation: Literal["bilinear", "bicubic"],
    statistics: Statistics,
    channels: int,
) -> Preprocessing:
    """Preprocessing with the statistics repeated, or averaged, for so many channels."""
    mean, std = (per_channel(values, channels) for values in statistics)
    return Preprocessing(size, resize, crop_fraction, interpolation, mean, std)


def per_channel(values: int | float | Sequence[int | float], channels: int) -> tuple[float, ...]:
    """A mean or deviation for each channel; given for other numbers of channels, their average."""
    given = (float(values),) if isinstance(values, int | float) else tuple(map(float, values))
    return given if len(given) == channels else (float(np.mean(given)),) * channels


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side file's size, in which one number means a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


@dataclass(frozen=True)
class Layout:
    """A file's parameter names, as ours, and what else it tells about its model."""

    name: str  # for messages: "Google npz", "Hugging Face", "timm"
    model: dict[str, Any]  # `models.settings` of its architecture; num_classes of its head, 0 where it has none
    grid: tuple[int, int]  # of the patches that its positions were learned for; (0, 0) without positions
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()  # by label; () where the file does not tell
    entries: tuple[Entry, ...] = ()  # one for each array of ours; several may read one of theirs
    loss: str = ""  # of `losses.LOSSES`, which says what its logits mean; "": a softmax, of one output a sigmoid
    antialias: bool = True  # whether its authors smooth positions before they shrink them, see `fit.resize`


def parameter_shapes(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> dict[str, Shape]:
    """The shape of each array of a model (its `models.settings`) by canonical name; nothing is computed."""
    fields = tuple((field, tuple(value) if isinstance(value, list) else value) for field, value in model.items())
    return dict(_traced(fields, tuple(image_shape)))


@cache
def _traced(fields: tuple[tuple[str, Any], ...], image_shape: tuple[int, int, int]) -> dict[str, Shape]:
    """Scanned, because then one layer is traced for all; the names are those of layers that are not."""
    module = models.create(dict(fields) | ({"scan": True} if "scan" in dict(fields) else {}))

    def init(images: jax.Array) -> Any:
        variables = module.init(jax.random.key(0), images, train=False)
        kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
        return trees.unstack_layers(kept)

    found = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return dict(zip(trees.names(found), (leaf.shape for leaf in jax.tree.leaves(found)), strict=True))


def complete(
    layout: Layout, shapes: Mapping[str, Shape], entry: Callable[[str, Shape], Entry], ignored: Sequence[str] = ()
) -> Layout:
    """The layout with an entry for each array of its model.

    Args:
        layout: without entries.
        shapes: of the file's arrays.
        entry: makes one, of the name and the shape of an array of ours.
        ignored: regular expressions of those keys of theirs that hold nothing of ours.

    Raises:
        UserError: arrays that are missing, left over, or of a shape that contradicts the others.
    """
    try:
        wanted = parameter_shapes(layout.model, _image_shape(layout))
    except ValueError as error:
        raise UserError(f"{layout.name}: the arrays have shapes that no model here has ({error})") from error
    entries = tuple(entry(ours, shape) for ours, shape in wanted.items())
    for made in entries:
        if made.theirs not in shapes:
            raise UserError(
                f"{layout.name}: {made.theirs} is missing, which the other arrays imply; is the file complete?"
            )
        if shapes[made.theirs] != made.shape:
            raise UserError(
                f"{layout.name}: {made.theirs} has the shape {shapes[made.theirs]}, "
                f"but the other arrays imply {made.shape}"
            )
    read, unknown = {made.theirs for made in entries}, re.compile("|".join(ignored) or r"(?!)")
    if rest := sorted(key for key in shapes if key not in read and not unknown.fullmatch(key)):
        raise UserError(
            f"{layout.name}: no model here has a place for {listed(rest)}; it may be another variant, or damaged"
        )
    layout.preprocessing.check(layout.name)
    loss = layout.loss or ("sigmoid" if layout.model.get("num_classes") == 1 else "softmax")
    return replace(layout, entries=entries, loss=loss)


def _image_shape(layout: Layout) -> tuple[int, int, int]:
    """Height, width and channels that the file's positions are made for, or else those that it was evaluated at."""
    (height, width), patch_size = layout.preprocessing.size, layout.model.get("patch_size")
    if any(layout.grid) and patch_size:
        module, (p, q), (h, w) = models.create(layout.model), square(tuple(patch_size)), layout.grid
        stride = module.stride if isinstance(module, models.Hybrid) else 1
        height, width = h * p * stride, w * q * stride
    return height, width, len(layout.preprocessing.mean)


def settings(family: str, fields: Mapping[str, Any], **variant: Any) -> dict[str, Any]:
    """`models.settings` of these sizes, by the name of the table's row that has all of them, else by the family's."""
    rows = (models.settings(name) for name in models.names(f"{family}/*"))
    name = next((row["name"] for row in rows if fields.items() <= row.items()), family)
    return models.settings(name, **fields, **variant)


def patch_field(p: int, q: int) -> tuple[int, ...]:
    """The field `patch_size`: one number if the patch is square."""
    return (p,) if p == q else (p, q)


def count(layout: str, keys: Mapping[str, Any], numbered: str, first: int, what: str) -> int:
    """How many modules have keys that begin with `<numbered><number>` and a separator.

    Raises `UserError` unless they count up from `first`; `what` names them.
    """
    pattern = re.compile(re.escape(numbered) + r"(\d+)[./]")
    numbers = {int(match[1]) for key in keys if (match := pattern.match(key))}
    if gaps := set(range(first, first + len(numbers))) - numbers:
        raise UserError(f"{layout}: {what}{min(gaps)} is missing, but there is {what}{max(numbers)}")
    return len(numbers)


def prepend_zeros(rows: int) -> Convert:
    """Gives PosEmbed [1 l d] so many more tokens, of zeros, before the others."""
    return lambda positions: np.pad(positions, ((0, 0), (rows, 0), (0, 0)))
