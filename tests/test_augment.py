"""Augmentation against Pillow, SciPy and NumPy, and the laws of its randomness."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from vit_jax import augment
from vit_jax.augment import Settings
from vit_jax.command import UserError

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
NUMPY_PAD = {"constant": "constant", "nearest": "edge", "reflect": "symmetric"}
SCIPY_MODE = {"constant": "grid-constant", "nearest": "nearest", "reflect": "reflect"}
PLAIN = Settings(mean=(0.0,), std=(1.0,))
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
everything = jax.jit(partial(augment.train_view, EVERYTHING))


def pictures(n: int = 5, h: int = 17, w: int = 19, c: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).integers(0, 256, (n, h, w, c), dtype=np.uint8))


def picture(h: int = 7, w: int = 11, c: int = 3) -> jax.Array:
    return pictures(1, h, w, c)[0].astype(jnp.float32) / 255


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def matrix(rotation: float = 0, shear: float = 0, zoom=(1, 1), translation=(0, 0)) -> jax.Array:
    as_float = partial(jnp.asarray, dtype=jnp.float32)
    return augment.affine_matrix(as_float(rotation), as_float(shear), as_float(zoom), as_float(translation))


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
    view = augment.eval_view(settings, checkerboard)
    assert view.min() == 0 and view.max() == 1


@pytest.mark.parametrize("off", [{}, {"zoom": (0.0, 0.0), "translation": (0.0,)}, {"fill": "reflect", "flip": 0.0}])
def test_with_everything_off_the_views_are_the_same_program(off):
    settings = Settings(resize=(23,), mean=(0.4,), std=(0.2,), **off)
    train = jax.make_jaxpr(partial(augment.train_view, settings))(pictures(), keys(5)).jaxpr
    evaluate = jax.make_jaxpr(partial(augment.eval_view, settings))(pictures()).jaxpr
    assert [str(equation.primitive) for equation in train.eqns] == [str(e.primitive) for e in evaluate.eqns]
    np.testing.assert_array_equal(
        augment.train_view(settings, pictures(), keys(5)), augment.eval_view(settings, pictures())
    )


@pytest.mark.parametrize(
    "on", [{"flip": 0.5}, {"crop_padding": 3}, {"shear": 9.0}, {"zoom": (0.0, 0.1)}, {"erasing": 1.0}]
)
def test_an_operation_that_is_on_draws_anew_for_each_example(on):
    same = jnp.repeat(pictures(1), 5, axis=0)
    views = np.asarray(augment.train_view(dataclasses.replace(PLAIN, **on), same, keys(5)))
    assert len(np.unique(views.reshape(5, -1), axis=0)) == (2 if "flip" in on else 5)


def test_an_example_does_not_depend_on_its_batch():
    images, some_keys = pictures(), keys(5)
    batch = everything(images, some_keys)
    order = jnp.array([3, 0, 4, 2, 1])
    np.testing.assert_array_equal(everything(images[order], some_keys[order]), batch[order])
    alone = jnp.concatenate([everything(images[i : i + 1], some_keys[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, batch, atol=2e-6)


def test_jit_equals_eager():
    eager = augment.train_view(EVERYTHING, pictures(), keys(5))
    np.testing.assert_allclose(everything(pictures(), keys(5)), eager, atol=1e-5)


def test_the_same_key_draws_the_same():
    np.testing.assert_array_equal(everything(pictures(), keys(5)), everything(pictures(), keys(5)))


def test_an_operation_leaves_the_draws_of_the_others_alone():
    settings = dataclasses.replace(PLAIN, crop_padding=2)
    cropped = augment.train_view(settings, pictures(), keys(5))
    flipped_too = augment.train_view(dataclasses.replace(settings, flip=1.0), pictures(), keys(5))
    np.testing.assert_array_equal(flipped_too, cropped[:, :, ::-1])


def test_flip_mirrors_left_to_right_with_its_probability():
    image = picture(3, 5, 1)
    flips = jax.vmap(lambda key: augment.flip(key, image, 0.3))(keys(2000))
    mirrored = (np.asarray(flips) == np.asarray(image[:, ::-1])).all(axis=(1, 2, 3))
    assert (mirrored ^ (np.asarray(flips) == np.asarray(image)).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.3) < 0.04  # four standard deviations


@pytest.mark.parametrize("fill", NUMPY_PAD)
def test_each_crop_position_occurs_equally_often(fill):
    image = picture(5, 7, 2)
    crops = jax.vmap(lambda key: augment.pad_and_crop(key, image, 2, fill))(keys(2000))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), NUMPY_PAD[fill])
    positions = [padded[top : top + 5, left : left + 7] for top in range(5) for left in range(5)]
    counts = [int((np.asarray(crops) == position).all(axis=(1, 2, 3)).sum()) for position in positions]
    assert sum(counts) == 2000
    assert min(counts) > 45 and max(counts) < 115  # 80 +- four standard deviations


def test_rotation_by_90_degrees_is_counter_clockwise_as_in_pillow():
    image = picture(7, 7)
    quarter = jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(matrix(rotation=90), quarter, atol=1e-6)
    np.testing.assert_array_equal(augment.warp(image, quarter, "constant"), np.rot90(image))
    turned = Image.fromarray(np.asarray(image[:, :, 0])).rotate(90)
    np.testing.assert_array_equal(augment.warp(image, quarter, "constant")[:, :, 0], turned)


@pytest.mark.parametrize("fill", NUMPY_PAD)
def test_translation_by_whole_pixels_is_exact(fill):
    image = picture(7, 10)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), NUMPY_PAD[fill])
    moved = augment.warp(image, matrix(translation=(2, -3)), fill)  # down by 2, left by 3
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
    np.testing.assert_allclose(augment.warp(image, affine, fill), np.stack(expected, axis=2), atol=1e-5)


def test_affine_matrix_composes_shear_rotation_zoom_and_translation():
    turn, slope = np.radians(20), np.tan(np.radians(10))
    shear = np.array([[1, 0, 0], [slope, 1, 0], [0, 0, 1]])
    rotation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    zoom = np.diag([0.8, 1.3, 1])
    translation = np.array([[1, 0, -3], [0, 1, 5], [0, 0, 1]])
    expected = (shear @ rotation @ zoom @ translation)[:2]
    np.testing.assert_allclose(matrix(20, 10, (0.8, 1.3), (3, -5)), expected, rtol=1e-5)


def test_a_zoom_factor_is_the_visible_part_of_the_image():
    ramp = jnp.broadcast_to(jnp.arange(9.0)[:, None, None], (9, 9, 1))
    half = augment.warp(ramp, matrix(zoom=(0.5, 1.0)), "constant")
    np.testing.assert_allclose(half[:, 4, 0], np.linspace(2, 6, 9))


def test_shear_slides_the_rows_against_each_other():
    image = picture(3, 5, 1)
    sheared = augment.warp(image, matrix(shear=45), "constant")[:, :, 0]
    expected = np.zeros((3, 5))
    expected[0, 1:], expected[1], expected[2, :4] = image[0, :4, 0], image[1, :, 0], image[2, 1:, 0]
    np.testing.assert_allclose(sheared, expected, atol=1e-6)


def draws(**fields) -> np.ndarray:
    """1000 random matrices for images of 20 x 30 pixels."""
    return np.asarray(jax.vmap(lambda key: augment.random_affine(key, Settings(**fields), 20, 30))(keys(1000)))


def test_random_rotation_and_shear_fill_their_ranges():
    degrees = np.degrees(np.arctan2(draws(rotation=30.0)[:, 0, 1], draws(rotation=30.0)[:, 0, 0]))
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


def boxes(area: tuple[float, float], aspect: tuple[float, float], shape=(83, 127)) -> np.ndarray:
    return np.asarray(jax.vmap(lambda key: augment.random_box(key, shape, area, aspect))(keys(1000)))


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
    erased = np.asarray(jax.vmap(lambda key: augment.random_erase(key, image, settings))(keys(1000)))
    inside = (erased != 9).all(axis=3)
    np.testing.assert_array_equal(inside, (erased != 9).any(axis=3))
    assert abs(inside.any(axis=(1, 2)).mean() - 0.25) < 0.055
    filling = erased[inside]
    mean_and_std = [filling.mean(), filling.std()]
    np.testing.assert_allclose(mean_and_std, [0, 0] if fill == "zero" else [0, 1], atol=0.01)


def test_the_defaults_fit_the_config_schema_and_are_valid():
    augment.check(Settings())
    augment.check(EVERYTHING)
    for field in dataclasses.fields(Settings):
        assert isinstance(field.default, int | float | str | tuple), field.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1.5),
        ("flip", float("nan")),
        ("erasing", -0.1),
        ("resize", (0,)),
        ("resize", (8, 8, 3)),
        ("interpolation", "cubic"),
        ("fill", "black"),
        ("erasing_fill", "mean"),
        ("crop_padding", -1),
        ("rotation", -5.0),
        ("shear", 90.0),
        ("zoom", (1.0,)),
        ("zoom", (0.1, 0.1, 0.1)),
        ("translation", (1.5,)),
        ("erasing_area", (0.4, 0.02)),
        ("erasing_area", (0.2,)),
        ("erasing_aspect", (0.0, 1.0)),
        ("mean", (0.5, 0.5)),
        ("mean", (127.5,)),
        ("std", (0.0,)),
        ("std", (57.0,)),
    ],
)
def test_check_names_the_field_and_the_value(field, value):
    settings = dataclasses.replace(EVERYTHING)
    object.__setattr__(settings, field, value)  # past the suite's type checks, which users do not run
    with pytest.raises(UserError, match=rf"augment\.{field}=") as error:
        augment.check(settings)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"std": (0.5,)}])
def test_mean_and_std_go_together(given):
    with pytest.raises(UserError, match=r"augment\.mean=.*augment\.std"):
        augment.check(Settings(**given))


@pytest.mark.parametrize("mean", [(), (0.5, 0.5)])
def test_views_need_statistics_that_fit_the_channels(mean):
    settings = Settings(mean=mean, std=(0.2,))
    with pytest.raises(UserError, match=r"augment\.mean=.*3 channels"):
        augment.eval_view(settings, pictures())
    with pytest.raises(UserError, match=r"augment\.mean=.*3 channels"):
        augment.train_view(settings, pictures(), keys(5))
