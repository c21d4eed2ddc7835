"""A small model of each family, for laws that all keep."""

from typing import Any

from flax import linen as nn

from vit_jax import models

VIT = {"width": 8, "depth": 2, "num_heads": 2}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit/mu16", {"depth": 2, "registers": 3, "patch_size": (8,)}),
    "deit": ("deit", {**VIT, "patch_size": (8, 16), "mlp_dim": 11}),
    "compact": ("compact/CCT-7/3x1", {**VIT, "stride": 2}),
    "vit_lite": ("compact/ViT-Lite-7/8", VIT),
    "mixer": ("mixer/S16", {"width": 8, "depth": 1, "token_mlp_dim": 5, "channel_mlp_dim": 7}),
    "hybrid": ("hybrid/R+Ti16", {**VIT, "stage_sizes": (1, 1), "patch_size": (1,)}),
    "cnn": ("cnn/conv3", {"stages": ((5,), (7,))}),
    "resnet": ("resnet/50", {"stage_sizes": (1, 1), "width": 8}),
    "resnetv2": ("resnetv2/keras101", {"stage_sizes": (1, 1), "width": 8, "head_widths": ()}),
    "bit": ("bit/50x1", {"stage_sizes": (1, 1), "width": 32}),
    "visual_transformer": ("visual_transformer/R18", {"stem": "small", "stage_sizes": (1, 1), "mlp_dim": 9}),
}


def small(family: str, **fields: Any) -> nn.Module:
    """The model, with five classes."""
    name, sizes = SMALL[family]
    return models.create(models.settings(name, num_classes=5, **sizes | fields))
