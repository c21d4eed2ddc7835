"""Corruptions of test images, for measuring robustness: five severities each, the same for each run.

Noise, blur, contrast, brightness, jpeg and pixelate with the severities of Hendrycks & Dietterich 2019
(arXiv:1903.12261), which they published for ImageNet's and for CIFAR's image size; patch shuffle and occlusion after
Naseer et al. 2021 (arXiv:2105.10497), grey after Geirhos et al. 2019 (arXiv:1811.12231), whose severities are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

from vit_jax.augment.color import blur
from vit_jax.augment.jpeg import compress
from vit_jax.augment.operations import grey
from vit_jax.command import UserError

Kind = Literal[
    "none", "noise", "blur", "contrast", "brightness", "jpeg", "pixelate", "grey", "patch_shuffle", "occlusion"
]
Scale = Literal["auto", "imagenet", "cifar"]
# Severities 1 to 5. Noise: standard deviation, contrast: factor, brightness: addend, all for values 0 to 1;
# blur: standard deviation in pixels; jpeg: quality; pixelate: the smaller size as a share; grey: share of the colour
# that goes; patch_shuffle: patches per side; occlusion: share of the patches that turn black.
IMAGENET = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "jpeg": (25.0, 18.0, 15.0, 10.0, 7.0),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "grey": (0.2, 0.4, 0.6, 0.8, 1.0),
    "patch_shuffle": (2.0, 4.0, 7.0, 8.0, 14.0),
    "occlusion": (0.1, 0.3, 0.5, 0.7, 0.9),
}
CIFAR = IMAGENET | {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "jpeg": (80.0, 65.0, 58.0, 50.0, 40.0),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "patch_shuffle": (2.0, 4.0, 5.0, 8.0, 16.0),
}
SMALL = 64  # pixels of the shorter side, up to which images have CIFAR's severities by default
SHUFFLED = 0.9  # of each side of an image at least
OCCLUSION_PATCHES = 14  # per side, fewer in an image of fewer pixels


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """The config group `corruption`, of the command `vit_jax.evaluate`: what happens to the images. Off by default."""

    kind: Kind = "none"
    severity: int = 0  # 1 to 5; 0: off
    scale: Scale = "auto"  # whose severities: for 224 pixels, for 32, or for the size that the images have
    seed: int = 0  # of noise, shuffle and occlusion


def check_corruption(settings: Corruption) -> None:
    """Raises `UserError`, naming the field, if a value is out of its range or one is given without the other."""
    if settings.kind not in get_args(Kind):
        raise UserError(f"corruption.kind={settings.kind!r}: expected one of {', '.join(get_args(Kind))}")
    if settings.scale not in get_args(Scale):
        raise UserError(f"corruption.scale={settings.scale!r}: expected one of {', '.join(get_args(Scale))}")
    if not 0 <= settings.severity <= 5:
        raise UserError(f"corruption.severity={settings.severity}: expected 0 (off) to 5")
    if (settings.kind == "none") != (settings.severity == 0):
        raise UserError(
            f"corruption.kind={settings.kind!r} with corruption.severity={settings.severity}: set both or neither"
        )
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"corruption.seed={settings.seed}: expected 0 to 2**32 - 1")


def check_corrupted(settings: Corruption, channels: int) -> None:
    """Raises `UserError` for a corruption that images of so many channels do not show."""
    if settings.kind == "grey" and channels == 1:
        raise UserError("corruption.kind='grey' changes nothing in images of one channel; choose another kind")


def corrupt(settings: Corruption, images: UInt8[Array, "n h w c"], index: Int[Array, " n"]) -> UInt8[Array, "n h w c"]:
    """The corrupted images; what happens to one depends on it, the seed and its index in the split alone."""
    if settings.kind == "none" or not settings.severity:
        return images
    value = severities(settings.scale, images.shape[1:3])[settings.kind][settings.severity - 1]
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(settings.seed)))(index)
    return jax.vmap(partial(_corrupted, settings.kind, value))(images, keys)


def severities(scale: Scale, size: tuple[int, ...]) -> Mapping[str, tuple[float, ...]]:
    """The five values of each kind; "auto" chooses by the size (h, w): what 224 pixels bear wipes out 28."""
    cifar = scale == "cifar" or (scale == "auto" and min(size) <= SMALL)
    return CIFAR if cifar else IMAGENET


def _corrupted(kind: Kind, value: float, image: UInt8[Array, "h w c"], key: Key[Array, ""]) -> UInt8[Array, "h w c"]:
    x = image.astype(jnp.float32) / 255
    match kind:
        case "noise":
            x = x + value * jax.random.normal(key, x.shape)
        case "blur":
            return blur(image, jnp.float32(value), value)
        case "contrast":
            mean = x.mean(axis=(0, 1), keepdims=True)
            x = (x - mean) * value + mean
        case "brightness":
            x = _brighter(x, value)
        case "jpeg":
            return compress(image, int(value))
        case "pixelate":
            x = _pixelated(x, value)
        case "grey":
            x = x + value * (grey(image).astype(jnp.float32) / 255 - x)
        case "patch_shuffle":
            return shuffled(key, image, int(value))
        case "occlusion":
            return jnp.where(occluded(key, image.shape[:2], value)[:, :, None], 0, image)
    return jnp.round(jnp.clip(x, 0, 1) * 255).astype(jnp.uint8)


def _brighter(x: Float[Array, "h w c"], addend: float) -> Float[Array, "h w c"]:
    """The addend on the value in HSV, at most 1; hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    brighter = jnp.minimum(value + addend, 1)
    return jnp.where(value > 0, x / jnp.where(value > 0, value, 1), 1) * brighter


