"""Big Transfer's ResNets, as big_transfer publishes them (TensorFlow's names) and as big_vision writes them.

github.com/google-research/big_transfer, bit_jax/tf2jax.py; github.com/google-research/big_vision, models/bit_paper.py.
"""

import re
from collections.abc import Mapping

import numpy as np

from vit_jax.pretrained.google import arrays as npz
from vit_jax.pretrained.google.arrays import NAME, Shape, Stored
from vit_jax.pretrained.layout import Layout

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


def layout(stored: Mapping[str, Stored]) -> Layout:
    """The layout of a BiT network whose arrays have these names."""
    arrays = npz.squeeze_norms(our_names(stored))
    _, _, image_channels, width = npz.sizes(arrays, "root_block/conv_root/kernel", "p q c d")
    stages = tuple(npz.count(arrays, f"block{i + 1}/unit", 1) for i in range(npz.count(arrays, "block", 1)))
    shapes: dict[str, Shape] = {"root_block/conv_root/kernel": (7, 7, image_channels, width)}
    channels = width
    for i, units in enumerate(stages):
        c = width * 2**i
        for j in range(units):
            unit = f"block{i + 1}/unit{j + 1:02}"
            shapes |= npz.norm(f"{unit}/gn1", channels) | npz.norm(f"{unit}/gn2", c) | npz.norm(f"{unit}/gn3", c)
            shapes |= npz.bottleneck(unit, channels, c)
            if j == 0:
                shapes[f"{unit}/conv_proj/kernel"] = (1, 1, channels, 4 * c)
            channels = 4 * c
    classes = npz.sizes(arrays, "head/kernel", "d k")[1] if "head/kernel" in arrays else 0
    shapes |= npz.norm("norm-pre-head", channels) | (npz.linear("head", channels, classes) if classes else {})

    side = image_side(stages, width, classes)
    tensorflow = any(name.startswith(PREFIX) for name in stored)
    fields = {"stage_sizes": stages, "width": width}
    return Layout(
        NAME,
        npz.settings("bit", fields, num_classes=classes, zero_padded_pool=tensorflow),
        (0, 0),
        npz.preprocessing((side, side), image_channels),
        npz.entries(arrays, shapes),
    )


def our_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays by our names; the head, a 1x1 convolution in TensorFlow, as a matrix."""
    arrays = {}
    for name, given in stored.items():
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
            for pattern, ours in TENSORFLOW_NAMES:
                name = re.sub(pattern, ours, name)
        if name == "head/kernel" and given.shape[:2] == (1, 1):
            given = Stored(given.key, given.shape[2:], matrix)
        arrays[name] = given
    return arrays


def matrix(kernel: np.ndarray) -> np.ndarray:
    """A 1x1 convolution's kernel [1 1 c k] as [c k]."""
    return kernel[0, 0]


def image_side(stages: tuple[int, ...], width: int, classes: int) -> int:
    """Pixels: 224 of networks trained on ImageNet-21k, 384 of those fine-tuned to another set, 480 of the largest.

    Kolesnikov et al. 2020, arXiv:1912.11370, s. 3.3; big_vision, configs/load_and_eval.py. Networks that were trained
    on ImageNet-1k from scratch (BiT-S) or distilled to it, at 224 or 160 pixels, have the shapes of those fine-tuned
    to it, and get 384 too.
    """
    if classes in (0, IMAGENET_21K):
        return 224
    return 480 if (stages, width) == ((3, 8, 36, 3), 256) else 384
