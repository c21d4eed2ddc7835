"""Opening a data set: which split serves what, what must not overlap, sizes and channels, where images are kept."""

import numpy as np
import pytest
from PIL import Image

from tests.data.images import photo
from vit_jax import data, sharding
from vit_jax.command import UserError
from vit_jax.data import Data, Dataset, Settings, decoding, open_data, opening, resizing
from vit_jax.data.sources.arrays import open_synthetic


def opened(splits: dict[str, int], fields: tuple[str, ...] = ("image", "label"), **settings) -> Data:
    """A data set that has splits of these sizes."""
    whole = open_synthetic("synthetic/5x7x3/2/23")
    given = Dataset("given", whole.class_names, (5, 7, 3), splits, whole.open_split, fields=fields)
    data.register("given", lambda name, data_dir: given)
    return open_data(Settings(name="given", **settings))


ALL = {"train": 100, "validation": 30, "test": 20}
TRAIN_TEST = {"train": 100, "test": 20}
TRAIN_VALIDATION = {"train": 100, "validation": 30}
PURPOSES, THREE = ("train", "validation", "test"), ("train[:60]", "train[60:80]", "train[80:]")


@pytest.mark.parametrize(
    ("splits", "settings", "expected"),  # train, validation, test
    [
        (ALL, {}, ("train", "validation", "test")),
        (ALL, {"validation": "none"}, ("train", None, "test")),
        (ALL, {"test": "validation"}, ("train[:90%]", "train[90%:]", "validation")),
        (ALL, {"train": "train+validation", "validation": "none"}, ("train+validation", None, "test")),
        (TRAIN_TEST, {}, ("train[:90%]", "train[90%:]", "test")),
        (TRAIN_TEST, {"validation": "none"}, ("train", None, "test")),
        (TRAIN_TEST, {"train": "train[:50%]"}, ("train[:50%]", "train[90%:]", "test")),
        (TRAIN_TEST, {"train": "train[:40]", "validation": "train[40:]"}, ("train[:40]", "train[40:]", "test")),
        (TRAIN_VALIDATION, {}, ("train[:90%]", "train[90%:]", "validation")),
        ({"train": 100}, dict(zip(PURPOSES, THREE, strict=True)), THREE),
    ],
)
def test_which_split_serves_what(splits, settings, expected):
    found = opened(splits, **settings)
    named = {purpose: spec for purpose, spec in zip(PURPOSES, expected, strict=True) if spec}
    assert found.specs == named
    sizes = [found.size(purpose) for purpose in named]
    assert sizes == [found.dataset.size(spec) for spec in named.values()] and all(sizes)


def test_what_is_held_out_does_not_train():
    found = opened(TRAIN_TEST)
    assert [found.size(purpose) for purpose in ("train", "validation", "test")] == [90, 10, 20]
    assert opened(TRAIN_TEST, validation="none").size("validation") == 0
    assert found.size("train[:7]+test") == 27


@pytest.mark.parametrize(
    ("splits", "settings", "expected"),
    [
        (TRAIN_TEST, {"train": "train"}, r"^10 images are both in data\.train='train' and data\.validation="),
        (TRAIN_TEST, {"validation": "train[:7]", "train": "train"}, r"^7 images are both in data\.train"),
        (ALL, {"train": "train+test"}, r"^20 images are both in data\.train='train\+test' and data\.test='test'"),
        (ALL, {"validation": "test[:3]"}, r"^3 images are both in data\.validation='test\[:3\]' and data\.test"),
        (ALL, {"test": "train[50:]"}, r"^50 images are both in data\.train='train' and data\.test"),
        ({"train": 100}, {}, "'given' has no test split; divide train"),
    ],
)
def test_splits_that_overlap_or_do_not_exist(splits, settings, expected):
    with pytest.raises(UserError, match=expected):
        opened(splits, **settings)


def test_no_validation_split_to_read():
    with pytest.raises(UserError, match=r"data\.validation='none': there is no validation split"):
        opened(ALL, validation="none").split("validation")


def test_splits_hold_their_images():
    found = open_data(Settings(name="synthetic/5x7x3/2/23"))
    parts = [found.split(purpose) for purpose in ("train", "validation")]
    assert [len(part) for part in parts] == [21, 2]
    np.testing.assert_array_equal(np.concatenate([images(part) for part in parts]), whole("train"))
    np.testing.assert_array_equal(images(found.split("test")), whole("test"))


def images(split: data.Split) -> np.ndarray:
    return split.load().arrays["image"]


