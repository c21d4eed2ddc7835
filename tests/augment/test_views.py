"""The views against Pillow and NumPy, and the laws of their randomness."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import quick
from tests.augment.pictures import PLAIN, keys, pictures
from vit_jax import augment
from vit_jax.augment import Settings, policies

PILLOW = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "nearest")}
EVERYTHING = Settings(
    resize=(11, 13),
    interpolation="bicubic",
    crop_padding=2,
    flip=0.5,
    rotation=20.0,
    zoom=(0.2, 0.3),
    translation=(0.1,),
    shear=5.0,
    fill="reflect",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    erasing=0.5,
    erasing_fill="noise",
)
everything = quick.jit(partial(augment.train_view, EVERYTHING))


@pytest.mark.parametrize("channels", [1, 3])
def test_eval_view_scales_and_normalises(channels):
    images = pictures(c=channels)
    settings = Settings(mean=(0.5, 0.4, 0.3)[:channels], std=(0.25,))
    expected = (np.asarray(images, np.float64) / 255 - settings.mean) / 0.25
    np.testing.assert_allclose(augment.eval_view(settings, images), expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("size", [(7, 5), (29, 31), (17, 41)])
def test_resize_agrees_with_pillow(interpolation, size):
    image = pictures(1)[0] // 2 + 64  # Pillow's uint8 clips what bicubic overshoots between its two passes
    settings = Settings(resize=size, interpolation=interpolation)
    resized = augment.load(settings, image)
    pillow = partial(Image.Image.resize, size=size[::-1], resample=PILLOW[interpolation])
    exact = [pillow(Image.fromarray(channel)) for channel in np.moveaxis(np.asarray(image, np.float32) / 255, 2, 0)]
    np.testing.assert_allclose(resized, np.stack(exact, axis=2), atol=2e-6)
    rounded = np.asarray(pillow(Image.fromarray(np.asarray(image)))) / 255  # Pillow rounds to uint8 after either axis
    np.testing.assert_allclose(resized, rounded, atol=1.5 / 255)


def test_one_resize_number_means_square():
    assert augment.eval_view(dataclasses.replace(PLAIN, resize=(23,)), pictures()).shape == (5, 23, 23, 3)


def test_views_stay_in_range_where_bicubic_overshoots():
    checkerboard = jnp.asarray(np.indices((6, 6)).sum(axis=0) % 2 * 255, jnp.uint8)[None, :, :, None]
    settings = dataclasses.replace(PLAIN, resize=(17,), interpolation="bicubic")
    assert augment.load(settings, checkerboard[0]).max() > 1.01
    view = quick.jit(partial(augment.eval_view, settings))(checkerboard)
    assert view.min() == 0 and view.max() == 1


@pytest.mark.parametrize(
    "off",
    [
        {"zoom": (0.0, 0.0), "translation": (0.0,), "fill": "reflect", "flip": 0.0},
        {"policy": "randaugment", "rand_probability": 0.0, "blur_sigma": (1.0, 3.0), "crop_aspect": (1.0, 1.0)},
        {"policy": "randaugment_tf", "rand_probability": 0.0},
    ],
)
def test_with_everything_off_the_views_are_the_same_program(off):
    settings = Settings(resize=(23,), mean=(0.4,), std=(0.2,), **off)
    train = jax.make_jaxpr(partial(augment.train_view, settings))(pictures(), keys(5)).jaxpr
    evaluate = jax.make_jaxpr(partial(augment.eval_view, settings))(pictures()).jaxpr
    assert [str(equation.primitive) for equation in train.eqns] == [str(e.primitive) for e in evaluate.eqns]
    np.testing.assert_array_equal(
        augment.train_view(settings, pictures(), keys(5)), augment.eval_view(settings, pictures())
    )


@pytest.mark.parametrize(
    "on",
    [
        {"flip": 0.5},
        {"crop_padding": 3, "zoom": (0.0, 0.1)},
        {"shear": 9.0},
        {"erasing": 1.0},
        {"crop_area": (0.1, 1.0)},
        {"policy": "trivialaugment"},
        {"brightness": 0.2, "hue": 0.1},
    ],
)
def test_an_operation_that_is_on_draws_anew_for_each_example(on):
    same = jnp.repeat(pictures(1), 5, axis=0)
    views = np.asarray(quick.jit(partial(augment.train_view, dataclasses.replace(PLAIN, **on)))(same, keys(5)))
    assert len(np.unique(views.reshape(5, -1), axis=0)) == (2 if "flip" in on else 5)


def test_an_example_does_not_depend_on_its_batch():
    images, some_keys = pictures(), keys(5)
    batch = everything(images, some_keys)
    np.testing.assert_array_equal(everything(images, some_keys), batch)
    order = jnp.array([3, 0, 4, 2, 1])
    np.testing.assert_array_equal(everything(images[order], some_keys[order]), batch[order])
    alone = jnp.concatenate([everything(images[i : i + 1], some_keys[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, batch, atol=2e-6)


COLORS = Settings(
    crop_area=(0.5, 1.0),
    policy="randaugment",
    three_augment=True,
    brightness=0.3,
    hue=0.1,
    grey=0.2,
    blur=0.5,
    mean=(0.5,),
    std=(0.25,),
)


def test_nor_do_the_colors_of_an_example():
    view = quick.jit(partial(augment.train_view, COLORS))
    images, some_keys = pictures(), keys(5)
    batch = view(images, some_keys)
    order = jnp.array([3, 0, 4, 2, 1])
    np.testing.assert_array_equal(view(images[order], some_keys[order]), batch[order])


def test_colors_of_probability_0_change_no_bit():
    never = dataclasses.replace(PLAIN, policy="randaugment", rand_probability=1e-30, grey=1e-30, blur=1e-30)
    found = quick.jit(partial(augment.train_view, never))(pictures(), keys(5))
    np.testing.assert_array_equal(found, quick.jit(partial(augment.eval_view, PLAIN))(pictures()))


def test_what_a_policy_uncovers_has_the_mean_colour(monkeypatch):
    always = (("translate_x",) * len(policies.TRIVIALAUGMENT), lambda strength, *_: {"translate_x": 19 + 0 * strength})
    monkeypatch.setitem(policies.POLICIES, "trivialaugment", always)
    settings = Settings(policy="trivialaugment", mean=(0.2, 0.4, 0.6), std=(1.0,))
    view = quick.jit(partial(augment.train_view, settings))(pictures(), keys(5))
    np.testing.assert_allclose(view, jnp.zeros((5, 17, 19, 3)), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(dataclasses.replace(PLAIN, crop_padding=2, flip=0.5, cutout=4), id="few operations"),
        pytest.param(EVERYTHING, marks=pytest.mark.slow, id="all"),  # run alone, each operation is compiled by itself
    ],
)
def test_jit_equals_eager(settings):
    eager = augment.train_view(settings, pictures(), keys(5))
    np.testing.assert_allclose(quick.jit(partial(augment.train_view, settings))(pictures(), keys(5)), eager, atol=1e-5)


def test_an_operation_leaves_the_draws_of_the_others_alone():
    settings = dataclasses.replace(PLAIN, crop_padding=2)
    cropped, flipped_too = (
        quick.jit(partial(augment.train_view, given))(pictures(), keys(5))
        for given in (settings, dataclasses.replace(settings, flip=1.0))
    )
    np.testing.assert_array_equal(flipped_too, cropped[:, :, ::-1])
