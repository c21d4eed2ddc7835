"""Decoded images of a split: in memory or read again each time, exact statistics, broken images never silent."""

import errno
import io
import logging

import numpy as np
import pytest
from PIL import Image

from tests.data.images import SHAPE, Images
from vit_jax.command import UserError
from vit_jax.data import split as split_module
from vit_jax.data.sources.folder import open_folder
from vit_jax.data.split import Split, View


def make(count=23, broken=(), view=None, **options) -> Split:
    return Split("train", Images(count, broken), view or View(SHAPE[:2], "crop", 3), **options)


def everything(split: Split):
    return split.read_marked(np.arange(len(split)))


def test_in_memory_and_read_again_are_alike():
    streamed, loaded = make(), make().load()
    assert streamed.images is None and loaded.images is not None and len(streamed) == len(loaded) == 23
    for found, expected in zip(everything(streamed), everything(loaded), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    images, labels, good = everything(loaded)
    np.testing.assert_array_equal(images, loaded.source.pixels)
    assert list(labels) == [i % 11 for i in range(23)] and good.all()
    rows = np.array([17, 2, 17])
    np.testing.assert_array_equal(streamed.read(rows)[0], loaded.source.pixels[rows])
    np.testing.assert_array_equal(loaded.read(rows)[1], rows % 11)
    assert loaded.num_bytes == streamed.num_bytes == 23 * 5 * 7 * 3


def test_the_view_decides_size_and_channels():
    loaded = make(view=View((3, 2), "stretch", 1)).load()
    assert loaded.images.shape == (23, 3, 2, 1)
    grey = Image.fromarray(loaded.source.pixels[5]).convert("L").resize((2, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(loaded.images[5, ..., 0], np.asarray(grey))


def test_a_draft_of_a_large_photo_is_close_and_of_all_else_the_same():
    y, x = np.mgrid[:320, :480] / 37
    photo = np.rint(127 + 120 * np.stack([np.sin(y + x), np.cos(x), np.sin(y)], -1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=95)
    small, large, grey = View((23, 19), "crop", 3, 0.9, "bicubic"), View((200, 200), "crop", 3), View((9, 9), "crop", 1)
    difference = small(file.getvalue(), draft=True).astype(int) - small(file.getvalue())
    assert 0 < np.abs(difference).max() <= 3
    np.testing.assert_array_equal(large(file.getvalue(), draft=True), large(file.getvalue()))
    np.testing.assert_array_equal(grey(photo, draft=True), grey(photo))  # decoded already
    always = View((23, 19), "crop", 3, 0.9, "bicubic", draft=True)
    np.testing.assert_array_equal(always(file.getvalue()), small(file.getvalue(), draft=True))


@pytest.mark.parametrize("load", [False, True])
def test_statistics_are_those_of_numpy(load):
    split = make().load() if load else make()
    pixels = split.source.pixels / 255
    mean, std = split.statistics()
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-14)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-14)


def test_statistics_in_memory_and_streamed_are_equal_to_the_last_bit():
    for ours, theirs in zip(make().statistics(), make().load().statistics(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
    assert sorted(record.getMessage() for record in caplog.records) == [
        "skipped broken image image 13: no such sector",
        "skipped broken image image 4: no such sector",
    ]
    with pytest.raises(UserError, match=r"\(2 of 23"):
        look(make(broken=[4, 13], max_bad_fraction=1.9 / 23))


@pytest.mark.parametrize("loaded", [False, True])
def test_training_reads_the_next_good_image_instead_of_a_broken_one(loaded):
    split = make(broken=[13, 14, 22], max_bad_fraction=0.5)
    split = split.load() if loaded else split
    images, labels = split.read(np.array([22, 5, 13, 14]))
    np.testing.assert_array_equal(images, split.source.pixels[[0, 5, 15, 15]])
    assert list(labels) == [0, 5, 4, 4]
    again = make(broken=[13, 14, 22], max_bad_fraction=0.5).read(np.array([22, 5, 13, 14]))
    np.testing.assert_array_equal(again[0], images)


def test_usable_images_of_a_loaded_split():
    split = make(broken=[13, 14, 22], max_bad_fraction=0.5).load()
    assert list(split.usable(np.array([22, 5, 13, 14, 21]))) == [0, 5, 15, 15, 21]
    assert list(make().load().usable(np.array([22, 0]))) == [22, 0]


@pytest.mark.parametrize("loaded", [False, True])
def test_evaluation_marks_a_broken_image_and_keeps_its_place(loaded):
    split = make(broken=[13], max_bad_fraction=0.5)
    images, labels, good = everything(split.load() if loaded else split)
    assert len(split) == 23
    assert list(np.flatnonzero(~good)) == [13] and not images[13].any()
    assert list(np.delete(labels, 13)) == [i % 11 for i in range(23) if i != 13]


def test_statistics_leave_broken_images_out():
    broken, whole = make(broken=[13], max_bad_fraction=0.5), make()
    pixels = np.delete(whole.source.pixels, 13, axis=0)
    for split in (broken, make(broken=[13], max_bad_fraction=0.5).load()):
        np.testing.assert_allclose(split.statistics()[0], pixels.mean((0, 1, 2)) / 255, rtol=1e-14)


@pytest.mark.parametrize("damage", ["cut off", "empty", "no image"])
def test_a_broken_file_in_a_folder_is_named(tmp_path, damage):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, SHAPE, np.uint8)).save(tmp_path / label / f"{i}.png")
    dataset = open_folder(str(tmp_path))
    source = dataset.source("train")
    path = tmp_path / source.describe(2)
    whole = path.read_bytes()
    path.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b"", "no image": b"hello" * 9}[damage])
    view = View(SHAPE[:2], "crop", 3)
    with pytest.raises(UserError, match=f"broken image {path}: "):
        Split("train", source, view).load()
    allowed = Split("train", source, view, max_bad_fraction=0.2).load()
    assert list(allowed.bad) == [2] and allowed.good is not None and list(np.flatnonzero(~allowed.good)) == [2]


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
