import collections
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.sources import Dataset, Example, MissingDataset, Source, folder, open_dataset, read_labels, register

NOWHERE = Path("no-such-data-dir")


def labels(source: Source) -> list[int]:
    return [source.read(i)["label"] for i in range(len(source))]


def names(source: Source) -> list[str]:
    return [source.describe(i) for i in range(len(source))]


def images(root: Path, *paths: str, size: tuple[int, int] = (7, 5), mode: str = "RGB") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        own = np.random.default_rng(list(path.encode())).integers(0, 256, size[::-1], np.uint8)  # no two are copies
        Image.fromarray(own).convert(mode).save(root / path)
    return root


class Numbers:
    """Row i of split s reads as label i."""

    def __init__(self, split: str, size: int):
        self._split, self._size = split, size

    def __len__(self) -> int:
        return self._size

    def read(self, index: int) -> Example:
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": range(self._size)[index]}

    def describe(self, index: int) -> str:
        return f"{self._split} {index}"


def numbers(**splits: int) -> Dataset:
    return Dataset("numbers", ("a", "b"), (1, 1, 1), splits, lambda split: Numbers(split, splits[split]))


BOUND = st.one_of(st.just(""), st.integers(-103, 103).map(str))


@settings(max_examples=40)
@given(size=st.integers(1, 101), start=BOUND, stop=BOUND)
def test_a_slice_is_a_python_slice_within_the_split(size, start, stop):
    data, spec = numbers(train=size), f"train[{start}:{stop}]"
    outside = any(bound and abs(int(bound)) > size for bound in (start, stop))
    expected = list(range(size))[slice(int(start) if start else None, int(stop) if stop else None)]
    if outside or not expected or spec == "train[:]":
        with pytest.raises(UserError, match=re.escape(spec)):
            data.source(spec)
    else:
        assert labels(data.source(spec)) == expected
        assert data.size(spec) == len(expected)


@settings(max_examples=40)
@given(size=st.integers(100, 331), percent=st.integers(1, 99))
def test_percentages_part_a_split_without_gap_or_overlap(size, percent):
    data = numbers(train=size)
    parts = f"train[:{percent}%]", f"train[{percent}%:]"
    assert labels(data.source(parts[0])) + labels(data.source(parts[1])) == list(range(size))
    assert abs(data.size(parts[0]) - size * percent / 100) <= 0.5
    assert data.overlap(*parts) == 0 and data.overlap(parts[0], "train") == data.size(parts[0])


def test_sums_follow_one_another():
    source = numbers(train=7, test=5).source("train[5:]+test[:-3] + train[:1]")
    assert names(source) == ["train 5", "train 6", "test 0", "test 1", "train 0"]
    assert labels(source) == [5, 6, 0, 1, 0]
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            source.read(outside)
    assert labels(numbers(train=2, test=3).source("all")) == [0, 1, 0, 1, 2]


def test_overlap_counts_the_images_in_both():
    data = numbers(train=11, test=7)
    assert data.overlap("train[:5]+test", "train[3:]") == 2
    assert data.overlap("train", "test") == 0
    assert data.overlap("train[:7]+test[2:]", "train[6:]+test[:3]") == 2


@pytest.mark.parametrize(
    "spec", ["", "dev", "train[", "train[3]", "train[::2]", "train[:12]", "train[:101%]", "train+", "train[1shard]"]
)
def test_bad_specs_name_the_splits_and_their_sizes(spec):
    with pytest.raises(UserError, match=re.escape("train (11 images), test (1,300 images)")):
        numbers(train=11, test=1300).size(spec)


def test_digits_are_scikit_learns_in_a_stratified_split():
    from sklearn.datasets import load_digits

    data = open_dataset("digits", NOWHERE)
    assert (data.image_shape, data.class_names) == ((8, 8, 1), tuple("0123456789"))
    train, test = data.source("train"), data.source("test")
    assert (len(train), len(test)) == (data.size("train"), data.size("test")) == (1437, 360)
    original, targets = load_digits(return_X_y=True)
    sizes, tested = np.bincount(targets), np.bincount(labels(test))
    np.testing.assert_allclose(tested, sizes * 360 / 1797, atol=1)
    read = [source.read(i) for source in (train, test) for i in range(len(source))]
    rows = [(*example["image"].flat, example["label"]) for example in read]
    scaled = np.rint(original * 255 / 16).astype(int)
    assert sorted(rows) == sorted((*image, label) for image, label in zip(scaled, targets, strict=True))
    assert train.describe(3) == "digits train record 3"
    with pytest.raises(ValueError, match="read-only"):
        train.read(0)["image"][:] = 0


def test_digits_split_never_changes():
    data = open_dataset("digits", NOWHERE)
    assert labels(data.source("train[:10]")) == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8]
    assert labels(data.source("test[:10]")) == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


