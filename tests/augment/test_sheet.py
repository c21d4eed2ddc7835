"""The contact sheet: every image at its place, under its caption."""

import numpy as np

from tests.augment.pictures import pictures
from vit_jax import augment
from vit_jax.augment import Settings
from vit_jax.augment.sheet import CAPTION, GAP


def test_images_stand_in_rows_under_their_captions():
    images = np.asarray(pictures(3, 10, 14))
    sheet = np.asarray(augment.contact_sheet({"before": images, "grey": images[:2, :5, :5, :1]}, height=20))
    assert sheet.shape == (GAP + 2 * (CAPTION + 20 + GAP), GAP + 3 * (28 + GAP), 3)
    for i, image in enumerate(images):  # twice as large
        left = GAP + i * (28 + GAP)
        enlarged = sheet[GAP + CAPTION : GAP + CAPTION + 20, left : left + 28]
        np.testing.assert_array_equal(enlarged, image.repeat(2, axis=0).repeat(2, axis=1))
    top = GAP + 2 * CAPTION + 20 + GAP
    second = sheet[top : top + 20, 2 * GAP + 20 : 2 * GAP + 40]
    np.testing.assert_array_equal(second, images[1, :5, :5, :1].repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2))
    for caption in (sheet[GAP : GAP + CAPTION], sheet[top - CAPTION : top]):
        assert (caption < 128).any()


def test_large_images_are_reduced():
    images = np.asarray(pictures(1, 100, 50))
    sheet = augment.contact_sheet({"one": images}, height=20)
    assert sheet.size == (2 * GAP + 10, 2 * GAP + CAPTION + 20)


def test_a_view_is_displayed_as_its_image():
    settings = Settings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    images = pictures()
    np.testing.assert_array_equal(augment.displayed(settings, np.asarray(augment.eval_view(settings, images))), images)
