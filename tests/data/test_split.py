"""Decoded images of a split: in memory or read again each time, exact statistics, broken images never silent."""

import errno
import logging

import numpy as np
import pytest
from PIL import Image

from tests.data.images import SHAPE, Images, encoded, photo
from vit_jax.command import UserError
from vit_jax.data import Preprocessing, decoding
from vit_jax.data import split as split_module
from vit_jax.data.split import Split

WHOLE = Preprocessing(SHAPE[:2], "crop", 3)


def make(count=23, broken=(), preprocessing=WHOLE, **options) -> Split:
    return Split("train", Images(count, broken), preprocessing, **options)


def everything(split: Split) -> dict[str, np.ndarray]:
    """All examples, broken ones among them, which `good` tells."""
    arrays, good = split.read_marked(np.arange(len(split)))
    return {**arrays, "good": good}


def test_in_memory_and_read_again_are_alike():
    streamed, loaded = make(), make().load()
    assert not streamed.arrays and loaded.arrays and len(streamed) == len(loaded) == 23
    found, expected = everything(streamed), everything(loaded)
    assert found.keys() == expected.keys() == {"image", "label", "good"}
    for key in found:
        np.testing.assert_array_equal(found[key], expected[key])
        assert found[key].dtype == expected[key].dtype
    np.testing.assert_array_equal(found["image"], loaded.source.pixels)
    assert list(found["label"]) == [i % 11 for i in range(23)] and found["good"].all()
    rows = np.array([17, 2, 17])
    np.testing.assert_array_equal(streamed.read(rows)["image"], loaded.source.pixels[rows])
    np.testing.assert_array_equal(loaded.read(rows)["label"], rows % 11)
    assert loaded.num_bytes == streamed.num_bytes == 23 * 5 * 7 * 3


