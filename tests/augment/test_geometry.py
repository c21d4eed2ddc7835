"""Geometry against Pillow, SciPy and NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from tests import quick
from tests.augment.pictures import keys, picture, pictures
from vit_jax.augment import Settings, geometry

NUMPY_PAD = {"constant": "constant", "nearest": "edge", "reflect": "symmetric"}
warp = quick.jit(geometry.warp, static_argnums=2)
affine_matrix = quick.jit(geometry.affine_matrix)
SCIPY_MODE = {"constant": "grid-constant", "nearest": "nearest", "reflect": "reflect"}


def matrix(rotation: float = 0, shear: float = 0, zoom=(1, 1), translation=(0, 0)) -> jax.Array:
    as_float = partial(jnp.asarray, dtype=jnp.float32)
    return affine_matrix(as_float(rotation), as_float(shear), as_float(zoom), as_float(translation))


def test_flip_mirrors_left_to_right_with_its_probability():
    image = picture(3, 5, 1)
    flips = quick.jit(jax.vmap(lambda key: geometry.flip(key, image, 0.3)))(keys(2000))
    mirrored = (np.asarray(flips) == np.asarray(image[:, ::-1])).all(axis=(1, 2, 3))
    assert (mirrored ^ (np.asarray(flips) == np.asarray(image)).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.3) < 0.04  # four standard deviations


@pytest.mark.parametrize("fill", NUMPY_PAD)
def test_each_crop_position_occurs_equally_often(fill):
    image = picture(5, 7, 2)
    crops = quick.jit(jax.vmap(lambda key: geometry.pad_and_crop(key, image, 2, fill)))(keys(2000))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), NUMPY_PAD[fill])
    positions = [padded[top : top + 5, left : left + 7] for top in range(5) for left in range(5)]
    counts = [int((np.asarray(crops) == position).all(axis=(1, 2, 3)).sum()) for position in positions]
    assert sum(counts) == 2000
    assert min(counts) > 45 and max(counts) < 115  # 80 +- four standard deviations


def test_rotation_by_90_degrees_is_counter_clockwise_as_in_pillow():
    image = picture(7, 7)
    quarter = jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(matrix(rotation=90), quarter, atol=1e-6)
    np.testing.assert_array_equal(warp(image, quarter, "constant"), np.rot90(image))
    turned = Image.fromarray(np.asarray(image[:, :, 0])).rotate(90)
    np.testing.assert_array_equal(warp(image, quarter, "constant")[:, :, 0], turned)


@pytest.mark.parametrize("fill", NUMPY_PAD)
def test_translation_by_whole_pixels_is_exact(fill):
    image = picture(7, 10)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), NUMPY_PAD[fill])
    moved = warp(image, matrix(translation=(2, -3)), fill)  # down by 2, left by 3
    np.testing.assert_array_equal(moved, padded[1:8, 6:16])


@pytest.mark.parametrize("fill", SCIPY_MODE)
@pytest.mark.parametrize("shape", [(7, 11, 3), (13, 5, 1), (1, 3, 2)])
def test_warp_agrees_with_scipy(fill, shape):
    image = picture(*shape)
    affine = matrix(rotation=33, shear=10, zoom=(1.7, 2.3), translation=(1.3, -2.9))
    linear = np.asarray(affine[:, :2], np.float64)
    centre = (np.array(shape[:2]) - 1) / 2
    offset = np.asarray(affine[:, 2]) + centre - linear @ centre
    expected = [
        scipy.ndimage.affine_transform(channel, linear, offset, order=1, mode=SCIPY_MODE[fill])
        for channel in np.moveaxis(np.asarray(image), 2, 0)
    ]
    np.testing.assert_allclose(warp(image, affine, fill), np.stack(expected, axis=2), atol=1e-5)


def test_affine_matrix_composes_shear_rotation_zoom_and_translation():
    turn, slope = np.radians(20), np.tan(np.radians(10))
    shear = np.array([[1, 0, 0], [slope, 1, 0], [0, 0, 1]])
    rotation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    zoom = np.diag([0.8, 1.3, 1])
    translation = np.array([[1, 0, -3], [0, 1, 5], [0, 0, 1]])
    expected = (shear @ rotation @ zoom @ translation)[:2]
    np.testing.assert_allclose(matrix(20, 10, (0.8, 1.3), (3, -5)), expected, rtol=1e-5)


def draws(**fields) -> np.ndarray:
    """1000 random matrices for images of 20 x 30 pixels."""
    return np.asarray(
        quick.jit(jax.vmap(lambda key: geometry.random_affine(key, Settings(**fields), 20, 30)))(keys(1000))
    )


def test_random_rotation_and_shear_fill_their_ranges():
    turned = draws(rotation=30.0)
    degrees = np.degrees(np.arctan2(turned[:, 0, 1], turned[:, 0, 0]))
    assert -30 <= degrees.min() < -29 and 29 < degrees.max() <= 30 and abs(degrees.mean()) < 2.2
    slopes = draws(shear=10.0)[:, 1, 0]
    np.testing.assert_allclose([slopes.min(), slopes.max()], np.tan(np.radians([-10, 10])), atol=0.005)


def test_random_translation_is_a_fraction_of_height_and_width():
    moved = draws(translation=(0.1, 0.2))[:, :, 2]
    np.testing.assert_allclose(moved.min(axis=0), [-2, -6], atol=0.1)
    np.testing.assert_allclose(moved.max(axis=0), [2, 6], atol=0.1)
    np.testing.assert_array_equal(draws(translation=(0.2,)), draws(translation=(0.2, 0.2)))


def test_one_zoom_number_keeps_the_aspect_and_two_do_not():
    both, apart = draws(zoom=(0.2,)), draws(zoom=(0.2, 0.4))
    np.testing.assert_array_equal(both[:, 0, 0], both[:, 1, 1])
    np.testing.assert_allclose(apart[:, [0, 1], [0, 1]].min(axis=0), [0.8, 0.6], atol=0.01)
    np.testing.assert_allclose(apart[:, [0, 1], [0, 1]].max(axis=0), [1.2, 1.4], atol=0.01)
    assert abs(np.corrcoef(apart[:, 0, 0], apart[:, 1, 1])[0, 1]) < 0.15


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("box", "size"), [((2, 3, 11, 7), (7, 5)), ((0, 4, 17, 15), (29, 31)), ((5, 5, 1, 1), (3, 3))])
def test_a_crop_is_resized_as_by_pillow(interpolation, box, size):
    image = np.asarray(picture(17, 19, 1))
    rows, columns = (
        quick.jit(geometry.resize_weights, static_argnums=(2, 3, 4))(
            jnp.int32(box[axis]), jnp.int32(box[axis + 2]), image.shape[axis], size[axis], interpolation
        )
        for axis in (0, 1)
    )
    found = np.einsum("Hh,hwc,Ww->HWc", rows, image, columns)[:, :, 0]
    top, left, height, width = box
    cropped = Image.fromarray(image[top : top + height, left : left + width, 0])
    np.testing.assert_allclose(found, cropped.resize(size[::-1], Image.Resampling[interpolation.upper()]), atol=2e-6)


def cropped(n: int, h: int, w: int, **fields) -> np.ndarray:
    """Random crops of an image that holds its coordinates, for their corners to be read off."""
    image = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), axis=2).astype(jnp.float32)
    settings = Settings(resize=(2,), interpolation="nearest", **fields)
    return np.asarray(
        quick.jit(jax.vmap(lambda key: geometry.random_resized_crop(key, image, settings, settings.interpolation)))(
            keys(n)
        )
    )


def test_random_crops_follow_area_and_aspect():
    corners = cropped(2000, 200, 300, crop_area=(0.1, 0.5), crop_aspect=(0.5, 2.0))
    extent = 2 * (corners[:, 1, 1] - corners[:, 0, 0])  # from the centres of four quarters, to a pixel
    area, aspect = extent.prod(axis=1) / 60000, np.log(extent[:, 1] / extent[:, 0])
    assert 0.09 < area.min() < 0.12 and 0.48 < area.max() < 0.52 and abs(area.mean() - 0.3) < 0.015
    assert abs(aspect.min() + np.log(2)) < 0.05 and abs(aspect.max() - np.log(2)) < 0.05 and abs(aspect.mean()) < 0.05
    assert corners[:, 0, 0].min(axis=0).max() < 25 and (corners[:, 1, 1].max(axis=0) > [175, 275]).all()


def test_a_crop_that_never_fits_is_the_middle():
    corners = cropped(50, 20, 80, crop_area=(1.0, 1.0), crop_aspect=(0.5, 2.0))
    np.testing.assert_array_equal(corners, np.broadcast_to([[[5, 30], [5, 50]], [[15, 30], [15, 50]]], corners.shape))


def test_a_crop_is_never_thinner_than_a_pixel():
    assert np.isfinite(cropped(5, 20, 28, crop_area=(1.0, 1.0), crop_aspect=(100.0, 200.0))).all()


def test_a_crop_of_everything_changes_no_bit():
    image = pictures(1, 16, 16)[0].astype(jnp.float32) / 255
    settings = Settings(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    found = quick.jit(lambda key: geometry.random_resized_crop(key, image, settings, settings.interpolation))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(found, image)