def _pixelated(x: Float[Array, "h w c"], share: float) -> Float[Array, "h w c"]:
    """The image at a share of its size and back, both by Pillow's BOX filter."""
    for axis in (0, 1):
        size = x.shape[axis]
        small = max(1, int(size * share))
        weights = jnp.asarray(_box_weights(small, size) @ _box_weights(size, small), jnp.float32)
        x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision="highest"), 0, axis)
    return x


def _box_weights(given: int, wanted: int) -> Float[np.ndarray, "{wanted} {given}"]:
    """The share of each of `given` pixels in each of `wanted`: those whose centre lies in it."""
    scale = given / wanted
    pixel, centre, width = np.arange(given)[None], (np.arange(wanted)[:, None] + 0.5) * scale, max(scale, 1)
    offset = (pixel - centre + 0.5) * (1 / width)
    # Like Pillow twice over: where a pixel's centre lies on the box's edge, the rounding errors decide.
    first, last = np.floor(centre - width / 2 + 0.5), np.floor(centre + width / 2 + 0.5)
    inside = (offset > -0.5) & (offset <= 0.5) & (pixel >= first) & (pixel < last)
    return inside / inside.sum(axis=1, keepdims=True)


def shuffled(key: Key[Array, ""], image: UInt8[Array, "h w c"], per_side: int) -> UInt8[Array, "h w c"]:
    """The image cut into equal patches, `per_side` down and across, these in random order; what they leave over stays.

    More than `per_side` where so many leave over more than a tenth of a side: 7 instead of 5, 9 of 8 and 26 of 16 for
    28 pixels.
    """
    height, width, channels = image.shape
    down, across = (patches_of(side, per_side) for side in (height, width))
    h, w = height // down, width // across
    patches = image[: h * down, : w * across].reshape(down, h, across, w, channels).swapaxes(1, 2)
    patches = jax.random.permutation(key, patches.reshape(down * across, h, w, channels))
    patches = patches.reshape(down, across, h, w, channels).swapaxes(1, 2)
    return image.at[: h * down, : w * across].set(patches.reshape(h * down, w * across, channels))


def patches_of(side: int, wanted: int) -> int:
    """The number of patches on a side of so many pixels: as many as wanted, or more if these leave over too much."""
    return next(n for n in range(min(wanted, side), side + 1) if side // n * n >= SHUFFLED * side)


def occluded(key: Key[Array, ""], shape: tuple[int, ...], share: float) -> Bool[Array, "h w"]:
    """True in a random choice of exactly so large a share of 14 x 14 patches, rounded."""
    per_side = min(OCCLUSION_PATCHES, *shape)
    dark = jax.random.permutation(key, jnp.arange(per_side**2) < round(share * per_side**2))
    rows, columns = (jnp.arange(side) * per_side // side for side in shape)
    return dark.reshape(per_side, per_side)[rows[:, None], columns[None]]
