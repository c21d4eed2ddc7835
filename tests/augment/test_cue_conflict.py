"""Cue conflicts: light and outline of one image, the material of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import pictures
from vit_jax.augment import cue_conflict

SIDE = 41
ROW, COLUMN = np.indices((SIDE, SIDE))
DISC = np.where((ROW - 20) ** 2 + (COLUMN - 20) ** 2 < 150, 200, 0)
STRIPES = 100 + 60 * (ROW % 4 < 2)  # across the columns
EVEN = np.full((SIDE, SIDE), 130)


def mixed(shape: np.ndarray, texture: np.ndarray, seed: int = 3) -> np.ndarray:
    """The result for two images [h w] or [h w c], values 0 to 1."""
    images = [jnp.asarray(np.reshape(x, (1, SIDE, SIDE, -1)), jnp.uint8) for x in (shape, texture)]
    return np.asarray(quick.jit(cue_conflict)(jax.random.key(seed), *images)[0]) / 255


def test_without_texture_the_shape_is_left():
    found = mixed(DISC, EVEN)[:, :, 0]
    inside, outside = ((ROW - 20) ** 2 + (COLUMN - 20) ** 2 < 90), ((ROW - 20) ** 2 + (COLUMN - 20) ** 2 > 230)
    np.testing.assert_allclose(found[inside], 0.8, atol=0.01)
    assert (found[outside] == 0).all()


def test_black_stays_black_whatever_the_texture():
    assert (mixed(DISC, STRIPES)[(ROW - 20) ** 2 + (COLUMN - 20) ** 2 > 230] == 0).all()


def test_the_texture_fills_the_shape_in_its_direction():
    found = mixed(EVEN, STRIPES)[:, :, 0]
    across, along = np.abs(np.diff(found, axis=0)).mean(), np.abs(np.diff(found, axis=1)).mean()
    assert across > 0.1 and across > 2 * along
    inside = mixed(DISC, STRIPES)[12:29, 12:29, 0]
    assert np.abs(np.diff(inside, axis=0)).mean() > 0.1


def test_contrast_is_bounded_and_a_faint_texture_stays_faint():
    strong, faint = (np.log(mixed(EVEN, 128 + height * (ROW % 4 < 2))).std() for height in (-120, -6))
    assert 0.2 < strong < 0.31 and 0 < faint < 0.04


def test_no_layout_of_the_texture_is_left():
    half = np.where(COLUMN < 20, 0, np.random.default_rng(5).integers(60, 255, (SIDE, SIDE)))  # an outline of its own
    found = mixed(EVEN, half)[:, :, 0]
    assert 0.8 < found[:, :20].std() / found[:, 21:].std() < 1.25
    assert abs(found[:, :20].mean() - found[:, 21:].mean()) < 0.05


def test_fine_texture_of_the_shape_goes_and_edges_stay():
    noisy = np.where(COLUMN < 20, 60, 190) + np.random.default_rng(5).integers(-8, 9, (SIDE, SIDE))
    found = mixed(noisy, EVEN)[:, :, 0]
    scale = 0.8 / (190 / 255)
    assert found[:, :17].std() < 0.6 * scale * noisy[:, :17].std() / 255
    step = found[:, 22].mean() - found[:, 17].mean()
    assert step > 0.9 * scale * 130 / 255 and found[:, 20].mean() - found[:, 19].mean() > 0.6 * step


def test_colours_are_the_textures():
    red = np.stack([STRIPES, STRIPES // 4, STRIPES // 8], axis=2)
    shape = np.repeat(DISC[:, :, None], 3, axis=2) * np.array([0.2, 0.4, 1.0])
    found = mixed(shape, red)[12:29, 12:29]
    assert (found[..., 0] > 2 * found[..., 1]).all() and (found[..., 1] > found[..., 2]).all()


def test_what_becomes_of_a_pair_depends_on_its_place_and_key():
    shapes, textures = pictures(5, 13, 11), pictures(5, 13, 11)[::-1]
    mix = quick.jit(cue_conflict)
    found = np.asarray(mix(jax.random.key(1), shapes, textures))
    changed = np.asarray(mix(jax.random.key(1), shapes.at[1].set(0), textures))
    np.testing.assert_array_equal(changed[[0, 2, 3, 4]], found[[0, 2, 3, 4]])
    assert (np.asarray(mix(jax.random.key(2), shapes, textures)) != found).any()
    assert found.shape == shapes.shape and found.dtype == np.uint8


@pytest.mark.parametrize("size", [(4, 4, 1), (5, 7, 3)])
def test_tiny_and_black_images_have_no_nan(size):
    black = jnp.zeros((2, *size), jnp.uint8)
    assert (np.asarray(quick.jit(cue_conflict)(jax.random.key(0), black, black)) == 0).all()
