"""Jitter, 3-Augment, grey and blur against Pillow, SciPy and colorsys, and the laws of their draws."""

import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageFilter

from tests import quick
from tests.augment.pictures import keys, pictures
from vit_jax.augment import Settings, color
from vit_jax.augment.operations import index_of

IMAGE = pictures(1, 13, 11)[0]
GREY = np.asarray(Image.fromarray(np.asarray(IMAGE)).convert("L"))[:, :, None]


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.3, 0.5])
def test_hue_turns_as_in_hsv(shift):
    pixels = np.asarray(IMAGE).reshape(-1, 3) / 255
    expected = []
    for pixel in pixels:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
    turned = quick.jit(color.shift_hue)(IMAGE, jnp.float32(shift))
    np.testing.assert_allclose(np.asarray(turned).reshape(-1, 3), 255 * np.array(expected), atol=0.502)


def test_grey_has_no_hue():
    grey, shift_hue = np.repeat(GREY, 3, axis=2), quick.jit(color.shift_hue)
    np.testing.assert_array_equal(shift_hue(grey, jnp.float32(0.3)), grey)
    np.testing.assert_array_equal(shift_hue(grey[:, :, :1], jnp.float32(0.3)), grey[:, :, :1])


def jittered(n: int, **fields) -> np.ndarray:
    draw = quick.jit(jax.vmap(lambda key: color.jitter(Settings(**fields), key, IMAGE)))
    return np.asarray(draw(keys(n)))


@pytest.mark.parametrize(
    ("field", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_jitter_of_one_kind_spreads_its_factor(field, enhance):
    image = Image.fromarray(np.asarray(IMAGE))
    factors = np.linspace(0.6, 1.4, 801)
    candidates = np.stack([np.asarray(enhance(image).enhance(f)) for f in factors]).astype(int)
    nearest = [np.abs(candidates - found).mean(axis=(1, 2, 3)) for found in jittered(100, **{field: 0.4})]
    assert np.min(nearest, axis=1).max() < 0.1
    found = factors[np.argmin(nearest, axis=1)]
    assert found.min() < 0.66 and found.max() > 1.34 and abs(found.mean() - 1) < 0.1


def test_jitter_comes_in_every_order(monkeypatch):
    """Each of the four operations appends its digit to the image, to the base of four: 256 numbers, 24 orders."""

    def append(image, operation, argument, among):
        digit = jnp.argmax(jnp.array([index_of(name) for name in among]) == operation)
        return 4 * image + digit.astype(jnp.uint8)

    monkeypatch.setattr(color, "enhance", append)
    monkeypatch.setattr(color, "shift_hue", lambda image, shift: 4 * image + 3)
    settings, blank = Settings(brightness=0.4, contrast=0.9, saturation=0.9, hue=0.2), jnp.zeros((1, 1, 3), jnp.uint8)
    found = np.asarray(quick.jit(jax.vmap(lambda key: color.jitter(settings, key, blank)))(keys(500)))[:, 0, 0, 0]
    orders = {sum(digit * 4**i for i, digit in enumerate(order)) for order in itertools.permutations(range(4))}
    assert set(found.tolist()) == orders and len(orders) == 24


def test_a_jitter_of_nothing_changes_at_most_the_rounding():
    images = jittered(5, brightness=1e-9, contrast=1e-9, saturation=1e-9, hue=1e-9)
    np.testing.assert_allclose(images, np.broadcast_to(IMAGE, images.shape), atol=1)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_agrees_with_scipy_and_roughly_with_pillow(sigma):
    smooth = jnp.asarray(scipy.ndimage.gaussian_filter(np.asarray(pictures(1, 37, 31)[0]), (1, 1, 0)))
    blurred = np.asarray(quick.jit(partial(color.blur, largest=2.0))(smooth, jnp.float32(sigma))).astype(int)
    exact = scipy.ndimage.gaussian_filter(np.asarray(smooth, np.float64), (sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(blurred, exact, atol=0.7)
    pillow = np.asarray(Image.fromarray(np.asarray(smooth)).filter(ImageFilter.GaussianBlur(sigma)))
    inside = np.s_[6:-6, 6:-6]
    np.testing.assert_allclose(blurred[inside], pillow[inside], atol=6)  # Pillow takes three box blurs for it


def test_three_augment_is_grey_solarised_or_blurred_a_third_each():
    settings = Settings(blur_sigma=(1.0, 1.0))
    images = np.asarray(quick.jit(jax.vmap(lambda key: color.three_augment(settings, key, IMAGE)))(keys(600)))
    solarized = np.where(np.asarray(IMAGE) < 128, IMAGE, 255 - np.asarray(IMAGE))
    blurred = color.blur(IMAGE, jnp.float32(1.0), 1.0)
    kinds = [np.broadcast_to(GREY, IMAGE.shape), solarized, np.asarray(blurred)]
    counts = [(np.abs(images.astype(int) - kind).max(axis=(1, 2, 3)) <= 1).sum() for kind in kinds]
    assert sum(counts) == 600 and max(abs(n - 200) for n in counts) < 50


def test_grey_comes_with_its_probability():
    images = np.asarray(quick.jit(jax.vmap(lambda key: color.random_grey(key, IMAGE, 0.2)))(keys(1000)))
    grey = (images == GREY).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(images[~grey], np.broadcast_to(IMAGE, (len(images) - grey.sum(), *IMAGE.shape)))
    assert abs(grey.mean() - 0.2) < 0.051
