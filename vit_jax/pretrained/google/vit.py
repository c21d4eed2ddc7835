"""Vision Transformers and hybrids, as vision_transformer and big_vision write them.

github.com/google-research/vision_transformer, vit_jax/models_vit.py and checkpoint.py;
github.com/google-research/big_vision, models/vit.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained.google.arrays import (
    NAME,
    Described,
    Stored,
    classes,
    side,
    sizes,
    squeeze_norms,
    stage_sizes,
    usual,
)
from vit_jax.pretrained.layout import Preprocessing, count, patch_field, prepend_zeros, settings

BLOCK = "Transformer/encoderblock_"
POSITIONS = "Transformer/posembed_input/pos_embedding"
BIG_VISION_POSITIONS = ("pos_embedding", "Transformer/pos_embedding")  # since 2022 and before
# Before Flax Linen a block's modules were numbered in one row, and so they are here; Linen numbers each class.
LINEN_NAMES = {
    "LayerNorm_1": "LayerNorm_2",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "MlpBlock_0": "MlpBlock_3",
}
SIDE = 224  # pixels that a model is given if nothing tells its image size


def describe(stored: Mapping[str, Stored]) -> Described:
    """A ViT or hybrid whose arrays have these names."""
    arrays = our_names(stored)
    p, q, channels, d = sizes(arrays, "embedding/kernel", "p q c d")
    hybrid: dict[str, Any] = {}
    if "conv_root/kernel" in arrays:  # vision_transformer, vit_jax/models_resnet.py
        _, _, channels, width = sizes(arrays, "conv_root/kernel", "p q c d")
        hybrid = {"stage_sizes": stage_sizes(arrays), "resnet_width": width}
    grid = place_positions(arrays)
    model = settings(
        "hybrid" if hybrid else "vit",
        {"patch_size": patch_field(p, q), "width": d, **encoder(arrays, d), **hybrid},
        pos_embed="sincos2d" if grid == (0, 0) else "learned",
        activation="gelu_tanh",
        class_token="cls" in arrays,
        pooling=pooling(arrays),
        pre_logits=sizes(arrays, "pre_logits/kernel", "d r")[1] if "pre_logits/kernel" in arrays else 0,
        num_classes=classes(arrays),
    )
    stride = models.create(model).stride if hybrid else 1
    return Described(arrays, model, grid, preprocessing(grid, (p * stride, q * stride), channels))


def our_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays by our names: scanned blocks taken apart, positions in one place, Linen's numbers replaced."""
    arrays: dict[str, Stored] = {}
    for name, given in squeeze_norms(stored).items():
        if name in BIG_VISION_POSITIONS:
            arrays[POSITIONS] = given
        elif name.startswith("Transformer/encoderblock/"):
            for i in range(given.shape[0]):
                arrays[linen_to_ours(name.replace("encoderblock/", f"encoderblock_{i}/"))] = layer_of(given, i)
        else:
            arrays[linen_to_ours(name)] = given
    return arrays


def layer_of(given: Stored, i: int) -> Stored:
    """One layer of an array that holds all of them."""
    depth, *shape = given.shape
    return Stored(given.key, tuple(shape), lambda array: array[i], lambda shape: (depth, *shape))


def linen_to_ours(name: str) -> str:
    """The name with the module of an encoder block numbered as here."""
    match = re.match(rf"({BLOCK}\d+/)(\w+)(/.*)", name)
    return name if match is None else match[1] + LINEN_NAMES.get(match[2], match[2]) + match[3]


def place_positions(arrays: dict[str, Stored]) -> tuple[int, int]:
    """The grid that positions were learned for, (0, 0) without; gives the class token a position if it has none.

    big_vision adds positions before it prepends the class token, so a row of zeros takes its place.
    """
    if POSITIONS not in arrays:
        return 0, 0
    given = arrays[POSITIONS]
    _, tokens, d = sizes(arrays, POSITIONS, "1 l d")
    if patches := side(tokens):
        if "cls" in arrays:
            arrays[POSITIONS] = Stored(given.key, (1, tokens + 1, d), prepend_zeros(1), lambda s: (1, tokens, s[2]))
        return patches, patches
    patches = side(tokens - 1) if "cls" in arrays else 0
    if not patches:
        raise UserError(
            f"{NAME}: {given.key} has positions for {tokens} tokens, which are no square grid"
            f"{' and a class token' * ('cls' in arrays)}; only square ones are read"
        )
    return patches, patches


def encoder(arrays: Mapping[str, Stored], d: int) -> dict[str, int]:
    """The fields of the encoder."""
    _, a, e = sizes(arrays, f"{BLOCK}0/MultiHeadDotProductAttention_1/query/kernel", "d a e")
    _, f = sizes(arrays, f"{BLOCK}0/MlpBlock_3/Dense_0/kernel", "d f")
    depth = count(NAME, arrays, BLOCK, 0, BLOCK)
    return {"depth": depth, "mlp_dim": f, "num_heads": a, "head_dim": 0 if a * e == d else e}


def pooling(arrays: Mapping[str, Stored]) -> str:
    """How tokens become one; raises `UserError` for a class token beside attention pooling."""
    if "MAPHead_0/probe" not in arrays:
        return "token" if "cls" in arrays else "gap"
    if "cls" in arrays:
        raise UserError(f"{NAME}: a class token (cls) and attention pooling (MAPHead_0) together are not known")
    return "map"


def preprocessing(grid: tuple[int, int], patch: tuple[int, int], channels: int) -> Preprocessing:
    """As the authors evaluate: the image squeezed into the square.

    Without learned positions a model is one of big_vision's for ImageNet-1k (Beyer et al. 2022, arXiv:2205.01580,
    configs/vit_s16_i1k.py), which get the middle 224 of 256 pixels.
    """
    if grid == (0, 0):
        h, w = (max(round(SIDE / side), 1) * side for side in patch)
        return usual((h, w), channels, "crop", 0.875)
    return usual((grid[0] * patch[0], grid[1] * patch[1]), channels)
