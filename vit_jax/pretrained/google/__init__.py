"""Google's .npz files: vision_transformer, big_vision and big_transfer, facts from their published loading code.

Architectures are derived from shapes alone. Layer norms have flax's epsilon of 1e-6 and MLPs its default GELU, the
tanh approximation.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.google import bit, mixer, vit
from vit_jax.pretrained.google.arrays import NAME, Described, Stored
from vit_jax.pretrained.layout import Entry, Layout, Shape, complete

# Of the image model's parameters: bare; with the optimizer's state, by Optax or by Flax; beside a text model (LiT,
# SigLIP).
PREFIXES = ("", "params/", "opt/target/", "img/", "params/img/")


def resnet_v1(arrays: Mapping[str, Stored]) -> Described:
    """Raises `UserError`: big_vision's models/bit.py has no counterpart here."""
    raise UserError(f"{NAME}: this is a ResNet v1 with group norm, which is not among the models here; BiT is v2")


# The first whose key begins a file's.
FAMILIES: dict[str, Callable[[Mapping[str, Stored]], Described]] = {
    "Transformer/encoderblock": vit.describe,
    "MixerBlock_": mixer.describe,
    "resnet/root_block/": bit.describe,
    "root_block/conv_root/": bit.describe,
    "conv_root/": resnet_v1,
}


def detect(shapes: Mapping[str, Shape], about: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """The layout of a Google .npz with these keys and shapes; None if it is something else. `about` is not needed.

    Raises `UserError` for shapes that contradict each other, and for models that are not among ours.
    """
    for prefix in PREFIXES:
        inner = {
            key.removeprefix(prefix): Stored(key, shape) for key, shape in shapes.items() if key.startswith(prefix)
        }
        for beginning, describe in FAMILIES.items():
            if any(name.startswith(beginning) for name in inner):
                outside = (rf"(?!{re.escape(prefix)}).*",) if prefix else ()
                return _layout(describe(inner), shapes, outside)
    return None


def _layout(found: Described, shapes: Mapping[str, Shape], ignored: tuple[str, ...]) -> Layout:
    def entry(ours: str, shape: Shape) -> Entry:
        name = ours.removeprefix("params/")
        stored = found.arrays.get(name, Stored(name, shape))
        return Entry(ours, stored.key, stored.stored_shape(shape), stored.convert)

    return complete(Layout(NAME, found.model, found.grid, found.preprocessing), shapes, entry, ignored)
