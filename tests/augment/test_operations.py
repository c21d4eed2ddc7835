"""Each operation against Pillow, on noise, on a smooth picture, on few values and on a single one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests import quick
from vit_jax.augment import operations
from vit_jax.augment.operations import OPERATIONS, index_of

COLOR = (10, 200, 30)
H, W = 23, 31
RNG = np.random.default_rng(5)
SMOOTH = (127 + 110 * np.sin(np.indices((H, W)).sum(axis=0)[:, :, None] / np.array([7.0, 9.0, 11.0]))).astype(np.uint8)
IMAGES = np.stack(
    [
        RNG.integers(0, 256, (H, W, 3), dtype=np.uint8),
        SMOOTH,
        RNG.integers(90, 120, (H, W, 3), dtype=np.uint8),
        np.full((H, W, 3), 77, np.uint8),
    ]
)
operate = quick.jit(jax.vmap(operations.operate, (0, None, None, None)))


def ours(name: str, argument: float, images: np.ndarray = IMAGES) -> np.ndarray:
    color = jnp.array(COLOR[: images.shape[-1]], jnp.uint8)
    return np.asarray(operate(jnp.asarray(images), jnp.asarray(index_of(name)), jnp.float32(argument), color))


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=COLOR)


def solarize_add(image: Image.Image, add: float) -> Image.Image:
    return image.point([min(255, i + int(add)) if i < 128 else i for i in range(256)] * 3)


PILLOW = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": ImageOps.solarize,
    "solarize_add": solarize_add,
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear_x": lambda image, slope: affine(image, 1, slope, 0, 0, 1, 0),
    "shear_y": lambda image, slope: affine(image, 1, 0, 0, slope, 1, 0),
    "translate_x": lambda image, pixels: affine(image, 1, 0, pixels, 0, 1, 0),
    "translate_y": lambda image, pixels: affine(image, 1, 0, 0, 0, 1, pixels),
    "rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=COLOR),
}
FACTORS = (0.0, 0.1, 0.37, 1.0, 1.9)
ARGUMENTS = {
    **dict.fromkeys(("identity", "autocontrast", "equalize", "invert"), (0.0,)),
    "posterize": (1.0, 4.0, 8.0),
    "solarize": (0.0, 26.0, 113.3, 256.0),
    "solarize_add": (0.0, 99.0, 110.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), FACTORS),
    **dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.27, -0.31, 0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), (0.0, 3.0, 5.3, -7.0)),
    "rotate": (0.0, 12.3, -27.0, 135.0),
}
EXACT = {"identity", "equalize", "invert", "posterize", "solarize", "solarize_add"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_agree_with_pillow(name):
    for argument in ARGUMENTS[name]:
        expected = np.stack([np.asarray(PILLOW[name](Image.fromarray(image), argument)) for image in IMAGES])
        difference = np.abs(ours(name, argument).astype(int) - expected)
        assert difference.max() <= (0 if name in EXACT else 1), argument
        assert (difference > 0).mean() < 0.03, argument


NEUTRAL = {"identity": 5.0, "posterize": 8.0, "solarize": 256.0, "solarize_add": 0.0, "rotate": 0.0}
NEUTRAL |= dict.fromkeys(operations.BLENDS, 1.0) | dict.fromkeys(operations.WARPS, 0.0)


@pytest.mark.parametrize("name", NEUTRAL)
def test_without_strength_an_operation_changes_no_bit(name):
    np.testing.assert_array_equal(ours(name, NEUTRAL[name]), IMAGES)


def test_grey_images_have_no_colour_and_the_same_tables():
    grey = IMAGES[:, :, :, :1]
    np.testing.assert_array_equal(ours("color", 0.3, grey), grey)
    np.testing.assert_array_equal(ours("invert", 0.0, grey), 255 - grey)
    expected = np.stack([np.asarray(ImageOps.equalize(Image.fromarray(image[:, :, 0]))) for image in grey])
    np.testing.assert_array_equal(ours("equalize", 0.0, grey)[:, :, :, 0], expected)


def test_posterize_to_no_bits_is_black():
    assert not ours("posterize", 0.0).any()


def test_both_ways_to_count_values_agree():
    image = jnp.asarray(IMAGES[0])
    expected = np.stack([np.bincount(IMAGES[0, :, :, c].ravel(), minlength=256) for c in range(3)], axis=1)
    for count in (operations._counted, operations._multiplied, operations.histogram):
        np.testing.assert_array_equal(quick.jit(count)(image), expected)


def test_a_table_is_looked_up_per_channel():
    table = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    expected = np.stack([table[IMAGES[0, :, :, c], c] for c in range(3)], axis=2)
    np.testing.assert_array_equal(quick.jit(operations.look_up)(jnp.asarray(IMAGES[0]), jnp.asarray(table)), expected)


@pytest.mark.parametrize("size", [(2, 9), (1, 1), (3, 3)])
def test_smooth_leaves_the_outermost_pixels(size):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    smooth = np.array(image)
    if min(size) > 2:
        smooth[1, 1] = np.floor((image.astype(int).sum(axis=(0, 1)) + 4 * image[1, 1].astype(int)) / 13 + 0.5)
    np.testing.assert_array_equal(quick.jit(operations.smooth)(jnp.asarray(image)), smooth)


def test_grey_is_pillows_luma():
    expected = np.asarray(Image.fromarray(IMAGES[0]).convert("L"))
    np.testing.assert_array_equal(quick.jit(operations.grey)(jnp.asarray(IMAGES[0]))[:, :, 0], expected)
