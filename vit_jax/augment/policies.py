"""Published policies: which operations an image goes through, and how strongly.

RandAugment (Cubuk et al. 2020, arXiv:1909.13719) with timm's 15 operations and ranges, all of which grow with the
magnitude (its `rand-m9-mstd0.5-inc1` are the defaults); the same operations with the ranges of RandAugment's first code
in TensorFlow, which AugReg and big_vision use (there Cutout is a 16th, and contrast blends with a level of 1/256 of the
number of pixels, 196 at 224 pixels, instead of the image's mean); AutoAugment for ImageNet and CIFAR-10 (Cubuk et
al. 2019, arXiv:1805.09501, tables 7 and 9) and TrivialAugment's wide space (Müller & Hutter 2021, arXiv:2103.10158)
with torchvision's ranges. Unlike timm, which draws bilinear or bicubic, all warps are bilinear.

Each policy draws from its own list of names, so that a new operation changes no draw.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, Num, UInt8

from vit_jax.augment.operations import index_of, matrix_of, operate, place_mask
from vit_jax.augment.settings import Settings

# The order is part of the draws.
_ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")
_WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
AUTOAUGMENT = ("autocontrast", "equalize", "invert", "posterize", "solarize", *_ENHANCEMENTS, *_WARPS)
RANDAUGMENT = (
    *("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *_ENHANCEMENTS,
    *_WARPS,
)
TRIVIALAUGMENT = ("identity", "autocontrast", "equalize", "posterize", "solarize", *_ENHANCEMENTS, *_WARPS)
# Pairs of (operation, probability, magnitude 0 to 9).
AUTOAUGMENT_IMAGENET = """
posterize    0.4 8  rotate       0.6 9
solarize     0.6 5  autocontrast 0.6 5
equalize     0.8 8  equalize     0.6 3
posterize    0.6 7  posterize    0.6 6
equalize     0.4 7  solarize     0.2 4
equalize     0.4 4  rotate       0.8 8
solarize     0.6 3  equalize     0.6 7
posterize    0.8 5  equalize     1.0 2
rotate       0.2 3  solarize     0.6 8
equalize     0.6 8  posterize    0.4 6
rotate       0.8 8  color        0.4 0
rotate       0.4 9  equalize     0.6 2
equalize     0.0 7  equalize     0.8 8
invert       0.6 4  equalize     1.0 8
color        0.6 4  contrast     1.0 8
rotate       0.8 8  color        1.0 2
color        0.8 8  solarize     0.8 7
sharpness    0.4 7  invert       0.6 8
shear_x      0.6 5  equalize     1.0 9
color        0.4 0  equalize     0.6 3
equalize     0.4 7  solarize     0.2 4
solarize     0.6 5  autocontrast 0.6 5
invert       0.6 4  equalize     1.0 8
color        0.6 4  contrast     1.0 8
equalize     0.8 8  equalize     0.6 3
"""
AUTOAUGMENT_CIFAR10 = """
invert       0.1 7  contrast     0.2 6
rotate       0.7 2  translate_x  0.3 9
sharpness    0.8 1  sharpness    0.9 3
shear_y      0.5 8  translate_y  0.7 9
autocontrast 0.5 8  equalize     0.9 2
shear_y      0.2 7  posterize    0.3 7
color        0.4 3  brightness   0.6 7
sharpness    0.3 9  brightness   0.7 9
equalize     0.6 5  equalize     0.5 1
contrast     0.6 7  sharpness    0.6 5
color        0.7 7  translate_x  0.5 8
equalize     0.3 7  autocontrast 0.4 8
translate_y  0.4 3  sharpness    0.2 6
brightness   0.9 6  color        0.2 8
solarize     0.5 2  invert       0.0 3
equalize     0.2 0  autocontrast 0.6 0
equalize     0.2 8  equalize     0.6 4
color        0.9 9  equalize     0.6 6
autocontrast 0.8 4  solarize     0.2 8
brightness   0.1 3  color        0.7 0
solarize     0.4 5  autocontrast 0.9 3
translate_y  0.9 9  translate_y  0.7 9
autocontrast 0.9 2  solarize     0.8 3
equalize     0.8 8  invert       0.1 3
translate_y  0.7 9  autocontrast 0.9 1
"""
TRIVIALAUGMENT_STEPS = 31
RANDAUGMENT_UNIT = 10.0  # the magnitude whose strength is 1


class Draws(NamedTuple):
    """The random choices for one image, operation after operation."""

    operation: Int[Array, " m"]  # an index of the policy's names
    strength: Float[Array, " m"]  # 0 to 1; RandAugment's up to 3
    sign: Float[Array, " m"]  # -1 or 1: the direction, where an operation has two
    happens: Bool[Array, " m"]


def apply_policy(
    settings: Settings, key: Key[Array, ""], image: UInt8[Array, "h w c"], color: UInt8[Array, " c"]
) -> UInt8[Array, "h w c"]:
    """The image after the operations that the policy draws; what they uncover is `color`."""
    operations = chosen(settings, draw(settings, key), *image.shape[:2])

    # A loop, so that XLA keeps the image between two operations: on CPUs it would compute the first anew for each of
    # the second's reads.
    def body(image: Array, operation: tuple[Array, Array]) -> tuple[Array, None]:
        return operate(image, *operation, color), None

    return jax.lax.scan(body, image, operations)[0]


def apply_policy_to_mask(settings: Settings, key: Key[Array, ""], mask: Num[Array, "h w"]) -> Num[Array, "h w"]:
    """The mask moved as `apply_policy` moves its image under the same key; what this uncovers is `VOID`."""
    for operation, argument in zip(*chosen(settings, draw(settings, key), *mask.shape), strict=True):
        mask = place_mask(mask, matrix_of(operation, argument, *mask.shape))
    return mask


def chosen(settings: Settings, draws: Draws, height: int, width: int) -> tuple[Int[Array, " m"], Float[Array, " m"]]:
    """Indices of `operations.OPERATIONS` and their arguments; an operation that does not happen is `identity`."""
    names, arguments_of = POLICIES[settings.policy]
    values = arguments_of(draws.strength, draws.sign, height, width)
    arguments = jnp.stack([values.get(name, jnp.zeros_like(draws.strength)) for name in names])
    operation = jnp.array([index_of(name) for name in names])[draws.operation]
    operation = jnp.where(draws.happens, operation, index_of("identity"))
    return operation, jnp.take_along_axis(arguments, draws.operation[None], axis=0)[0]


def draw(settings: Settings, key: Key[Array, ""]) -> Draws:
    """The policy's random choices for one image."""
    operation_key, strength_key, sign_key, happens_key = jax.random.split(key, 4)
    if settings.policy.startswith("randaugment"):
        m = settings.rand_layers
        operation = jax.random.randint(operation_key, (m,), 0, len(RANDAUGMENT))
        magnitude = settings.rand_magnitude + settings.rand_magnitude_std * jax.random.normal(strength_key, (m,))
        highest = max(settings.rand_magnitude, RANDAUGMENT_UNIT)  # timm's `mmax`
        strength = jnp.clip(magnitude, 0, highest) / RANDAUGMENT_UNIT
        probability = jnp.full(m, settings.rand_probability)
    elif settings.policy == "trivialaugment":
        m = 1
        operation = jax.random.randint(operation_key, (m,), 0, len(TRIVIALAUGMENT))
        strength = jax.random.randint(strength_key, (m,), 0, TRIVIALAUGMENT_STEPS) / (TRIVIALAUGMENT_STEPS - 1)
        probability = jnp.ones(m)
    else:
        imagenet = settings.policy == "autoaugment_imagenet"
        table = [jnp.asarray(column) for column in parse(AUTOAUGMENT_IMAGENET if imagenet else AUTOAUGMENT_CIFAR10)]
        row = jax.random.randint(operation_key, (), 0, len(table[0]))
        operation, probability, strength = (column[row] for column in table)
        m = len(operation)
    sign = jnp.where(jax.random.bernoulli(sign_key, shape=(m,)), 1.0, -1.0)
    return Draws(operation, strength, sign, jax.random.bernoulli(happens_key, probability))


