"""Published weights: where they lie, what model they are, and their arrays under our names.

`open_weights(address)` says what a file holds; `Weights.read` gives its arrays; `fit` makes them fit another image
size, other channels and other classes. Layouts that are read: `google` (.npz of the ViT, Mixer and BiT authors),
`huggingface` and `timm` (.safetensors). `PUBLISHED` lists weights by their models' names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from vit_jax.command import UserError
from vit_jax.pretrained import google, huggingface, timm
from vit_jax.pretrained.address import locate
from vit_jax.pretrained.augreg import PUBLISHED
from vit_jax.pretrained.files import Arrays, open_arrays, read_about
from vit_jax.pretrained.fit import SEQUENCE, fit, leading, patch_grid
from vit_jax.pretrained.layout import Layout, Preprocessing, parameter_shapes
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
    loss: str = "softmax"  # of `losses.LOSSES`: what their logits mean
    antialias: bool = True  # whether their authors smooth positions before they shrink them

    def read(self) -> dict[str, np.ndarray]:
        """All arrays, float32, by canonical name: `params/Transformer/encoderblock_0/LayerNorm_0/scale`.

        Raises `UserError` for damaged files.
        """
        return self.reader()


def open_weights(address: str) -> Weights:
    """The weights at an address (see `address.locate`), fetched where need be; `read` gives their arrays.

    Raises:
        UserError: nothing there, no access, no file of weights; a layout or an architecture that is not known; arrays
            that are missing, left over, or of a shape that the model does not have.
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
        reader=lambda: _read(arrays, layout),
        loss=layout.loss,
        antialias=layout.antialias,
    )


def position_grid(model: Mapping[str, Any], image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of patches that a model's learned positions belong to; (0, 0) without learned positions."""
    if model.get("pos_embed") not in LEARNED:
        return 0, 0
    lengths = [shape[1] for name, shape in parameter_shapes(model, image_shape).items() if SEQUENCE.fullmatch(name)]
    return patch_grid(model, image_shape, sum(lengths) - len(leading(model)))


def _detect(arrays: Arrays, about: Mapping[str, Mapping[str, Any]], address: str) -> Layout:
    for detect in (google.detect, huggingface.detect, timm.detect):
        try:
            layout = detect(arrays.shapes, about)
        except UserError:
            raise
        except Exception as error:  # of a side file: what its fields hold may be anything
            if not any(about.values()):
                raise
            names = " or ".join(name for name, content in about.items() if content)
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{address}: a value in {names} cannot be used ({fault}); fetch it again") from error
        if layout is not None:
            return layout
    raise UserError(
        f"{address} holds {len(arrays)} arrays of no layout that is known ({', '.join(list(arrays)[:3])} ...); "
        "known: the .npz of the ViT, Mixer and BiT authors, and .safetensors as transformers and timm name them"
    )


def _read(arrays: Arrays, layout: Layout) -> dict[str, np.ndarray]:
    result = {}
    for theirs, entries in groupby(sorted(layout.entries, key=attrgetter("theirs")), attrgetter("theirs")):
        array = arrays[theirs]  # once, though several entries may share it
        for entry in entries:
            result[entry.ours] = np.ascontiguousarray(entry.convert(array), dtype=np.float32)
    return result
