"""The safetensors files of Hugging Face's `transformers`: ViT, DeiT, DINOv2, ResNet, BiT.

Key names are those that `save_pretrained` writes, in transformers 5 as in 4; facts from its models' code and published
files. Shapes tell the architecture, config.json the rest; without it, `transformers`' defaults hold.
"""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.command import UserError
from vit_jax.pretrained.huggingface import convolutional, transformer
from vit_jax.pretrained.huggingface.config import NAME
from vit_jax.pretrained.layout import Layout

# By the array that every file of the kind has, after the prefix: how it is read, and its values of `model_type`.
FAMILIES = {
    "embeddings.patch_embeddings.projection.weight": (
        transformer.layout,
        ("vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers"),
    ),
    "embedder.embedder.convolution.weight": (convolutional.resnet, ("resnet",)),
    "embedder.convolution.weight": (convolutional.bit, ("bit",)),
}
PREFIX = re.compile(r"(?:\w+\.)?")  # the name of the model within one that has a head: "vit."


def detect(shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """The layout of a `transformers` file with these keys and shapes; None if it is something else.

    Raises `UserError` for shapes that contradict each other, and for models that are not among ours.
    """
    for key in shapes:
        for ending, (layout, types) in FAMILIES.items():
            prefix = key.removesuffix(ending)
            if key.endswith(ending) and PREFIX.fullmatch(prefix):
                found = about.get("config.json", {}).get("model_type", types[0])
                if found not in types:
                    known = ", ".join(name for _, names in FAMILIES.values() for name in names)
                    raise UserError(f"{NAME}: the model_type {found!r} in config.json is not among {known}")
                return layout(shapes, prefix, about)
    return None
