"""Random crops on the host: a function of (seed, step, row) alone, with the distribution of the device's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.images import encoded, photo
from tests.quick import jit
from vit_jax.augment import geometry
from vit_jax.data import RandomCrop, decoding, jpeg, resizing

USUAL = RandomCrop((11, 13), 3, (0.08, 1.0), (3 / 4, 4 / 3))
DRAWS = 4000


def parts(crop: RandomCrop, shape: tuple[int, int], draws: int = DRAWS) -> np.ndarray:
    """Top, left, height and width of many draws."""
    return np.array([crop.at(7, step, row).part(shape) for step in range(draws // 8) for row in range(8)])


def as_jpeg(pixels: np.ndarray, orientation: int = 1) -> bytes:
    return encoded(pixels, "JPEG", orientation, quality=95)


def test_a_draw_depends_on_seed_step_and_row_alone():
    draws = {(s, t, r): USUAL.at(s, t, r).part((500, 375)) for s in (0, 1) for t in (0, 1, 2**40) for r in (0, 1, 4095)}
    assert len(set(draws.values())) == len(draws)
    assert all(USUAL.at(*key).part((500, 375)) == part for key, part in draws.items())


@pytest.mark.parametrize("shape", [(500, 375), (17, 101), (101, 17), (1, 1), (2, 300)])
def test_a_part_lies_within_the_image(shape):
    top, left, height, width = parts(USUAL, shape, 800).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()


def test_area_aspect_and_place_are_uniform():
    top, left, height, width = parts(RandomCrop((3, 5), 3, (0.1, 0.25), (1 / 2, 2.0)), (3000, 5000)).T  # all fit
    values = {
        "area": (height * width / 15e6 - 0.1) / 0.15,
        "aspect": np.log(width / height) / np.log(4) + 0.5,
        "down": (top + 0.5) / (3001 - height),
        "across": (left + 0.5) / (5001 - width),
    }
    for name, value in values.items():  # the largest gap to the uniform distribution function (Kolmogorov-Smirnov)
        gap = np.abs(np.sort(value) - (np.arange(DRAWS) + 0.5) / DRAWS).max()
        assert gap < 1.95 / DRAWS**0.5, name  # 1 in 1,000
    assert abs(np.corrcoef(list(values.values())) - np.eye(4)).max() < 4 / DRAWS**0.5


@pytest.mark.parametrize("shape", [(17, 101), (40, 53)])
def test_the_distribution_is_the_devices(shape):
    """Also where many draws do not fit."""

    def size(key):
        area, aspect = jax.random.split(key)
        return geometry.random_size(area, aspect, shape, USUAL.area, (3 / 4, 4 / 3))

    sizes, found = map(np.asarray, jit(jax.vmap(size))(jax.random.split(jax.random.key(0), DRAWS)))
    middle = np.array(USUAL._middle(shape)[2:])
    theirs, ours = np.where(found[:, None], sizes, middle), parts(USUAL, shape)[:, 2:]
    spread = theirs.std(axis=0) * (2 / DRAWS) ** 0.5
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * spread).all()
    for quantile in (0.1, 0.5, 0.9):
        assert np.abs(np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() <= 1


def test_where_nothing_fits_the_middle_is_taken():
    wide = RandomCrop((3, 5), 3, (1.0, 1.0), (3 / 4, 4 / 3)).part((12, 100))
    assert wide == (0, 42, 12, 16)
    assert RandomCrop((3, 5), 3, (1.0, 1.0), (3 / 4, 4 / 3)).part((100, 12)) == (42, 0, 16, 12)
    assert RandomCrop((3, 5), 3, (1.0, 1.0), (100.0, 200.0)).part((20, 28)) == (9, 0, 1, 28)  # never none


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_pixels_are_those_of_the_device(interpolation):
    """Of one part: cut and resized by Pillow, and by the weights that the device uses."""
    crop = RandomCrop((11, 13), 3, (0.3, 0.5), (3 / 4, 4 / 3), interpolation).at(0, 0, 0)
    pixels = photo(61, 83)
    top, left, height, width = crop.part((61, 83))
    weights = jit(geometry.resize_weights, static_argnums=(2, 3, 4))
    rows, columns = (
        weights(jnp.int32(start), jnp.int32(size), given, wanted, interpolation)
        for start, size, given, wanted in ((top, height, 61, 11), (left, width, 83, 13))
    )
    expected = np.clip(np.einsum("Hh,hwc,Ww->HWc", rows, pixels.astype(float), columns), 0, 255)
    assert np.abs(crop(pixels) - expected).max() <= 1
    np.testing.assert_array_equal(crop(encoded(pixels)), crop(pixels))


def test_a_crop_of_everything_is_a_resize():
    pixels = photo(24, 32)
    crop = RandomCrop((11, 13), 3, (1.0, 1.0), (4 / 3, 4 / 3))
    np.testing.assert_array_equal(crop(pixels), resizing.resize(pixels, (11, 13), "stretch"))
    assert crop.shape == (11, 13, 3) and RandomCrop((11, 13), 1, (1.0, 1.0), (1.0, 1.0))(pixels).shape == (11, 13, 1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("shape", [(320, 480), (317, 479)])
def test_a_reduced_photo_is_close_to_the_whole_one(orientation, shape):
    """Upright or turned, its sides multiples of 8 or not. A part off by one reduced pixel would differ by 6 or more."""
    file = as_jpeg(photo(*shape), orientation)
    whole = decoding.decode(file, 3)
    for row in range(5):
        crop = RandomCrop((23, 19), 3, (0.2, 1.0), (3 / 4, 4 / 3)).at(0, 0, row)
        difference = np.abs(crop(file).astype(int) - crop(whole))
        assert difference.max() <= 5 and difference.mean() < 1
    large = RandomCrop((300, 300), 3, (0.2, 0.9), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(large(file), large(whole))


def test_a_photo_is_decoded_at_a_reduced_size(monkeypatch):
    found = []
    decode = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda *asked: found.append(decode(*asked)) or found[-1])
    file = as_jpeg(photo(320, 480))
    for size in (161, 160, 81, 80, 41, 40, 20):
        RandomCrop((size, size), 3, (1.0, 1.0), (1.5, 1.5))(file)
    halves = [(320, 480), (160, 240), (80, 120), (40, 60)]
    assert [pixels.shape[:2] for pixels in found] == [halves[i] for i in (0, 0, 0, 1, 1, 2, 3)]


@pytest.mark.parametrize("row", range(5))
def test_a_mask_is_cropped_as_its_image_is(row):
    """An image and a mask whose pixels hold their row, or their column."""
    crop = RandomCrop((29, 37), 1, (0.2, 1.0), (3 / 4, 4 / 3)).at(3, 0, row)
    for ramp in np.indices((131, 173)).astype(np.uint8):
        image, mask = crop(ramp[..., None])[..., 0], crop.mask(ramp)
        off = (image.astype(int) - mask)[3:-3, 3:-3]
        assert mask.shape == (29, 37) and np.abs(off).max() <= 2 and abs(off.mean()) < 0.5
    np.testing.assert_array_equal(crop.mask(encoded(ramp)), mask)
