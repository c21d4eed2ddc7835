"""Corruptions against Pillow, SciPy and NumPy, and the laws of their randomness."""

import io
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image

from tests import quick
from tests.augment.pictures import pictures
from vit_jax.augment import Corruption, check_corrupted, check_corruption, corrupt, jpeg
from vit_jax.augment.corruptions import CIFAR, IMAGENET, patches_of, shuffled
from vit_jax.command import UserError

# Structure at all scales, unlike noise; sides that no block and no patch divides.
H, W = 45, 37
WAVES = np.sin(np.indices((H, W)).sum(axis=0)[:, :, None] / np.array([3.0, 5.0, 11.0]))
IMAGES = jnp.asarray(np.stack([130 + 100 * WAVES, 90 + 60 * WAVES[::-1]]).astype(np.uint8))
INDEX = jnp.arange(2)


def corrupted(images: jax.Array = IMAGES, index: jax.Array = INDEX, **fields) -> np.ndarray:
    return np.asarray(compiled(Corruption(**{"scale": "imagenet", **fields}))(images, index))


@cache
def compiled(settings: Corruption):
    return quick.jit(partial(corrupt, settings))


@pytest.mark.parametrize("kind", IMAGENET)
def test_five_severities_grow(kind):
    assert len(IMAGENET[kind]) == len(CIFAR[kind]) == 5
    distances = [np.abs(corrupted(kind=kind, severity=s).astype(int) - np.asarray(IMAGES)).mean() for s in (1, 3, 5)]
    if kind == "patch_shuffle":  # all of one size: so far, no farther
        assert min(distances) > 5
    else:
        assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("size", "scale"), [((28, 28), "cifar"), ((64, 97), "cifar"), ((65, 97), "imagenet")])
def test_by_default_the_image_size_chooses_the_severities(size, scale):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, *size, 1)), jnp.uint8)
    auto, cifar, imagenet = (
        corrupted(images, kind="contrast", severity=4, scale=given) for given in ("auto", "cifar", "imagenet")
    )
    assert Corruption().scale == "auto" and (cifar != imagenet).any()
    np.testing.assert_array_equal(auto, cifar if scale == "cifar" else imagenet)


def test_off_changes_nothing_and_is_not_traced():
    assert not jax.make_jaxpr(lambda x: corrupt(Corruption(), x, INDEX))(IMAGES).eqns


@pytest.mark.parametrize("kind", ["noise", "patch_shuffle", "occlusion"])
def test_what_is_random_depends_on_seed_and_index_alone(kind):
    same = jnp.broadcast_to(IMAGES[:1], (3, H, W, 3))
    first = corrupted(same, jnp.array([5, 6, 7]), kind=kind, severity=3)
    np.testing.assert_array_equal(corrupted(same, jnp.array([7, 5, 9]), kind=kind, severity=3)[:2], first[[2, 0]])
    assert (first[0] != first[1]).any()
    assert (corrupted(same, jnp.array([5, 6, 7]), kind=kind, severity=3, seed=1) != first).any()


def test_noise_has_its_deviation():
    grey = jnp.full((2, 61, 67, 3), 128, jnp.uint8)
    noise = corrupted(grey, kind="noise", severity=1).astype(float) - 128
    assert abs(noise.std() - 0.08 * 255) < 0.3 and abs(noise.mean()) < 0.5


def test_blur_is_gaussian():
    exact = scipy.ndimage.gaussian_filter(np.asarray(IMAGES, np.float64), (0, 2, 2, 0), mode="nearest")
    np.testing.assert_allclose(corrupted(kind="blur", severity=2), exact, atol=0.6)


def test_contrast_brightness_and_grey_by_hand():
    x = np.asarray(IMAGES, np.float64)
    mean = x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(corrupted(kind="contrast", severity=3), mean + 0.2 * (x - mean), atol=0.51)
    value = x.max(axis=3, keepdims=True)
    brighter = x * np.minimum(value + 0.4 * 255, 255) / value
    np.testing.assert_allclose(corrupted(kind="brightness", severity=4), brighter, atol=0.51)
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in np.asarray(IMAGES)])[..., None]
    np.testing.assert_allclose(corrupted(kind="grey", severity=2), x + 0.4 * (luma - x), atol=0.51)
    black = jnp.zeros((1, 3, 5, 3), jnp.uint8)
    assert (corrupted(black, INDEX[:1], kind="brightness", severity=2) == 51).all()


@pytest.mark.parametrize("scale", ["imagenet", "cifar"])
def test_pixelate_is_two_of_pillows_box_resizes(scale):
    share = (IMAGENET if scale == "imagenet" else CIFAR)["pixelate"][2]
    expected = []
    for image in np.asarray(IMAGES):
        small = Image.fromarray(image).resize((int(W * share), int(H * share)), Image.Resampling.BOX)
        expected.append(np.asarray(small.resize((W, H), Image.Resampling.BOX)))
    np.testing.assert_allclose(corrupted(kind="pixelate", severity=3, scale=scale), np.stack(expected), atol=1)