def test_synthetic_images_depend_on_the_index_alone_and_can_be_learned():
    data = open_dataset("synthetic/11x13x3/7/350", NOWHERE)
    assert (data.image_shape, len(data.class_names), dict(data.splits)) == ((11, 13, 3), 7, {"train": 350, "test": 70})
    train, test = data.source("train"), data.source("test")
    np.testing.assert_array_equal(
        train.read(17)["image"], open_dataset(data.name, NOWHERE).source("train").read(17)["image"]
    )
    assert labels(train) == [i % 7 for i in range(350)]
    assert len(open_dataset("synthetic/5x7x3/3/3000000000", NOWHERE).source("train")) == 3 * 10**9  # as plans open it
    assert not np.array_equal(train.read(3)["image"], test.read(3)["image"]) and not np.array_equal(
        *[train.read(i)["image"] for i in (0, 7)]
    )
    means = [np.mean([train.read(i)["image"] for i in range(label, 350, 7)], axis=0) for label in range(7)]
    nearest = [np.argmin([np.square(test.read(i)["image"] - mean).sum() for mean in means]) for i in range(70)]
    assert np.mean(np.array(nearest) == labels(test)) > 0.95


def test_synthetic_defaults_and_mistakes():
    data = open_dataset("synthetic", NOWHERE)
    assert (data.image_shape, len(data.class_names)) == ((32, 32, 3), 10)
    assert dict(data.splits) == {"train": 1000, "test": 200}
    for wrong in ("8x8", "8x8x2/10/100", "8x8x3/1/100", "0x8x3/2/100", ""):
        name = f"synthetic/{wrong}"
        with pytest.raises(UserError, match=f"{name}.*expected synthetic/HxWxC/CLASSES/TRAIN_IMAGES"):
            open_dataset(name, NOWHERE)


def test_a_folder_with_splits(tmp_path, caplog):
    images(tmp_path, "train/b/1.png", "train/a/sub/2.PNG", "train/a/3.jpeg", "test/a/4.bmp", "test/b/5.png")
    images(tmp_path, "val/a/6.png", "val/b/7.png", ".hidden/x.png", "train/.cache/x.png", "train/a/.x.png", "val/8.png")
    (tmp_path / "train/a/notes.txt").write_text("no image")
    (tmp_path / "extra").mkdir()
    data = open_dataset(str(tmp_path), NOWHERE)
    assert caplog.messages == [f"{tmp_path}/val: images beside its classes, passed over: 1"]
    assert (data.class_names, data.image_shape) == (("a", "b"), (5, 7, 3))
    assert dict(data.splits) == {"train": 3, "validation": 2, "test": 2}
    train = data.source("train")
    found = {
        Path(name).relative_to(tmp_path).as_posix(): label
        for name, label in zip(names(train), labels(train), strict=True)
    }
    assert found == {"train/b/1.png": 1, "train/a/sub/2.PNG": 0, "train/a/3.jpeg": 0}
    encoded = train.read(0)["image"]
    assert encoded == Path(train.describe(0)).read_bytes()
    assert decoding.decode(encoded, 0).shape == (5, 7, 3)


def flat_folder(root: Path) -> Path:
    return images(
        root, *(f"a/{i}.png" for i in range(37)), *(f"b/é{i}.png" for i in range(13)), "c/1.png", "c/2.png", "d/1.png"
    )


def test_a_folder_without_splits_is_divided_by_name_alone(tmp_path, caplog):
    data = [open_dataset(str(flat_folder(tmp_path / place)), NOWHERE) for place in ("one", "two")]
    for split in ("train", "test"):
        one, two = (
            [os.path.relpath(name, tmp_path / place) for name in names(opened.source(split))]
            for place, opened in zip(("one", "two"), data, strict=True)
        )
        assert one == two
    train, test = data[0].source("train"), data[0].source("test")
    assert not set(names(train)) & set(names(test))
    assert collections.Counter(labels(test)) == {0: 7, 1: 3, 2: 1}  # a fifth, at least one, none of a single image
    assert collections.Counter(labels(train)) == {0: 30, 1: 10, 2: 1, 3: 1}
    assert caplog.messages == 2 * ["class 'd' has a single image: none of it is in the test split"]
    lowest = sorted((f"a/{i}.png" for i in range(37)), key=lambda name: hashlib.sha1(name.encode()).digest())[:7]
    assert [os.path.relpath(name, tmp_path / "one") for name in names(test) if "/a/" in name] == lowest


def test_any_slice_of_a_folder_keeps_the_classes_proportions(tmp_path):
    data = open_dataset(str(flat_folder(tmp_path)), NOWHERE)
    tail = collections.Counter(labels(data.source("train[50%:]")))
    assert tail[0] in (14, 15, 16) and tail[1] in (4, 5, 6)


