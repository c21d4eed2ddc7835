"""Published weights: where they lie, what model they are, and their arrays under our names.

`open_weights(address)` says what a file holds; `Weights.read` gives its arrays; `fit` makes them fit another image
size, other channels and other classes. Layouts that are read: `google` (.npz of the ViT, Mixer and BiT authors),
`huggingface` and `timm` (.safetensors). `PUBLISHED` lists weights by their models' names.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models, trees
from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.pretrained import google, huggingface, timm
from vit_jax.pretrained.address import locate
from vit_jax.pretrained.augreg import PUBLISHED
from vit_jax.pretrained.files import Arrays, open_arrays, read_about
from vit_jax.pretrained.fit import SEQUENCE, fit, leading, patch_grid
from vit_jax.pretrained.layout import Layout, Preprocessing
from vit_jax.pretrained.report import Report, Row

__all__ = [
    "PUBLISHED",
    "Preprocessing",
    "Report",
    "Row",
    "Weights",
    "fit",
    "open_weights",
    "parameter_shapes",
    "position_grid",
]
LEARNED = ("learned", "learned_2d", "relative_bias")  # positions that belong to a grid


@dataclass(frozen=True)
class Weights:
    """Weights whose architecture is known and whose arrays are not read yet."""

    address: str
    layout_name: str  # "Google npz", "Hugging Face", "timm" ..., for messages
    model: dict[str, Any]  # `models.settings` of their architecture; num_classes of their head, 0 without one
    grid: tuple[int, int]  # rows and columns of patches that their positions were learned for; (0, 0) without
    preprocessing: Preprocessing
    class_names: tuple[str, ...]  # by label; () unknown
    reader: Callable[[], dict[str, np.ndarray]]

    def read(self) -> dict[str, np.ndarray]:
        """All arrays, float32, by canonical name: `params/Transformer/encoderblock_0/LayerNorm_0/scale`.

        Raises:
            UserError: damaged files; arrays that are missing, left over, or of a shape that the model does not have.
        """
        return self.reader()


def open_weights(address: str) -> Weights:
    """The weights at an address (see `address.locate`), fetched where need be; `read` gives their arrays.

    Raises:
        UserError: nothing there, no access, no file of weights, or a layout or an architecture that is not known.
    """
    path = locate(address)
    arrays, about = open_arrays(path), read_about(path)
    layout = _detect(arrays, about, address)
    return Weights(
        address=address,
        layout_name=layout.name,
        model=layout.model,
        grid=layout.grid,
        preprocessing=layout.preprocessing,
        class_names=layout.class_names,
        reader=lambda: _read(arrays, layout, path),
    )


def parameter_shapes(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a model (its `models.settings`) by canonical name; nothing is computed."""
    module = models.create({**model, "scan": False} if "scan" in model else model)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
    kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    return dict(zip(trees.names(kept), (leaf.shape for leaf in jax.tree.leaves(kept)), strict=True))


def position_grid(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of patches that a model's learned positions belong to; (0, 0) without learned positions."""
    if model.get("pos_embed") not in LEARNED:
        return 0, 0
    lengths = [shape[1] for name, shape in parameter_shapes(model, image_shape).items() if SEQUENCE.fullmatch(name)]
    return patch_grid(model, image_shape, sum(lengths) - len(leading(model)))


def _detect(arrays: Arrays, about: Mapping[str, Mapping[str, Any]], address: str) -> Layout:
    for detect in (google.detect, huggingface.detect, timm.detect):
        layout = detect(arrays.shapes, about)
        if layout is not None:
            return layout
    raise UserError(
        f"{address} holds {len(arrays)} arrays of no layout that is known ({', '.join(list(arrays)[:3])} ...); "
        "known: the .npz of the ViT, Mixer and BiT authors, and .safetensors as transformers and timm name them"
    )


def _read(arrays: Arrays, layout: Layout, path: Path) -> dict[str, np.ndarray]:
    """Every array of ours, and every array of theirs used or known to be of no use."""
    name = f"{path} ({layout.name}, {layout.model['name']})"
    used = {entry.theirs for entry in layout.entries}
    _refuse(used - set(arrays), f"{name} lacks")
    left = [key for key in arrays if key not in used and not any(re.fullmatch(p, key) for p in layout.ignored)]
    _refuse(left, f"{name} holds arrays that this model has no place for:")
    expected = parameter_shapes(layout.model, _image_shape(layout))
    made = {entry.ours for entry in layout.entries}
    _refuse(expected.keys() - made, f"{name} lacks what makes up")
    _refuse(made - expected.keys(), f"{name} makes up parameters that this model does not have:")
    result = _converted(arrays, layout, name)
    wrong = [
        f"{key} {array.shape}, not {expected[key]}" for key, array in result.items() if array.shape != expected[key]
    ]
    _refuse(wrong, f"{name} has shapes that this model does not have:")
    return result


def _refuse(keys: Collection[str], what: str) -> None:
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise UserError(f"{what} {', '.join(sorted(keys)[:3])}{more}; it may be another variant, or damaged")


def _converted(arrays: Arrays, layout: Layout, name: str) -> dict[str, np.ndarray]:
    result = {}
    for theirs, entries in groupby(sorted(layout.entries, key=attrgetter("theirs")), attrgetter("theirs")):
        array = arrays[theirs]  # once, though several entries may share it
        for entry in entries:
            try:
                result[entry.ours] = np.ascontiguousarray(entry.convert(array), dtype=np.float32)
            except (ValueError, IndexError) as error:
                raise UserError(f"{name}: {theirs} {array.shape} does not make {entry.ours} ({error})") from error
    return result


def _image_shape(layout: Layout) -> tuple[int, int, int]:
    """Height, width and channels that the file's positions are made for, or else those that it was evaluated at."""
    (height, width), patch_size = layout.preprocessing.size, layout.model.get("patch_size")
    if any(layout.grid) and patch_size:
        module, (p, q), (h, w) = models.create(layout.model), square(tuple(patch_size)), layout.grid
        stride = module.stride if isinstance(module, models.Hybrid) else 1
        height, width = h * p * stride, w * q * stride
    return height, width, len(layout.preprocessing.mean)