@pytest.mark.parametrize("quality", [80, 25, 7])
def test_jpeg_is_nearly_pillows(quality):
    compressed = quick.jit(jpeg.compress, static_argnums=1)(IMAGES[0], quality)
    file = io.BytesIO()
    Image.fromarray(np.asarray(IMAGES[0])).save(file, "JPEG", quality=quality)
    pillow = np.asarray(Image.open(file)).astype(int)
    difference = np.abs(np.asarray(compressed) - pillow)
    assert difference.mean() < 1 and difference.mean() < 0.2 * np.abs(pillow - np.asarray(IMAGES[0])).mean()
    assert np.median(difference) <= 1


def test_jpeg_of_grey_images_is_nearly_pillows():
    compressed = quick.jit(jpeg.compress, static_argnums=1)(IMAGES[0][:, :, :1], 15)
    file = io.BytesIO()
    Image.fromarray(np.asarray(IMAGES[0])[:, :, 0]).save(file, "JPEG", quality=15)
    difference = np.abs(np.asarray(compressed)[:, :, 0].astype(int) - np.asarray(Image.open(file)))
    assert difference.max() <= 8 and difference.mean() < 0.6


def test_cosine_coefficients_are_rounded_to_the_tables_multiples():
    block = jnp.asarray(pictures(1, 8, 8, 1)[0], jnp.float32)
    found = jpeg.quantized(block, jpeg.LUMA, 50)  # quality 50: the table as it is
    coefficients = scipy.fft.dctn(np.asarray(block)[:, :, 0], norm="ortho")
    steps = np.array(jpeg.LUMA).reshape(8, 8)
    expected = scipy.fft.idctn(np.round(coefficients / steps) * steps, norm="ortho")
    np.testing.assert_allclose(found[:, :, 0], expected, atol=1e-3)


def test_a_shuffle_moves_whole_patches():
    image = pictures(1, 13, 11)[0]
    found = np.asarray(quick.jit(shuffled, static_argnums=2)(jax.random.key(1), image, 3))
    np.testing.assert_array_equal(found[12:], image[12:])  # what 3 x 5 patches of 4 x 2 pixels leave over
    np.testing.assert_array_equal(found[:, 10:], image[:, 10:])

    def patches(x: np.ndarray) -> set[bytes]:
        return {x[4 * i : 4 * i + 4, 2 * j : 2 * j + 2].tobytes() for i in range(3) for j in range(5)}

    assert patches(found) == patches(np.asarray(image)) and (found != np.asarray(image)).any()
    small = image[:2, :2]
    assert quick.jit(shuffled, static_argnums=2)(jax.random.key(1), small, 14).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("size", "wanted", "patches"),
    [
        (28, (2, 4, 5, 7, 8, 14, 16), (2, 4, 7, 7, 9, 14, 26)),
        (32, CIFAR["patch_shuffle"], CIFAR["patch_shuffle"]),
        (224, IMAGENET["patch_shuffle"], IMAGENET["patch_shuffle"]),
        (96, IMAGENET["patch_shuffle"], (2, 4, 7, 8, 15)),
    ],
)
def test_patches_are_as_many_as_wanted_or_more_and_cover_nearly_all(size, wanted, patches):
    assert tuple(patches_of(size, int(n)) for n in wanted) == patches
    assert all(size // n * n >= 0.9 * size for n in map(int, patches))


def test_colour_goes_from_images_that_have_it():
    check_corrupted(Corruption(kind="grey", severity=3), 3)
    check_corrupted(Corruption(kind="blur", severity=3), 1)
    with pytest.raises(UserError, match="kind='grey' changes nothing in images of one channel"):
        check_corrupted(Corruption(kind="grey", severity=3), 1)


def test_occlusion_blackens_its_share_of_patches():
    white = jnp.full((2, 28, 42, 3), 255, jnp.uint8)
    dark = (corrupted(white, kind="occlusion", severity=3) == 0).all(axis=3)
    patches = dark.reshape(2, 14, 2, 14, 3)
    np.testing.assert_array_equal(patches.any(axis=(2, 4)), patches.all(axis=(2, 4)))
    np.testing.assert_array_equal(patches.all(axis=(2, 4)).sum(axis=(1, 2)), [98, 98])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fog", "severity": 1}, "corruption.kind='fog': expected one of none, noise"),
        ({"kind": "noise", "severity": 6}, "corruption.severity=6"),
        ({"kind": "noise"}, "corruption.kind='noise' with corruption.severity=0"),
        ({"severity": 2}, "corruption.kind='none' with corruption.severity=2"),
        ({"kind": "noise", "severity": 1, "scale": "digits"}, "corruption.scale='digits'"),
        ({"seed": -1}, "corruption.seed=-1"),
    ],
)
def test_check_names_the_field(fields, message):
    settings = Corruption()
    for name, value in fields.items():  # past the suite's type checks, which users do not run
        object.__setattr__(settings, name, value)
    with pytest.raises(UserError, match=message):
        check_corruption(settings)
    check_corruption(Corruption())
    check_corruption(Corruption(kind="jpeg", severity=5, scale="cifar"))
