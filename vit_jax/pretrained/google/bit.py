"""Big Transfer's ResNets, as big_transfer publishes them (TensorFlow's names) and as big_vision writes them.

github.com/google-research/big_transfer, bit_jax/tf2jax.py; github.com/google-research/big_vision, models/bit_paper.py.
"""

import re
from collections.abc import Mapping

from vit_jax.pretrained.google.arrays import (
    Described,
    Stored,
    classes,
    sizes,
    squeeze_norms,
    squeezed,
    stage_sizes,
    usual,
)
from vit_jax.pretrained.layout import settings

PREFIX = "resnet/"
IMAGENET_21K = 21_843  # classes
# TensorFlow's names in the order in which they are replaced. Some files number the convolutions (bit_paper.py).
TENSORFLOW_NAMES = (
    (r"standardized_conv2d(_\d+)?/", ""),
    (r"gamma$", "scale"),
    (r"beta$", "bias"),
    (r"^root_block/", "root_block/conv_root/"),
    (r"^group_norm/", "norm-pre-head/"),
    (r"^head/conv2d/", "head/"),
    (r"/a/proj/", "/conv_proj/"),
    (r"/([abc])/group_norm/", lambda match: f"/gn{'abc'.index(match[1]) + 1}/"),
    (r"/([abc])/kernel$", lambda match: f"/conv{'abc'.index(match[1]) + 1}/kernel"),
)


def describe(stored: Mapping[str, Stored]) -> Described:
    """A BiT network whose arrays have these names."""
    arrays = squeeze_norms(our_names(stored))
    _, _, channels, width = sizes(arrays, "root_block/conv_root/kernel", "p q c d")
    fields = {"stage_sizes": stage_sizes(arrays), "width": width}
    tensorflow = any(name.startswith(PREFIX) for name in stored)
    model = settings("bit", fields, num_classes=classes(arrays), zero_padded_pool=tensorflow)
    side = image_side(model["stage_sizes"], width, model["num_classes"])
    return Described(arrays, model, (0, 0), usual((side, side), channels))


def our_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays by our names; the head, a 1x1 convolution in TensorFlow, as a matrix."""
    arrays = {}
    for name, given in stored.items():
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
            for pattern, ours in TENSORFLOW_NAMES:
                name = re.sub(pattern, ours, name)
        arrays[name] = squeezed(given, 2) if name == "head/kernel" else given
    return arrays


def image_side(stages: tuple[int, ...], width: int, classes: int) -> int:
    """Pixels: 224 of networks trained on ImageNet-21k, 384 of those fine-tuned to another set, 480 of the largest.

    Kolesnikov et al. 2020, arXiv:1912.11370, s. 3.3; big_vision, configs/load_and_eval.py. Networks that were trained
    on ImageNet-1k from scratch (BiT-S) or distilled to it, at 224 or 160 pixels, have the shapes of those fine-tuned
    to it, and get 384 too.
    """
    if classes in (0, IMAGENET_21K):
        return 224
    return 480 if (stages, width) == ((3, 8, 36, 3), 256) else 384
