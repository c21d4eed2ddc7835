"""Finding image files, and decoding them ahead in batches of one size with broken ones reported."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.command import UserError
from vit_jax.data import Preprocessing
from vit_jax.data.files import find_images, read_images

PREPROCESSING = Preprocessing((5, 7), "crop", 3)


def write(folder, *paths: str) -> list[str]:
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 5), (i, 2 * i, 255 - i)).save(folder / path, "PNG")
    return [str(folder / path) for path in paths]


def test_folders_are_searched_at_any_depth_in_the_order_of_their_paths(tmp_path):
    write(tmp_path, "b/2.png", "b/1.jpg", "a/deep/er/3.PNG", "c.bmp", ".hidden/x.png", "b/.x.png", "__MACOSX/x.png")
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([str(tmp_path)])]
    assert found == ["a/deep/er/3.PNG", "b/1.jpg", "b/2.png", "c.bmp"]


def test_paths_keep_their_order_and_files_are_taken_whatever_their_name(tmp_path, monkeypatch):
    write(tmp_path, "z/1.png", "a/2.png", "a/3.png", "photo.weird", ".hidden.png")
    monkeypatch.chdir(tmp_path)
    found = [*map(str, find_images(["z", "photo.weird", ".hidden.png", "a/3.png", "a"]))]
    assert found == ["z/1.png", "photo.weird", ".hidden.png", "a/3.png", "a/2.png"]


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/text.txt").write_text("no image")
    with pytest.raises(UserError, match="nowhere.png is not there; expected an image file or a folder of images"):
        find_images([str(tmp_path / "notes"), "nowhere.png"])
    with pytest.raises(UserError, match=r"no image \(.*\) in .*notes$"):
        find_images([str(tmp_path / "notes")])
    with pytest.raises(UserError, match="in no path"):
        find_images([])


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(UserError, match="cannot read the folder .*Permission denied"):
        find_images([str(tmp_path)])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"), *(f"{i:02}.png" for i in range(23)))


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 3), (4, 1), (11, 3), (23, 1), (24, 3)])
def test_every_image_once_in_order_in_batches_of_one_size(paths, batch_size, threads):
    batches = list(read_images(paths, PREPROCESSING, batch_size, threads))
    assert [len(rows) for rows, _, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [row for rows, _, _ in batches for row in rows] == list(range(23))
    pixels = np.concatenate([images for _, images, _ in batches])
    assert pixels.shape == (23, 5, 7, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[:, 0, 0], [(i, 2 * i, 255 - i) for i in range(23)])
    assert not any(broken for _, _, broken in batches)


def test_broken_files_are_reported_where_they_stood_and_leave_batches_full(tmp_path):
    paths = write(tmp_path, *(f"{i}.png" for i in range(7)))
    for i, bad in ((1, b""), (2, b"hello"), (6, b"text")):
        with open(paths[i], "wb") as file:
            file.write(bad)
    paths[4] = str(tmp_path / "gone.png")
    batches = list(read_images(paths, PREPROCESSING, 2, 2))
    assert [(rows, sorted(broken)) for rows, _, broken in batches] == [([0, 3], [1, 2]), ([5], [4, 6])]
    reasons = {i: reason for _, _, broken in batches for i, reason in broken.items()}
    assert reasons[1] == "the file is empty" and reasons[2] == "not an image that Pillow can read"
    assert "No such file" in reasons[4]


def test_only_broken_files_give_an_empty_batch_and_no_file_none(tmp_path):
    [(rows, images, broken)] = read_images([tmp_path / "a.png", tmp_path / "b.png"], PREPROCESSING, 3, 2)
    assert (rows, images.shape, sorted(broken)) == ([], (0, 5, 7, 3), [0, 1])
    assert list(read_images([], PREPROCESSING, 3, 2)) == []


def test_no_more_than_two_batches_are_decoded_ahead(paths):
    decoded = []

    class Noted(Preprocessing):
        def __call__(self, encoded, *, draft=False):
            decoded.append(1)
            return super().__call__(encoded, draft=draft)

    batches = read_images(paths, Noted(PREPROCESSING.size, "crop", 3), 3, 2)
    next(batches)
    time.sleep(0.2)
    assert len(decoded) <= 3 + 2 * 3
    before = threading.active_count()
    batches.close()  # the reader leaves early
    time.sleep(0.2)
    assert threading.active_count() < before and len(decoded) <= 3 + 2 * 3