def test_the_split_of_a_file_does_not_depend_on_how_its_accents_are_stored(tmp_path):
    composed, parted = "\u00e9", "e\u0301"
    for place, letter in (("one", composed), ("two", parted)):
        images(tmp_path / place, *(f"{c}{letter}/{letter}{i}.png" for c in "ab" for i in range(11)))
    one, two = (open_dataset(str(tmp_path / place), NOWHERE) for place in ("one", "two"))
    assert one.class_names == two.class_names == (f"a{composed}", f"b{composed}")
    same = [re.sub(r"\D", "", os.path.basename(name)) for name in names(one.source("test"))]
    assert same == [re.sub(r"\D", "", os.path.basename(name)) for name in names(two.source("test"))]


def test_image_shape_says_what_decoding_gives(tmp_path):
    grey = images(tmp_path / "grey", "a/1.png", "b/2.png", mode="L")
    assert open_dataset(str(grey), NOWHERE).image_shape == (5, 7, 1)
    mixed = images(images(tmp_path / "mixed", "a/1.png", mode="L"), "b/2.png")
    assert open_dataset(str(mixed), NOWHERE).image_shape == (5, 7, 3)
    sizes = images(images(tmp_path / "sizes", "a/1.png"), "b/2.png", size=(7, 11))
    assert open_dataset(str(sizes), NOWHERE).image_shape == (0, 0, 3)
    turned = images(tmp_path / "turned", "a/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    (turned / "b").mkdir()
    Image.new("RGB", (5, 7)).save(turned / "b/2.jpg", exif=exif)
    assert open_dataset(str(turned), NOWHERE).image_shape == (5, 7, 3)
    (turned / "b/broken.jpg").write_text("text")
    assert open_dataset(str(turned), NOWHERE).image_shape == (5, 7, 3)


def test_headers_are_read_of_evenly_spaced_files_only(tmp_path, monkeypatch):
    root, read = flat_folder(tmp_path), []
    monkeypatch.setattr(folder, "_HEADERS_READ", 5)
    monkeypatch.setattr(decoding, "header_shape", lambda file: read.append(file) or (5, 7, 3))
    assert open_dataset(str(root), NOWHERE).image_shape == (5, 7, 3)
    assert len(read) == 5


@pytest.mark.parametrize(
    "paths, said",
    [
        (["1.png", "2.png"], "holds no class folder and 2 images beside it"),
        (["train/a/1.png", "train/b/1.png"], "holds train/ but neither test/ nor val/; add one, or give .*/train, "),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            r"only in test: \['c'\], only in train: \['b'\]",
        ),
        (["train/a/1.png", "test/a/1.png"], "train holds one class folder only"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "validation/a/1.png"], "both val/ and validation/"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, paths, said):
    images(tmp_path, *paths)
    with pytest.raises(UserError, match=said):
        open_dataset(str(tmp_path), NOWHERE)


def test_missing_folders_are_refused(tmp_path):
    for name in ("./no/such", "../no-such", "~/no/such", str(tmp_path / "gone")):
        with pytest.raises(UserError, match="is not there; expected a folder of images"):
            open_dataset(name, NOWHERE)


def test_a_plain_name_is_a_folder_where_nothing_of_that_name_is_prepared(tmp_path, monkeypatch):
    images(tmp_path, "flowers/a/1.png", "flowers/b/1.png")
    monkeypatch.chdir(tmp_path)
    assert open_dataset("flowers", NOWHERE).class_names == ("a", "b")
    with pytest.raises(MissingDataset):
        open_dataset("flours", NOWHERE)


def test_a_kind_of_data_set_is_one_registration():
    """By its first word or by a predicate; the last one that fits opens it, and gets the name and the folder."""
    given = []

    def opener(name: str, data_dir: Path) -> Dataset:
        given.append((name, data_dir))
        return numbers(train=3)

    register("numbers", opener)
    assert labels(open_dataset("numbers/of/mine", NOWHERE).source("train")) == [0, 1, 2]
    register(lambda name: name.endswith(".sqlite"), opener)
    open_dataset("./images.sqlite", Path("there"))
    assert given == [("numbers/of/mine", NOWHERE), ("./images.sqlite", Path("there"))]
    with pytest.raises(MissingDataset):
        open_dataset("numbers2", NOWHERE)


def test_examples_need_no_label():
    class Unlabelled(Numbers):
        def read(self, index: int) -> Example:
            return {"image": super().read(index)["image"]}

    dataset = Dataset("bare", (), (1, 1, 1), {"train": 5}, lambda split: Unlabelled(split, 5), fields=("image",))
    source = dataset.source("train[1:3]+train[:1]")
    assert [source.read(i).keys() for i in range(3)] == 3 * [{"image"}] and read_labels(source).tolist() == [-1] * 3
