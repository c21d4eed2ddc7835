"""What models ask of their fields, and what they tell where that is not so."""

from flax import linen as nn

from vit_jax.command import UserError
from vit_jax.models.layers import square


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
