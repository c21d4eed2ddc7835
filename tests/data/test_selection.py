"""Choosing classes and training images: which, in what order, the same everywhere; and labels without images."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data import archives
from tests.data.images import Images
from vit_jax.command import UserError
from vit_jax.data import Settings, open_data
from vit_jax.data.prepare import prepare
from vit_jax.data.selection import choose_classes, choose_images
from vit_jax.data.sources import Dataset, Example, open_dataset, read_labels

NAMES = tuple("abcdefghijk")  # of the labels 0..10 of `Images`


def chosen(count=97, *, limit=0, per_class=0, seed=0, names=NAMES) -> list[str]:
    """What the chosen images of `count` are called, in order."""
    source = choose_images(Images(count), names, limit=limit, per_class=per_class, seed=seed)
    return [source.describe(i) for i in range(len(source))]


def numbers(found: list[str]) -> list[int]:
    return [int(name.removeprefix("image ")) for name in found]


def test_nothing_asked_for_is_the_source_itself():
    source = Images(7)
    assert choose_images(source, NAMES, limit=0, per_class=0, seed=3) is source


@pytest.mark.parametrize("kind", ["limit", "per_class"])
def test_a_smaller_choice_is_part_of_a_larger_one_in_the_sources_order(kind):
    choices = [numbers(chosen(**{kind: size})) for size in (1, 2, 5, 7)]
    for small, large in zip(choices, choices[1:], strict=False):
        assert set(small) < set(large)
    for choice in choices:
        assert choice == sorted(set(choice))
    assert numbers(chosen(**{kind: 5})) == choices[2] != numbers(chosen(**{kind: 5}, seed=1))


def test_a_choice_is_the_same_on_every_machine():
    """NumPy does not promise it: a version that shuffles otherwise would train on other images."""
    assert numbers(chosen(limit=5)) == [24, 44, 51, 74, 82]
    assert numbers(chosen(limit=5, seed=7)) == [54, 67, 71, 73, 74]
    assert numbers(chosen(30, per_class=1)) == [0, 6, 8, 10, 12, 13, 14, 15, 16, 20, 29]


def test_a_limit_is_exact_up_to_what_there_is():
    assert [len(chosen(limit=limit)) for limit in (1, 96, 97, 98)] == [1, 96, 97, 97]


def test_images_per_class_are_exact():
    source = choose_images(Images(97), NAMES, limit=0, per_class=5, seed=2)
    assert Counter(read_labels(source).tolist()) == dict.fromkeys(range(11), 5)
    assert [source.read(i)["label"] for i in range(len(source))] == read_labels(source).tolist()
    with pytest.raises(IndexError, match="image 55 of 55"):
        source.read(55)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UserError, match=r"images_per_class=9, but .* fewer training images: j \(8\), k \(8\); .* 8$"):
        chosen(97, per_class=9)
    with pytest.raises(UserError, match=r"fewer training images: l \(0\); choose a data\.train with images of every"):
        chosen(97, per_class=1, names=(*NAMES, "l"))


def test_settings_choose_training_images_alone():
    given = Settings(name="synthetic/5x7x3/3/70", images_per_class=4, choice=5)
    data = open_data(given)
    split = data.split("train").load()
    assert data.size("train") == len(split) == 12 and Counter(split.arrays["label"].tolist()) == {0: 4, 1: 4, 2: 4}
    assert (data.size("validation"), data.size("test"), data.size("train[:9]")) == (7, 14, 9)
    assert len(data.split("test")) == 14 and len(data.split("train[:9]")) == 9
    limited = open_data(Settings(name="synthetic/5x7x3/3/70", limit=1000))
    assert limited.size("train") == len(limited.split("train")) == 63


def test_too_few_images_are_known_before_any_is_decoded():
    data = open_data(Settings(name="synthetic/5x7x3/3/70", train="train[:5]", images_per_class=2))
    with pytest.raises(UserError, match=r"fewer training images: class 2 \(1\); choose at most 1"):
        data.size("train")


def given(**splits: list[int]) -> Dataset:
    """A data set of 1x1 images that hold their number, with these labels."""

    class Source:
        def __init__(self, split: str):
            self.split = split

        def __len__(self) -> int:
            return len(splits[self.split])

        def read(self, index: int) -> Example:
            return {"image": np.full((1, 1, 1), index, np.uint8), "label": splits[self.split][index]}

        def describe(self, index: int) -> str:
            return f"{self.split} {index}"

    sizes = {split: len(labels) for split, labels in splits.items()}
    return Dataset("given", ("ant", "bee", "cat", "dog"), (1, 1, 1), sizes, Source)


def content(source) -> list[tuple[int, int]]:
    return [(int(example["image"].item()), example["label"]) for example in map(source.read, range(len(source)))]


def test_classes_are_renumbered_as_given_and_images_keep_their_order():
    dataset = choose_classes(given(train=[0, 3, 1, 3, 2, 1], test=[1, 2, 3]), ("dog", "bee"))
    assert dataset.class_names == ("dog", "bee") and dict(dataset.splits) == {"train": 4, "test": 2}
    train = dataset.source("train")
    assert content(train) == [(1, 0), (2, 1), (3, 0), (5, 1)]
    assert [train.describe(i) for i in range(4)] == ["train 1", "train 2", "train 3", "train 5"]
    assert content(dataset.source("test+train[1:3]")) == [(0, 1), (2, 0), (2, 1), (3, 0)]
    assert read_labels(dataset.source("test+train[1:3]")).tolist() == [1, 0, 1, 0]
    assert content(choose_images(train, dataset.class_names, limit=0, per_class=1, seed=0))[0] in ((1, 0), (2, 1))


def test_slices_count_and_overlap_in_what_was_chosen():
    dataset = choose_classes(given(train=[0, 3, 1, 3, 2, 1], test=[1, 2, 3]), ("dog", "bee"))
    assert dataset.size("train[:50%]") == 2 and dataset.overlap("train[:3]", "train[2:]") == 1
    assert dataset.overlap("train[:50%]", "train[50%:]") == 0


def test_overlapping_splits_of_chosen_classes_are_refused():
    chosen = {"name": "synthetic/5x7x3/5/100", "classes": ("class 4", "class 1"), "validation": "none"}
    assert open_data(Settings(**chosen, train="train[:30]", test="train[30:]")).size("train") == 30
    with pytest.raises(UserError, match="3 images are both in data.train='train.:30.' and data.test='train.27:.'"):
        open_data(Settings(**chosen, train="train[:30]", test="train[27:]"))


def test_a_split_without_labels_is_left_out():
    dataset = choose_classes(given(train=[0, 1], validation=[1, 0], test=[-1, -1, -1]), ("ant", "bee"))
    assert dict(dataset.splits) == {"train": 2, "validation": 2}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (
            ("cow", "bee"),
            r"data.classes=\('cow', 'bee'\): 'cow' is not a class of 'given'; its classes: ant, bee, cat, d",
        ),
        (("bee",), r"data.classes=\('bee',\): give two or more, each once, of ant, bee, cat, dog"),
        (("bee", "ant", "bee"), "give two or more, each once"),
        (("bee", "cat"), "split 'test' of 'given' has no image of these"),
    ],
)
def test_classes_that_are_not_there(classes, expected):
    with pytest.raises(UserError, match=expected):
        choose_classes(given(train=[0, 1, 2, 3], test=[0, 3]), classes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Tiny CIFAR-10 as TFDS keeps it: the folder of data sets."""
    root: Path = tmp_path_factory.mktemp("tfds")
    archives.write("cifar10", root / "archives", train=53)
    prepare("cifar10", root / "data", str(root / "archives"), checksum=False)
    return root / "data"


