"""Vision Transformers and hybrids, as vision_transformer and big_vision write them.

github.com/google-research/vision_transformer, vit_jax/models_vit.py and checkpoint.py;
github.com/google-research/big_vision, models/vit.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vit_jax.command import UserError
from vit_jax.pretrained.google import arrays as npz
from vit_jax.pretrained.google.arrays import NAME, Shape, Stored
from vit_jax.pretrained.layout import Convert, Layout, Preprocessing

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


@dataclass(frozen=True)
class Stem:
    """What lies between image and patches: nothing, or a hybrid's ResNet."""

    image_channels: int
    channels: int  # of the map that is cut into patches
    stride: int = 1  # pixels from one position of the map to the next
    fields: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)


def layout(stored: Mapping[str, Stored]) -> Layout:
    """The layout of a ViT or hybrid whose arrays have these names."""
    arrays = our_names(stored)
    p, q, channels, d = npz.sizes(arrays, "embedding/kernel", "p q c d")
    stem = resnet(arrays) if "conv_root/kernel" in arrays else Stem(channels, channels)
    grid = place_positions(arrays)
    fields, shapes = encoder(arrays, d)
    variant, head_shapes = head(arrays, d, fields)
    shapes |= npz.linear("embedding", p, q, stem.channels, d) | stem.shapes | head_shapes
    if grid != (0, 0):
        shapes[POSITIONS] = (1, grid[0] * grid[1] + variant["class_token"], d)
    return Layout(
        NAME,
        npz.settings(
            "hybrid" if stem.fields else "vit",
            {"patch_size": npz.patch_field(p, q), "width": d, **fields, **stem.fields},
            pos_embed="sincos2d" if grid == (0, 0) else "learned",
            activation="gelu_tanh",
            **variant,
        ),
        grid,
        preprocessing(grid, (p * stem.stride, q * stem.stride), stem.image_channels),
        npz.entries(arrays, shapes),
    )


def our_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays by our names: scanned blocks taken apart, positions in one place, Linen's numbers replaced."""
    arrays: dict[str, Stored] = {}
    for name, given in npz.squeeze_norms(stored).items():
        if name in BIG_VISION_POSITIONS:
            arrays[POSITIONS] = given
        elif name.startswith("Transformer/encoderblock/"):
            for i in range(given.shape[0]):
                layer = Stored(given.key, given.shape[1:], layer_of(i))
                arrays[linen_to_ours(name.replace("encoderblock/", f"encoderblock_{i}/"))] = layer
        else:
            arrays[linen_to_ours(name)] = given
    return arrays


def layer_of(i: int) -> Convert:
    """Picks one layer of an array that holds all of them."""
    return lambda array: array[i]


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
    _, tokens, d = npz.sizes(arrays, POSITIONS, "1 l d")
    if patches := npz.side(tokens):
        if "cls" in arrays:
            arrays[POSITIONS] = Stored(given.key, (1, tokens + 1, d), prepend_zeros)
        return patches, patches
    patches = npz.side(tokens - 1) if "cls" in arrays else 0
    if not patches:
        raise UserError(
            f"{NAME}: {given.key} has positions for {tokens} tokens, which are no square grid"
            f"{' and a class token' * ('cls' in arrays)}; only square ones are read"
        )
    return patches, patches


def prepend_zeros(table: np.ndarray) -> np.ndarray:
    """PosEmbed [1 l d] with one more token, of zeros, before the others."""
    return np.pad(table, ((0, 0), (1, 0), (0, 0)))


def encoder(arrays: Mapping[str, Stored], d: int) -> tuple[dict[str, Any], dict[str, Shape]]:
    """The fields and shapes of the encoder."""
    _, a, e = npz.sizes(arrays, f"{BLOCK}0/MultiHeadDotProductAttention_1/query/kernel", "d a e")
    _, f = npz.sizes(arrays, f"{BLOCK}0/MlpBlock_3/Dense_0/kernel", "d f")
    depth = npz.count(arrays, BLOCK, 0)
    shapes = npz.norm("Transformer/encoder_norm", d)
    for i in range(depth):
        shapes |= npz.norm(f"{BLOCK}{i}/LayerNorm_0", d) | npz.norm(f"{BLOCK}{i}/LayerNorm_2", d)
        shapes |= npz.attention(f"{BLOCK}{i}/MultiHeadDotProductAttention_1", d, a, e)
        shapes |= npz.mlp(f"{BLOCK}{i}/MlpBlock_3", d, f)
    return {"depth": depth, "mlp_dim": f, "num_heads": a, "head_dim": 0 if a * e == d else e}, shapes


