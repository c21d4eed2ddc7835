"""Resizing: Pillow's filters, published crops, and masks that move with their images."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import resizing

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), np.uint8)
GREY = RNG.integers(0, 256, (7, 11, 1), np.uint8)


def test_resize_leaves_what_fits():
    assert resizing.resize(RGB, (7, 11), "crop") is RGB and resizing.resize(RGB, (7, 11), "stretch") is RGB


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("size", [(5, 3), (13, 17)], ids=["smaller", "larger"])
def test_stretch_is_pillows_antialiased_filter(pixels, size, interpolation):
    expected = Image.fromarray(pixels.squeeze()).resize(size[::-1], Image.Resampling[interpolation.upper()])
    found = resizing.resize(pixels, size, "stretch", interpolation=interpolation)
    np.testing.assert_array_equal(found.squeeze(), np.asarray(expected))


@pytest.mark.parametrize("given", [(37, 53), (53, 37), (41, 41), (11, 97)])
@pytest.mark.parametrize("size", [(19, 19), (23, 17), (61, 67)])
def test_crop_is_scaling_the_whole_image_and_then_cutting_the_centre(given, size):
    image = RNG.integers(0, 256, (*given, 3), np.uint8)
    scale = max(size[0] / given[0], size[1] / given[1])
    tall, wide = (max(wanted, round(side * scale)) for wanted, side in zip(size, given, strict=True))
    whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    expected = whole[top : top + size[0], left : left + size[1]].astype(int)
    np.testing.assert_allclose(resizing.resize(image, size, "crop").astype(int), expected, atol=1)


def test_crop_of_one_side_cuts_the_centre_exactly():
    np.testing.assert_array_equal(resizing.resize(RGB, (7, 5), "crop"), RGB[:, 3:8])


def published(image: np.ndarray, size: int, fraction: float, interpolation: str) -> np.ndarray:
    """Shorter side to int(size / fraction), the longer in proportion and cut down to a whole pixel; then the centre."""
    short = int(size / fraction)
    tall, wide = (int(short * side / min(image.shape[:2])) for side in image.shape[:2])
    whole = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling[interpolation.upper()]))
    top, left = (tall - size) // 2, (wide - size) // 2
    return whole[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.9, 0.5])
@pytest.mark.parametrize("given", [(37, 53), (61, 43), (41, 41), (11, 97), (150, 300), (28, 28)])
def test_a_crop_fraction_is_resizing_and_cropping_as_published_code_does(given, fraction, interpolation):
    image = RNG.integers(0, 256, (*given, 3), np.uint8)
    for size in (28, 19):
        if (fraction, interpolation) != (1.0, "bilinear"):  # which rounds the longer side
            found = resizing.resize(image, (size, size), "crop", fraction, interpolation)
            np.testing.assert_array_equal(found, published(image, size, fraction, interpolation))


def test_a_crop_fraction_of_a_rectangle_covers_it():
    image = np.zeros((40, 80, 1), np.uint8)
    image[10:30, 20:60] = 255  # the half in the middle
    np.testing.assert_array_equal(resizing.resize(image, (20, 40), "crop", 0.5), np.full((20, 40, 1), 255))


def test_a_crop_fraction_of_a_stretched_image_is_its_centre():
    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    whole = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((3, 3, 17, 17)))
    np.testing.assert_array_equal(resizing.resize(image, (14, 14), "stretch", 0.7, "bicubic"), expected)


def test_a_crop_fraction_of_a_strip_does_not_build_the_strip(monkeypatch):
    strip, built = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 2, 3)), []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest, **more: built.append(size) or resize(self, size, *rest, **more)
    )
    expected = resizing.resize(strip, (20, 20), "crop", 0.5)
    monkeypatch.setattr(resizing, "_MOST_PIXELS", 40 * 4000 - 1)
    np.testing.assert_allclose(resizing.resize(strip, (20, 20), "crop", 0.5).astype(int), expected, atol=1)
    assert built == [(40, 4000), (20, 20)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [1.0, 0.8])
@pytest.mark.parametrize("how", ["crop", "stretch"])
@pytest.mark.parametrize("given", [(128, 176), (181, 97), (112, 112)])
def test_a_mask_stays_on_its_image(given, how, fraction, interpolation):
    """An image and a mask whose pixels hold their row, or their column: both say where an output pixel came from."""
    for ramp in np.indices(given).astype(np.uint8):
        for size in ((97, 89), (61, 107), (150, 150)):
            mask = resizing.resize_mask(ramp, size, how, fraction, interpolation)
            image = resizing.resize(ramp[..., None], size, how, fraction, interpolation)[..., 0]
            off = (image.astype(int) - mask)[3:-3, 3:-3]  # the outermost pixels of an image have fewer neighbours
            assert mask.shape == size and np.abs(off).max() <= 1 and abs(off.mean()) < 0.3


@pytest.mark.parametrize("box", [(0.0, 0.0, 11.0, 7.0), (1.5, 0.25, 9.75, 6.5), (3.0, 2.0, 8.0, 5.0)])
def test_a_pixel_of_a_mask_is_the_one_at_its_middle(box):
    (left, top, right, bottom), mask = box, GREY[..., 0]
    rows = (top + (np.arange(5) + 0.5) * (bottom - top) / 5).astype(int)
    columns = (left + (np.arange(13) + 0.5) * (right - left) / 13).astype(int)
    np.testing.assert_array_equal(resizing.nearest(mask, (5, 13), box), mask[np.ix_(rows, columns)])


def test_a_mask_that_fits_is_unchanged_and_one_that_is_cut_loses_what_the_image_loses():
    mask = GREY[..., 0]
    np.testing.assert_array_equal(resizing.resize_mask(mask, (7, 11), "crop"), mask)
    np.testing.assert_array_equal(resizing.resize_mask(mask, (7, 5), "crop"), mask[:, 3:8])
