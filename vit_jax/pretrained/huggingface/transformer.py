"""ViT, DeiT and DINOv2 of `transformers`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.huggingface.config import NAME, class_names, loss
from vit_jax.pretrained.layout import HALF, IMAGENET, Entry, Layout, Preprocessing, Shape, complete, pair, preprocessing
from vit_jax.pretrained.pytorch import transformer
from vit_jax.pretrained.pytorch.table import Table
from vit_jax.pretrained.pytorch.transformer import ATTENTION, FIRST, GATE, KEY, QUERY, SECOND, VALUE, Names

VIT = Names(
    outside={
        "embedding": "embeddings.patch_embeddings.projection",
        "cls": "embeddings.cls_token",
        "dist": "embeddings.distillation_token",
        "Transformer/registers": "embeddings.register_tokens",
        "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
        "Transformer/encoder_norm": "layernorm",
    },
    block="encoder.layer.",
    inside={
        "LayerNorm_0": "layernorm_before",
        QUERY: "attention.attention.query",
        KEY: "attention.attention.key",
        VALUE: "attention.attention.value",
        f"{ATTENTION}/out": "attention.output.dense",
        "LayerNorm_2": "layernorm_after",
        FIRST: "intermediate.dense",
        SECOND: "output.dense",
        "LayerScale_0/scale": "layer_scale1.lambda1",
        "LayerScale_1/scale": "layer_scale2.lambda1",
    },
)
DINOV2 = VIT.with_inside({"LayerNorm_0": "norm1", "LayerNorm_2": "norm2", FIRST: "mlp.fc1", SECOND: "mlp.fc2"})
DINOV2_GATED = DINOV2.with_inside({FIRST: "mlp.weights_in", SECOND: "mlp.weights_out"})
# What transformers 5 calls its modules in memory; files have these names if they were saved without its conversion.
ATTENTION_5 = {QUERY: "attention.q_proj", KEY: "attention.k_proj", VALUE: "attention.v_proj"}
ATTENTION_5[f"{ATTENTION}/out"] = "attention.o_proj"
VIT_5 = replace(VIT.with_inside(ATTENTION_5 | {FIRST: "mlp.fc1", SECOND: "mlp.fc2"}), block="layers.")
DINOV2_5 = DINOV2.with_inside(ATTENTION_5)
DINOV2_GATED_5 = DINOV2_5.with_inside({GATE: "mlp.gate_proj", FIRST: "mlp.up_proj", SECOND: "mlp.down_proj"})
ALL_NAMES = (VIT, DINOV2, DINOV2_GATED, VIT_5, DINOV2_5, DINOV2_GATED_5)
HEAD = {"head": "classifier"}
HEADS = {"head": "cls_classifier", "head_dist": "distillation_classifier"}

ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
}
# The pooler is a layer that only models without a head have, and that classifies nothing. The decoder and the mask
# token are those of pre-training.
UNUSED = (r"(\w+\.)?pooler\.dense\.(weight|bias)", r"decoder\..*", r"(\w+\.)?embeddings\.mask_token")


def layout(shapes: Mapping[str, Shape], prefix: str, about: Mapping[str, Mapping[str, Any]]) -> Layout:
    """The layout of a Vision Transformer whose keys, but the heads', begin with `prefix`."""
    config = about.get("config.json", {})
    heads = HEADS if "cls_classifier.weight" in shapes else HEAD
    table, fields = transformer.read(NAME, shapes, _names(shapes, prefix), prefix, heads)
    if not fields["class_token"]:
        raise UserError(f"{NAME}: {table.key('cls')} is missing; is the file complete?")
    fields |= transformer.num_heads(table, fields, config.get("num_attention_heads"), "a config.json beside the file")
    scaled = fields["layer_scale"]
    model = transformer.model_of(
        fields,
        activation=_activation(config),
        pooling="token_gap" if scaled and fields["num_classes"] else "token",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-6 if scaled else 1e-12)),
        layer_scale=float(config.get("layerscale_value") or 1.0) if scaled else 0.0,
    )
    grid, entry = transformer.grid(table, model, pair(config["image_size"]) if config.get("image_size") else None)
    twins = fields["distillation_token"] and heads is HEAD
    p, q = square(model["patch_size"])
    usual = _preprocessing(model, table.shape("embedding/kernel", "d c p q")[1], (grid[0] * p, grid[1] * q))
    view = processor.read(about.get("preprocessor_config.json", {}), usual)
    k = model["num_classes"]
    smooth = not scaled or bool(model["registers"])  # DINOv2's authors do with registers alone
    found = Layout(NAME, model, grid, view, class_names(config, k), loss=loss(config, k), antialias=smooth)
    return complete(found, shapes, partial(_entry_of_twins, table, entry) if twins else entry, UNUSED)


def _names(shapes: Mapping[str, Shape], prefix: str) -> Names:
    for names in ALL_NAMES:
        table = Table(NAME, shapes, names.modules(1, prefix))
        if all(table.has(f"Transformer/encoderblock_0/{module}/kernel") for module in (FIRST, QUERY)):
            return names
    raise UserError(f"{NAME}: the arrays of {prefix}{VIT.block}0 have no names that are known; is the file complete?")


def _activation(config: Mapping[str, Any]) -> str:
    given = config.get("hidden_act", "gelu")
    if given not in ACTIVATIONS:
        raise UserError(
            f"{NAME}: no model here has hidden_act={given!r} of config.json; known: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[given]


def _entry_of_twins(table: Table, entry: Callable[[str, Shape], Entry], ours: str, shape: Shape) -> Entry:
    """Makes both heads of a DeiT from one.

    DeiTForImageClassification reads the class token alone, where models here return the mean of both heads. A
    distillation head of zeros and a class head of twice the size have that classifier's output as their mean.
    """
    if not ours.startswith("params/head"):
        return entry(ours, shape)
    factor = np.float32(0 if ours.startswith("params/head_dist/") else 2)
    made = table.entry(ours.replace("head_dist", "head"), shape)
    return replace(made, ours=ours, convert=lambda array: np.multiply(made.convert(array), factor))


def _preprocessing(model: Mapping[str, Any], channels: int, size: tuple[int, int]) -> Preprocessing:
    """The family's usual one, for files without a preprocessor_config.json."""
    if model["layer_scale"]:
        return preprocessing(size, "crop", 224 / 256, "bicubic", IMAGENET, channels)
    if model["distillation_token"]:
        return preprocessing(size, "stretch", 224 / 256, "bicubic", IMAGENET, channels)
    return preprocessing(size, "stretch", 1.0, "bilinear", HALF, channels)