def test_classes_of_a_prepared_data_set(prepared):
    whole = open_dataset("cifar10", prepared).source("train")
    new = {7: 0, 2: 1}
    expected = [whole.read(i) | {"label": new[old]} for i, old in enumerate(read_labels(whole)) if old in new]
    data = open_data(
        Settings(
            name="cifar10", data_dir=str(prepared), classes=("label_7", "label_2"), train="train", validation="none"
        )
    )
    source = data.dataset.source("train")
    assert [source.read(i) for i in range(len(source))] == expected and len(expected) > 3


@pytest.mark.parametrize("name", ["digits", "synthetic/5x7x3/11/40", "cifar10", "folder"])
@pytest.mark.parametrize("spec", ["train", "train[3:17]+test[:2]"])
def test_labels_without_images_are_those_with_them(name, spec, prepared, tmp_path, monkeypatch):
    if name == "folder":
        for i in range(23):
            (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
            Image.new("L", (3, 5)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    source = open_dataset(str(tmp_path) if name == "folder" else name, prepared).source(spec)
    expected = [source.read(i)["label"] for i in range(len(source))]
    monkeypatch.setattr(type(source), "read", lambda self, index: pytest.fail("an image was read"))
    assert read_labels(source).tolist() == expected


def test_a_damaged_record_is_not_passed_over_for_its_label(prepared, tmp_path):
    """A flipped byte in the compressed records, which hold the labels."""
    damaged = shutil.copytree(prepared, tmp_path / "data")
    [file] = damaged.glob("cifar10/*/*train.array_record*")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x55
    file.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="cifar10 train: records 0 to 52 cannot all be read for their labels .*again"):
        read_labels(open_dataset("cifar10", damaged).source("train"))


def test_names_are_found_in_either_unicode_spelling():
    composed, parted = "S\u00fc\u00dfes", "Su\u0308\u00dfes"
    dataset = Dataset("x", (composed, "b"), (5, 7, 3), {"train": 33}, lambda split: Images(33))
    assert choose_classes(dataset, ("b", parted)).class_names == ("b", composed)
