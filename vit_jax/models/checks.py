"""What models ask of their fields, and what they tell where that is not so."""

from typing import Any

from flax import linen as nn

from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.models.positions import IN_LOGITS


def check_positive(model: nn.Module, *fields: str) -> None:
    """Raises `UserError` if one of these fields is below 1."""
    for field in fields:
        if getattr(model, field) < 1:
            raise UserError(f"model.{field}={getattr(model, field)} is not positive")


def check_widths(model: nn.Module, field: str) -> None:
    """Raises `UserError` if a layer of this field, a tuple of widths, has none."""
    widths = getattr(model, field)
    if widths and min(widths) < 1:
        raise UserError(f"model.{field}={widths} must be positive widths, e.g. (512,); () means no such layer")


def check_rates(model: nn.Module, *fields: str) -> None:
    """Raises `UserError` if one of these fields is not a probability below 1."""
    for field in fields:
        if not 0 <= getattr(model, field) < 1:
            raise UserError(f"model.{field}={getattr(model, field)} is not a probability below 1")


def check_patches(patch_size: tuple[int, ...], image_shape: tuple[int, int, int]) -> None:
    """Raises `UserError` if patches of this size do not tile images of this shape (height, width, channels)."""
    if len(patch_size) not in (1, 2) or min(patch_size) < 1:
        raise UserError(f"model.patch_size={patch_size} is not one or two positive numbers, e.g. (16,)")
    for side, patch, size in zip(("height", "width"), square(patch_size), image_shape, strict=False):
        if size % patch:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - patch))[:2])
            raise UserError(
                f"model.patch_size={patch} does not divide the image {side} {size}; "
                f"try {' or '.join(map(str, near))}, or set augment.resize to a multiple of {patch}"
            )


def check_vit(model: Any, image_shape: tuple[int, int, int]) -> None:
    """Raises `UserError` if a ViT's fields do not fit each other or images of this shape (height, width, channels)."""
    check_positive(model, "width", "depth", "mlp_dim", "num_heads")
    check_patches(model.patch_size, image_shape)
    for field in ("head_dim", "registers", "pre_logits"):
        if getattr(model, field) < 0:
            raise UserError(f"model.{field}={getattr(model, field)} is negative; 0 means off")
    check_widths(model, "head_widths")
    if not model.head_dim and model.width % model.num_heads:
        raise UserError(
            f"model.num_heads={model.num_heads} does not divide model.width={model.width}; choose a divisor, or set "
            "model.head_dim"
        )
    if model.pooling == "map" and model.width % model.num_heads:
        raise UserError(f"model.pooling='map' needs num_heads={model.num_heads} to divide width={model.width}")
    if model.pooling in ("token", "token_gap") and not model.class_token:
        raise UserError(f"model.pooling={model.pooling!r} needs model.class_token=True; or choose pooling='gap'")
    if model.norm_after_pooling and (model.distillation_token or model.pooling in ("flatten", "none")):
        raise UserError(
            f"model.norm_after_pooling=True normalises one pooled token, not those of pooling={model.pooling!r}, "
            f"distillation_token={model.distillation_token}; set it to False"
        )
    parts = {"learned_2d": 2, "sincos2d": 4}.get(model.pos_embed, 1)
    if model.width % parts:
        raise UserError(f"model.pos_embed={model.pos_embed!r} needs a width divisible by {parts}, not {model.width}")
    check_rates(model, "dropout", "projection_dropout", "attention_dropout", "embedding_dropout", "head_dropout")
    check_rates(model, "stochastic_depth", "patch_dropout")
    if model.patch_dropout and (model.pooling in ("flatten", "none") or model.pos_embed in IN_LOGITS):
        raise UserError(
            f"model.patch_dropout={model.patch_dropout} leaves out patches, which pooling={model.pooling!r} with "
            f"pos_embed={model.pos_embed!r} needs; choose pooling='gap', pos_embed='learned'"
        )
    if model.distillation_token and (model.pooling != "token" or model.pre_logits or model.head_widths):
        raise UserError(
            "model.distillation_token=True needs pooling='token', pre_logits=0 and head_widths=(), not "
            f"{model.pooling!r}, {model.pre_logits} and {model.head_widths}: each of both tokens has one linear head"
        )