def whole(split: str) -> np.ndarray:
    source = open_synthetic("synthetic/5x7x3/2/23").open_split(split)
    return np.stack([source.read(i)["image"] for i in range(len(source))])


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (5, 7, 3)),
        ({"channels": 1}, (5, 7, 1)),
        ({"image_size": (11,)}, (11, 11, 3)),
        ({"image_size": (3, 2), "channels": 3, "resize": "stretch"}, (3, 2, 3)),
    ],
)
def test_the_shape_in_which_images_leave_the_host(settings, shape):
    found = open_data(Settings(name="synthetic/5x7x3/2/23", **settings))
    assert found.preprocessing.shape == shape
    assert images(found.split("test")).shape == (4, *shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_as_colour_and_colour_as_grey(channels):
    stored = 4 - channels
    found = images(open_data(Settings(name=f"synthetic/5x7x{stored}/2/23", channels=channels)).split("test"))
    raw = images(open_data(Settings(name=f"synthetic/5x7x{stored}/2/23")).split("test"))
    if channels == 3:
        np.testing.assert_array_equal(found, raw.repeat(3, axis=-1))
    else:
        expected = [np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in raw]
        np.testing.assert_array_equal(found, expected)


def test_images_of_different_sizes_need_a_size(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.new("RGB", (5 + i, 7), (i, 0, 0)).save(tmp_path / label / f"{i}.png")
    with pytest.raises(UserError, match=r"differ in size: .* e\.g\. data\.image_size=\(224,\)"):
        open_data(Settings(name=str(tmp_path)))
    found = open_data(Settings(name=str(tmp_path), image_size=(3,), validation="none"))
    assert images(found.split("train")).shape == (8, 3, 3, 3)
    assert open_data(Settings(name=str(tmp_path)), (11, 13)).preprocessing.size == (11, 13)
    assert open_data(Settings(name=str(tmp_path), image_size=(3,)), (11, 13)).preprocessing.size == (3, 3)


@pytest.mark.parametrize(
    ("stored", "image_size", "default", "expected"),
    [
        ("5x7", (), (11, 13), (5, 7)),  # images of one size stay as they are
        ("43x47", (), (11, 13), (43, 47)),
        ("44x53", (), (11, 13), (11, 13)),  # but for a camera's photos
        ("44x53", (17,), (11, 13), (17, 17)),
        ("44x53", (), (0, 0), (44, 53)),
    ],
)
def test_the_default_size_is_for_photos(stored, image_size, default, expected):
    settings = Settings(name=f"synthetic/{stored}x3/2/23", image_size=image_size)
    assert open_data(settings, default).preprocessing.size == expected


def test_preprocessing_crops_and_interpolates_as_the_settings_say():
    crop = {"image_size": (5,), "crop_fraction": 0.7, "interpolation": "bicubic"}
    found, raw = (
        images(open_data(Settings(name="synthetic/17x23x3/2/7", validation="none", **more)).split("train"))
        for more in (crop, {})
    )
    resize = resizing.resize
    np.testing.assert_array_equal(found, [resize(image, (5, 5), "crop", 0.7, "bicubic") for image in raw])
    assert (found != [resize(image, (5, 5), "crop", 1.0, "bicubic") for image in raw]).any()
    assert (found != [resize(image, (5, 5), "crop", 0.7, "bilinear") for image in raw]).any()


def test_what_is_chosen_by_label_needs_labels():
    assert opened(TRAIN_TEST, fields=("image",)).split("train").spec(3).keys() == {"image"}
    for chosen in ({"images_per_class": 3}, {"classes": ("class 0", "class 1")}):
        with pytest.raises(UserError, match="'given' has no labels: leave out data.classes, data.images_per_class and"):
            opened(TRAIN_TEST, fields=("image",), **chosen)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_size": (1, 2, 3)}, r"data\.image_size=\(1, 2, 3\)"),
        ({"image_size": (0,)}, r"data\.image_size=\(0,\)"),
        ({"channels": 4}, r"data\.channels=4"),
        ({"threads": 0}, r"data\.threads=0"),
        ({"crop_fraction": 0.0}, r"data\.crop_fraction=0\.0 is not in \(0, 1\]"),
        ({"crop_fraction": 1.1}, r"data\.crop_fraction=1\.1 is not in"),
        ({"max_bad_fraction": -0.1}, r"data\.max_bad_fraction=-0\.1"),
        ({"limit": -1}, r"data\.limit=-1 is negative"),
        ({"images_per_class": -1}, r"data\.images_per_class=-1 is negative"),
        ({"choice": -1}, r"data\.choice=-1 is negative"),
        ({"limit": 1, "images_per_class": 1}, r"data\.limit and data\.images_per_class are both given"),
        ({"repeats": 0}, r"data\.repeats=0 is not positive"),
        ({"crop_on": "host", "cache": "device"}, r"data\.crop_on='host' .* set data\.cache=none or auto"),
    ],
)
def test_settings_out_of_range(settings, expected):
    with pytest.raises(UserError, match=expected):
        open_data(Settings(**settings))


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(data.MissingDataset, match=r"python -m vit_jax\.data\.prepare cifar100 --data_dir "):
        open_data(Settings(name="cifar100", data_dir=str(tmp_path)))