def test_preprocessing_decides_size_and_channels():
    loaded = make(preprocessing=Preprocessing((3, 2), "stretch", 1)).load()
    assert loaded.arrays["image"].shape == (23, 3, 2, 1)
    grey = Image.fromarray(loaded.source.pixels[5]).convert("L").resize((2, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(loaded.arrays["image"][5, ..., 0], np.asarray(grey))


ALL = ("image", "label", "mask")


@pytest.mark.parametrize("load", [(), ("label",), ALL], ids=str)
@pytest.mark.parametrize("fields", [("image",), ("mask", "label"), ALL], ids=str)
def test_only_the_fields_asked_for_are_read_whatever_is_loaded(fields, load):
    split = make(fields=ALL, preprocessing=Preprocessing((5, 5), "crop", 3))
    assert split.num_bytes == 23 * 5 * 5 * 4
    if load:
        split.load(load)
    expected = {
        "image": split.source.pixels[:, :, 1:6],
        "label": np.arange(23) % 11,
        "mask": split.source.pixels[:, :, 1:6, 0] // 16,
    }
    rows = np.array([17, 2, 17])
    for found in (split.read(rows, fields=fields), split.read_marked(rows, fields)[0]):
        assert list(found) == list(fields)
        spec = split.spec(3, fields)
        for key, values in found.items():
            np.testing.assert_array_equal(values, expected[key][rows])
            assert (values.shape, values.dtype) == (spec[key].shape, spec[key].dtype)


def test_what_is_not_asked_for_is_not_decoded():
    split = Split("train", Images(7), WHOLE, fields=ALL)
    split.source.pixels = np.zeros((7, 5, 7, 5), np.uint8)  # no image
    assert list(split.read(np.arange(7), fields=["label"])["label"]) == list(range(7))
    with pytest.raises(UserError, match="1 or 3 channels, not 5"):
        split.read(np.arange(7))


def test_a_mask_of_another_size_than_its_image_is_broken_and_a_broken_one_is_void():
    split = Split("train", Images(7, broken=[2]), WHOLE, 0.9, fields=ALL)
    whole = split.source.read
    split.source.read = lambda index: whole(index) | ({"mask": np.zeros((5, 6), np.uint8)} if index == 4 else {})
    found = everything(split.load())
    assert "a mask of (5, 6) pixels (h, w) for an image of (5, 7)" in split.bad[4]
    assert list(np.flatnonzero(~found["good"])) == [2, 4]
    assert (found["mask"][[2, 4]] == decoding.VOID).all() and not found["image"][[2, 4]].any()
    np.testing.assert_array_equal(split.read(np.array([4]))["mask"][0], whole(5)["mask"])


def test_a_draft_of_a_large_photo_is_close_and_of_all_else_the_same():
    pixels = photo(320, 480)
    file = encoded(pixels, "JPEG", quality=95)
    small = Preprocessing((23, 19), "crop", 3, 0.9, "bicubic")
    large, grey = Preprocessing((200, 200), "crop", 3), Preprocessing((9, 9), "crop", 1)
    difference = small(file, draft=True).astype(int) - small(file)
    assert 0 < np.abs(difference).max() <= 3
    np.testing.assert_array_equal(large(file, draft=True), large(file))
    np.testing.assert_array_equal(grey(pixels, draft=True), grey(pixels))  # decoded already
    always = Preprocessing((23, 19), "crop", 3, 0.9, "bicubic", draft=True)
    np.testing.assert_array_equal(always(file), small(file, draft=True))


@pytest.mark.parametrize("broken", [[], [13]])
def test_statistics_are_those_of_numpy_in_memory_and_streamed_to_the_last_bit(broken):
    """Broken images are left out."""
    split = make(broken=broken, max_bad_fraction=0.5)
    pixels = np.delete(split.source.pixels, broken, axis=0) / 255
    streamed, in_memory = split.statistics(), split.load().statistics()
    np.testing.assert_array_equal(streamed, in_memory)
    np.testing.assert_allclose(streamed[0], pixels.mean(axis=(0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(streamed[1], pixels.std(axis=(0, 1, 2)), rtol=1e-14)


def test_statistics_of_a_large_streamed_split_look_at_evenly_spaced_images(monkeypatch):
    monkeypatch.setattr(split_module, "STATISTICS_IMAGES", 3)
    split = make()
    np.testing.assert_allclose(split.statistics()[0], split.source.pixels[[0, 11, 22]].mean((0, 1, 2)) / 255)


def test_statistics_of_a_constant_image_are_exact():
    split = make(3)
    split.source.pixels[:] = 255
    np.testing.assert_array_equal(split.statistics(), [[1.0] * 3, [0.0] * 3])


LOOKS = {
    "load": lambda split: split.load(),
    "read": lambda split: split.read(np.arange(23)),
    "read_marked": everything,
    "statistics": lambda split: split.statistics(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_broken_image_is_an_error_that_names_it(look):
    with pytest.raises(UserError, match=r"broken image image 13: no such sector \(1 of 23 in 'train' so far\); repair"):
        look(make(broken=[13]))


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_as_many_as_allowed_are_skipped_and_counted_and_warned_of_once(look, caplog):
    split = make(broken=[4, 13], max_bad_fraction=2 / 23)
    with caplog.at_level(logging.WARNING):
        look(split)
        everything(split)
    assert split.bad == {4: "image 4: no such sector", 13: "image 13: no such sector"}
    told = [f"skipped broken image image {i}: no such sector" for i in (13, 4)]
    assert sorted(record.getMessage() for record in caplog.records) == told
    with pytest.raises(UserError, match=r"\(2 of 23"):
        look(make(broken=[4, 13], max_bad_fraction=1.9 / 23))


def test_many_threads_count_each_broken_image_once():
    broken = range(0, 1009, 2)
    split = make(1009, broken, max_bad_fraction=0.6, threads=8).load()
    assert split.good is not None and split.good.sum() == 504 and set(split.bad) == set(broken)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError("out of memory")])
def test_what_says_nothing_of_the_image_is_no_broken_image(monkeypatch, error):
    split = make(max_bad_fraction=0.5)

    def read(index):
        raise error

    monkeypatch.setattr(split.source, "read", read)
    with pytest.raises(UserError, match=r"cannot read image 3 now: .*; the image itself may be whole"):
        split.read(np.array([3]))
    assert not split.bad