def parse(table: str) -> tuple[Int[np.ndarray, "r 2"], Float[np.ndarray, "r 2"], Float[np.ndarray, "r 2"]]:
    """Indices of `AUTOAUGMENT`, probabilities and strengths 0 to 1 of a table."""
    cells = np.array([line.split() for line in table.strip().splitlines()])
    operation = np.array([[AUTOAUGMENT.index(name) for name in row] for row in cells[:, [0, 3]]], np.int32)
    return operation, cells[:, [1, 4]].astype(np.float32), cells[:, [2, 5]].astype(np.float32) / 9


def _rand_space(strength: Array, sign: Array, height: int, width: int) -> dict[str, Array]:
    return {
        "posterize": jnp.maximum(0, 4 - jnp.floor(4 * strength)),
        "solarize": jnp.maximum(0, 256 - jnp.floor(256 * strength)),
        "solarize_add": jnp.minimum(128, jnp.floor(110 * strength)),
        "translate_x": 0.45 * width * strength * sign,
        "translate_y": 0.45 * height * strength * sign,
        **_slopes(0.3 * strength * sign, 30 * strength * sign),
        **dict.fromkeys(_ENHANCEMENTS, jnp.maximum(0.1, 1 + 0.9 * strength * sign)),
    }


def _tf_space(strength: Array, sign: Array, height: int, width: int) -> dict[str, Array]:
    """big_vision's pp/autoaugment.py: posterize and solarize do less, the more the magnitude; factors begin at 0.1."""
    del height, width  # shifts are up to 100 pixels, at magnitude 10, in images of any size
    return {
        "posterize": jnp.minimum(8, jnp.floor(4 * strength)),
        "solarize": jnp.floor(256 * strength),
        "solarize_add": jnp.floor(110 * strength),
        **dict.fromkeys(("translate_x", "translate_y"), 100 * strength * sign),
        **_slopes(0.3 * strength * sign, 30 * strength * sign),
        **dict.fromkeys(_ENHANCEMENTS, 0.1 + 1.8 * strength),
    }


