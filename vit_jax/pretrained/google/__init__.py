"""Google's .npz files: vision_transformer, big_vision and big_transfer, facts from their published loading code.

Architectures are derived from shapes alone. Layer norms have flax's epsilon of 1e-6 and MLPs its default GELU, the
tanh approximation.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.google import bit, mixer, vit
from vit_jax.pretrained.google.arrays import NAME, Stored
from vit_jax.pretrained.layout import Layout

# Of the image model's parameters: bare; with the optimizer's state, by Optax or by Flax; beside a text model (LiT,
# SigLIP).
PREFIXES = ("", "params/", "opt/target/", "img/", "params/img/")


def resnet_v1(arrays: Mapping[str, Stored]) -> Layout:
    """Raises `UserError`: big_vision's models/bit.py has no counterpart here."""
    raise UserError(f"{NAME}: this is a ResNet v1 with group norm, which is not among the models here; BiT is v2")


# The first whose key begins a file's.
FAMILIES: dict[str, Callable[[Mapping[str, Stored]], Layout]] = {
    "Transformer/encoderblock": vit.layout,
    "MixerBlock_": mixer.layout,
    "resnet/root_block/": bit.layout,
    "root_block/conv_root/": bit.layout,
    "conv_root/": resnet_v1,
}


def detect(shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """The layout of a Google .npz with these keys and shapes; None if it is something else. `about` is not needed.

    Raises `UserError` for shapes that contradict each other, and for models that are not among ours.
    """
    for prefix in PREFIXES:
        inner = {
            key.removeprefix(prefix): Stored(key, shape) for key, shape in shapes.items() if key.startswith(prefix)
        }
        for beginning, layout in FAMILIES.items():
            if any(name.startswith(beginning) for name in inner):
                outside = (rf"(?!{re.escape(prefix)}).*",) if prefix else ()
                return replace(layout(inner), ignored=outside)
    return None