def head(arrays: Mapping[str, Stored], d: int, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Shape]]:
    """The fields and shapes of what follows the encoder: pooling, pre-logits, linear head."""
    variant: dict[str, Any] = {"class_token": "cls" in arrays, "pooling": "token" if "cls" in arrays else "gap"}
    shapes: dict[str, Shape] = {"cls": (1, 1, d)} if "cls" in arrays else {}
    if "MAPHead_0/probe" in arrays:
        if "cls" in arrays:
            raise UserError(f"{NAME}: a class token (cls) and attention pooling (MAPHead_0) together are not known")
        variant["pooling"] = "map"
        shapes |= map_head(d, fields["num_heads"], fields["mlp_dim"])
    if "pre_logits/kernel" in arrays:
        pooled, d = d, npz.sizes(arrays, "pre_logits/kernel", "d r")[1]
        variant["pre_logits"] = d
        shapes |= npz.linear("pre_logits", pooled, d)
    if "head/kernel" in arrays:
        variant["num_classes"] = npz.sizes(arrays, "head/kernel", "d k")[1]
        shapes |= npz.linear("head", d, variant["num_classes"])
    return variant, shapes


def map_head(d: int, a: int, f: int) -> dict[str, Shape]:
    """The shapes of attention pooling, which has the encoder's heads and MLP width."""
    shapes = {"MAPHead_0/probe": (1, 1, d)} | npz.norm("MAPHead_0/LayerNorm_0", d)
    return (
        shapes
        | npz.attention("MAPHead_0/MultiHeadDotProductAttention_0", d, a, d // a)
        | npz.mlp("MAPHead_0/MlpBlock_0", d, f)
    )


def resnet(arrays: Mapping[str, Stored]) -> Stem:
    """The ResNet of a hybrid (vision_transformer, vit_jax/models_resnet.py)."""
    p, q, image_channels, width = npz.sizes(arrays, "conv_root/kernel", "p q c d")
    shapes = {"conv_root/kernel": (7, 7, image_channels, width)} | npz.norm("gn_root", width)
    stages = tuple(npz.count(arrays, f"block{i + 1}/unit", 1) for i in range(npz.count(arrays, "block", 1)))
    channels = width
    for i, units in enumerate(stages):
        c = width * 2**i
        for j in range(units):
            unit = f"block{i + 1}/unit{j + 1}"
            shapes |= npz.bottleneck(unit, channels, c)
            shapes |= npz.norm(f"{unit}/gn1", c) | npz.norm(f"{unit}/gn2", c) | npz.norm(f"{unit}/gn3", 4 * c)
            if j == 0:
                shapes |= {f"{unit}/conv_proj/kernel": (1, 1, channels, 4 * c)} | npz.norm(f"{unit}/gn_proj", 4 * c)
            channels = 4 * c
    fields = {"stage_sizes": stages, "resnet_width": width}
    return Stem(image_channels, channels, 4 * 2 ** max(len(stages) - 1, 0), fields, shapes)


def preprocessing(grid: tuple[int, int], patch: tuple[int, int], channels: int) -> Preprocessing:
    """As the authors evaluate: the image squeezed into the square.

    Without learned positions a model is one of big_vision's for ImageNet-1k (Beyer et al. 2022, arXiv:2205.01580,
    configs/vit_s16_i1k.py), which get the middle 224 of 256 pixels.
    """
    if grid == (0, 0):
        h, w = (max(round(SIDE / side), 1) * side for side in patch)
        return npz.preprocessing((h, w), channels, "crop", 0.875)
    return npz.preprocessing((grid[0] * patch[0], grid[1] * patch[1]), channels)