def _auto_space(strength: Array, sign: Array, height: int, width: int) -> dict[str, Array]:
    return {
        "posterize": 8 - jnp.round(4 * strength),
        "solarize": 255 - 255 * strength,
        "translate_x": jnp.floor(150 / 331 * width * strength) * sign,
        "translate_y": jnp.floor(150 / 331 * height * strength) * sign,
        **_slopes(0.3 * strength * sign, 30 * strength * sign),
        **dict.fromkeys(_ENHANCEMENTS, 1 + 0.9 * strength * sign),
    }


def _trivial_space(strength: Array, sign: Array, height: int, width: int) -> dict[str, Array]:
    del height, width  # shifts are up to 32 pixels in images of any size
    return {
        "posterize": 8 - jnp.round(6 * strength),
        "solarize": 255 - 255 * strength,
        **dict.fromkeys(("translate_x", "translate_y"), jnp.floor(32 * strength) * sign),
        **_slopes(0.99 * strength * sign, 135 * strength * sign),
        **dict.fromkeys(_ENHANCEMENTS, 1 + 0.99 * strength * sign),
    }


def _slopes(shear: Array, degrees: Array) -> dict[str, Array]:
    return {"shear_x": shear, "shear_y": shear, "rotate": degrees}


POLICIES: dict[str, tuple[tuple[str, ...], Callable[[Array, Array, int, int], dict[str, Array]]]] = {
    "randaugment": (RANDAUGMENT, _rand_space),
    "randaugment_tf": (RANDAUGMENT, _tf_space),
    "trivialaugment": (TRIVIALAUGMENT, _trivial_space),
    "autoaugment_imagenet": (AUTOAUGMENT, _auto_space),
    "autoaugment_cifar10": (AUTOAUGMENT, _auto_space),
}