@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_the_cache_that_is_asked_for(cache):
    found = open_data(Settings(name="synthetic/5x7x3/2/23", cache=cache, threads=2))
    mesh = sharding.make_mesh(sharding.Settings())
    loader = found.loader(found.split("train"), mesh, on_device=True)
    assert loader.on_device == (cache == "device") and not loader.split.arrays and loader.threads == 2
    assert bool(loader.load().split.arrays) == (cache != "none")
    loader = found.loader(found.split("test"), mesh).load()
    assert not loader.on_device and bool(loader.split.arrays) == (cache != "none")


def test_auto_keeps_small_splits_on_the_device_medium_ones_on_the_host(monkeypatch):
    monkeypatch.setattr(opening, "DEVICE_CACHE_BYTES", 4 * 105)
    monkeypatch.setattr(opening, "HOST_CACHE_BYTES", 21 * 105)
    found = open_data(Settings(name="synthetic/5x7x3/2/23"))
    assert [found.cache(found.split(spec)) for spec in ("test", "train", "train+test")] == ["device", "host", "none"]
    monkeypatch.setattr(opening.memory, "installed", lambda: 4 * 19 * 105)  # of which a quarter may hold images
    assert found.cache(found.split("train")) == "none"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """A folder of images that differ in size."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for label in "ab":
        (folder / label).mkdir()
        for i in range(10):
            Image.fromarray(pixels[: 30 + i, i:]).save(folder / label / f"{i}.png")
    return str(folder)


def test_a_data_set_of_large_photos_is_decoded_in_draft_where_that_is_asked_for(tmp_path):
    pixels = photo(160, 240, scale=19)
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.fromarray(pixels[:, i:]).save(tmp_path / label / f"{i}.jpg")
    whole, draft = (
        images(open_data(Settings(name=str(tmp_path), image_size=(16,), draft=asked)).split("train"))
        for asked in (False, True)
    )
    assert 0 < np.abs(whole.astype(int) - draft).max() <= 4
    with pytest.raises(UserError, match=r"data\.draft changes nothing: the images of 'synth.* are no files"):
        open_data(Settings(name="synthetic/5x7x3/2/23", draft=True))


CROP = {"size": (13, 11), "area": (0.2, 0.9), "aspect": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("settings", "on_host"),
    [
        ({"cache": "none"}, True),
        ({"cache": "host"}, False),
        ({"cache": "device"}, False),
        ({}, False),
        ({"crop_on": "host"}, True),
        ({"crop_on": "device", "cache": "none"}, False),
    ],
)
def test_where_images_of_different_sizes_are_cropped(photos, settings, on_host):
    found = open_data(Settings(name=photos, image_size=(17,), interpolation="bicubic", channels=1, **settings))
    crop = found.random_crop(**CROP)
    assert (crop == data.RandomCrop((13, 11), 1, (0.2, 0.9), (1.0, 2.0), "bicubic")) == on_host
    assert (crop is None) != on_host
    assert found.random_crop(**{**CROP, "area": ()}) is None


@pytest.mark.parametrize(("size", "on_host"), [((), False), ((5, 7), False), ((4, 6), True)])
def test_streamed_images_of_one_size_are_cropped_on_the_host_if_they_are_resized(size, on_host):
    found = open_data(Settings(name="synthetic/5x7x3/2/23", image_size=size, cache="none"))
    assert (found.random_crop(**CROP) is not None) == on_host


def test_a_loader_that_crops_streams_and_evaluation_does_not_crop(photos):
    found = open_data(Settings(name=photos, image_size=(17,), crop_on="host", repeats=2, validation="none"))
    mesh, crop = sharding.make_mesh(sharding.Settings()), found.random_crop(**CROP)
    loader = found.loader(found.split("train"), mesh, on_device=True, crop=crop)
    assert not loader.on_device and not loader.split.arrays
    [batch] = loader.train(0, 4, 0, 1)
    assert batch["image"].shape == (4, 13, 11, 3)
    mean, _ = loader.split.statistics()
    np.testing.assert_allclose(mean, images(found.split("train")).mean((0, 1, 2)) / 255)
    evaluation = found.loader(found.split("test"), mesh)
    assert next(evaluation.evaluation(4))["image"].shape == (4, 17, 17, 3)
    assert loader.repeats == 2 and batch["label"][0] == batch["label"][1]


def test_the_crop_sees_all_pixels_of_the_stored_image(photos):
    found = open_data(Settings(name=photos, image_size=(17,), crop_on="host", validation="none"))
    crop = found.random_crop(**CROP)
    loader = found.loader(found.split("train"), sharding.make_mesh(sharding.Settings()), crop=crop)
    [batch] = loader.train(3, 4, 0, 1)
    for row, index in enumerate(data.batching.train_indices(3, 0, 4, len(loader.split))):
        stored = decoding.decode(loader.split.source.read(int(index))["image"], 3)
        np.testing.assert_array_equal(batch["image"][row], crop.at(3, 0, row)(stored))
