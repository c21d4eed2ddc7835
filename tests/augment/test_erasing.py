"""Random erasing: the rectangle's laws and its filling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.augment.pictures import keys
from vit_jax.augment import Settings, erasing


def boxes(area: tuple[float, float], aspect: tuple[float, float], shape=(83, 127)) -> np.ndarray:
    return np.asarray(quick.jit(jax.vmap(lambda key: erasing.random_box(key, shape, area, aspect)))(keys(1000)))


def test_random_boxes_follow_area_and_aspect():
    masks = boxes((0.05, 0.15), (1.0, 3.0))
    heights, widths = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), heights * widths)  # rectangles without holes
    area = masks.mean(axis=(1, 2))
    assert 0.045 < area.min() < 0.055 and 0.145 < area.max() < 0.155 and abs(area.mean() - 0.1) < 0.004
    log_aspect = np.log(heights / widths)
    assert abs(log_aspect.mean() - np.log(3) / 2) < 0.05 and abs(np.ptp(log_aspect) - np.log(3)) < 0.15
    assert masks.any(axis=(0, 1)).all() and masks.any(axis=(0, 2)).all()  # up to every edge


def test_a_box_that_seldom_fits_is_drawn_again_and_one_that_never_fits_left_out():
    area = boxes((0.3, 0.3), (0.1, 10.0)).mean(axis=(1, 2))
    assert (abs(area - 0.3) < 0.01).mean() > 0.97
    assert not boxes((0.9, 1.0), (8.0, 9.0)).any()
    assert boxes((1.0, 1.0), (1.0, 1.0), shape=(13, 13)).all()


@pytest.mark.parametrize("fill", ["zero", "noise"])
def test_erasing_fills_the_rectangle_and_nothing_else(fill):
    settings = Settings(erasing=0.25, erasing_fill=fill)
    image = jnp.full((29, 31, 3), 9.0)
    erased = np.asarray(quick.jit(jax.vmap(lambda key: erasing.random_erase(key, image, settings)))(keys(1000)))
    inside = (erased != 9).all(axis=3)
    np.testing.assert_array_equal(inside, (erased != 9).any(axis=3))
    assert abs(inside.any(axis=(1, 2)).mean() - 0.25) < 0.055
    filling = erased[inside]
    mean_and_std = [filling.mean(), filling.std()]
    np.testing.assert_allclose(mean_and_std, [0, 0] if fill == "zero" else [0, 1], atol=0.01)


def test_cutout_is_a_square_around_any_pixel():
    image = jnp.full((11, 13, 2), 9.0)
    images = np.asarray(quick.jit(jax.vmap(lambda key: erasing.cutout(key, image, 4)))(keys(1000)))
    inside = (images == 0).all(axis=3)
    np.testing.assert_array_equal(inside, (images != 9).any(axis=3))
    heights, widths = inside.any(axis=2).sum(axis=1), inside.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(inside.sum(axis=(1, 2)), heights * widths)
    assert set(heights) == set(widths) == {2, 3, 4}
    assert abs(inside.mean(axis=0)[5, 6] - 16 / 143) < 0.04  # the middle is inside for 4 x 4 centres of 11 x 13
