"""ViT, DeiT and DINOv2 of `transformers`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.huggingface.config import NAME, class_names
from vit_jax.pretrained.layout import Convert, Layout, Preprocessing
from vit_jax.pretrained.pytorch import transformer
from vit_jax.pretrained.pytorch.table import IMAGENET_MEAN, IMAGENET_STD, Shape, Table, pair, per_channel, settings
from vit_jax.pretrained.pytorch.transformer import Names

VIT = Names(
    patches="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    dist="embeddings.distillation_token",
    registers="embeddings.register_tokens",
    pos_embed="embeddings.position_embeddings",
    norm="layernorm",
    pooled_norm="",
    block="encoder.layer.",
    norms=("layernorm_before", "layernorm_after"),
    projections=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense",
    qk_norms=("", ""),
    layers=("intermediate.dense", "output.dense"),
    gate="",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
DINOV2 = replace(VIT, norms=("norm1", "norm2"), layers=("mlp.fc1", "mlp.fc2"))
DINOV2_GATED = replace(DINOV2, layers=("mlp.weights_in", "mlp.weights_out"))
# What transformers 5 calls its modules in memory; files have these names if they were saved without its conversion.
PROJECTIONS_5, OUT_5 = ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.o_proj"
VIT_5 = replace(VIT, block="layers.", projections=PROJECTIONS_5, out=OUT_5, layers=("mlp.fc1", "mlp.fc2"))
DINOV2_5 = replace(DINOV2, projections=PROJECTIONS_5, out=OUT_5)
DINOV2_GATED_5 = replace(DINOV2_5, gate="mlp.gate_proj", layers=("mlp.up_proj", "mlp.down_proj"))
ALL_NAMES = (VIT, DINOV2, DINOV2_GATED, VIT_5, DINOV2_5, DINOV2_GATED_5)

ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
}
# The pooler is a layer that only models without a head have, and that classifies nothing. The decoder and the mask
# token are those of pre-training.
UNUSED = (r"(\w+\.)?pooler\.dense\.(weight|bias)", r"decoder\..*", r"(\w+\.)?embeddings\.mask_token")


def layout(shapes: Mapping[str, Shape], prefix: str, about: Mapping[str, Mapping[str, Any]]) -> Layout:
    """The layout of a Vision Transformer whose keys, but the heads', begin with `prefix`."""
    config, table = about.get("config.json", {}), Table(NAME, shapes)
    body = table.inside(prefix)
    names = _names(body)
    scaled = body.has(f"{names.block}0.{names.scales[0]}")
    found = transformer.fields(body, names)
    if not found["class_token"]:
        raise UserError(f"{NAME}: {prefix}{names.cls} is missing; is the file complete?")
    sizes = {field: found.pop(field) for field in ("patch_size", "width", "depth", "mlp_dim")}
    attention = transformer.num_heads(body, names, config.get("num_attention_heads"), "a config.json beside the file")
    classes = _classes(table)
    model = settings(
        "deit" if found["distillation_token"] else "vit",
        {**sizes, "num_heads": attention.pop("num_heads")},
        num_classes=classes,
        pooling="token_gap" if scaled and classes else "token",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-6 if scaled else 1e-12)),
        layer_scale=float(config.get("layerscale_value") or 1.0) if scaled else 0.0,
        **{"activation": _activation(config), **found, **attention},
    )
    image_size = pair(config["image_size"]) if config.get("image_size") else None
    grid, pos_embed = transformer.grid(body, names, model, image_size)
    channels = body.shape(f"{names.patches}.weight", "d c p q")[1]
    rows = body.shape(names.pos_embed, "1 l d")[1]
    transformer.add(body, names, model, channels, rows, pos_embed)
    add_heads(table, model)
    patch = square(model["patch_size"])
    default = _preprocessing(model, channels, (grid[0] * patch[0], grid[1] * patch[1]))
    return Layout(
        NAME,
        model,
        grid,
        processor.read(about.get("preprocessor_config.json", {}), default),
        table.finish(UNUSED),
        UNUSED,
        class_names(config, classes),
    )


def _names(body: Table) -> Names:
    for names in ALL_NAMES:
        block = body.inside(f"{names.block}0.")
        if block.has(f"{names.layers[0]}.weight") and block.has(f"{names.projections[0]}.weight"):
            return names
    raise UserError(
        f"{NAME}: the arrays of {body.prefix}{VIT.block}0 have no names that are known; is the file complete?"
    )


def _activation(config: Mapping[str, Any]) -> str:
    given = config.get("hidden_act", "gelu")
    if given not in ACTIVATIONS:
        raise UserError(
            f"{NAME}: no model here has hidden_act={given!r} of config.json; known: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[given]


def _classes(table: Table) -> int:
    """The classes of the head; 0 without one."""
    for key in ("classifier.weight", "cls_classifier.weight"):
        if table.has(key):
            return table.shape(key, "k d")[0]
    return 0


def add_heads(table: Table, model: Mapping[str, Any]) -> None:
    """The entries of the classifiers."""
    d, k = model["width"], model["num_classes"]
    if not k:
        return
    if not model["distillation_token"]:
        table.linear("params/head", "classifier", 2 * d if model["pooling"] == "token_gap" else d, k)
    elif table.has("cls_classifier.weight"):
        table.linear("params/head", "cls_classifier", d, k)
        table.linear("params/head_dist", "distillation_classifier", d, k)
    else:
        # DeiTForImageClassification reads the class token alone, where models here return the mean of both heads.
        # A distillation head of zeros and a class head of twice the size have that classifier's output as their mean.
        for ours, factor in (("head", 2), ("head_dist", 0)):
            table.add(f"params/{ours}/kernel", "classifier.weight", (k, d), _scaled(factor, transpose=True))
            table.add(f"params/{ours}/bias", "classifier.bias", (k,), _scaled(factor))


def _scaled(factor: int, *, transpose: bool = False) -> Convert:
    return lambda array: np.multiply(array.T if transpose else array, np.float32(factor))


def _preprocessing(model: Mapping[str, Any], channels: int, size: tuple[int, int]) -> Preprocessing:
    """The family's usual one, for files without a preprocessor_config.json."""
    mean, std = per_channel(IMAGENET_MEAN, channels), per_channel(IMAGENET_STD, channels)
    if model["layer_scale"]:
        return Preprocessing(size, "crop", 224 / 256, "bicubic", mean, std)
    if model["distillation_token"]:
        return Preprocessing(size, "stretch", 224 / 256, "bicubic", mean, std)
    half = per_channel(0.5, channels)
    return Preprocessing(size, "stretch", 1.0, "bilinear", half, half)
