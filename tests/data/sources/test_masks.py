"""Folders of images with masks, and TFDS features with masks: what they give, and what they say of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import street
from tests.conftest import REAL_DATA
from vit_jax import data
from vit_jax.command import UserError
from vit_jax.data.sources import tfds, tfds_masks

CAMVID = REAL_DATA.parent / "camvid"
COUNTS = {"train": 5, "val": 2, "test": 3}


def opened(root: Path, **fields) -> data.Data:
    return data.open_data(data.Settings(name=str(root), **fields))


def pairs(split: data.Split) -> dict[bytes, np.ndarray]:
    """The mask of each image, by its pixels."""
    arrays, good = split.read_marked(np.arange(len(split)))
    assert good.all()
    return {image.tobytes(): mask for image, mask in zip(arrays["image"], arrays["mask"], strict=True)}


def test_each_image_has_its_mask_in_every_split(tmp_path):
    found = opened(street.write(tmp_path, COUNTS))
    assert found.class_names == street.NAMES and found.dataset.fields == ("image", "mask")
    assert found.preprocessing.size == (24, 32)
    for i, (purpose, count) in enumerate({"train": 5, "validation": 2, "test": 3}.items()):
        masks = pairs(found.split(purpose))
        assert len(masks) == count
        for number in range(count):
            image, mask = street.pair(100 * i + number)
            np.testing.assert_array_equal(masks[image.tobytes()], mask)


def test_a_folder_without_splits_keeps_a_fifth_for_the_test(tmp_path):
    found = opened(street.write(tmp_path, {"": 11}))
    assert found.dataset.splits == {"train": 9, "test": 2}
    assert not pairs(found.split("test")).keys() & pairs(found.split("train")).keys()


def test_it_may_lie_in_the_data_dir(tmp_path):
    street.write(tmp_path / "streets", COUNTS)
    assert data.open_data(data.Settings(name="streets", data_dir=str(tmp_path))).class_names == street.NAMES


@pytest.mark.parametrize("name", [{"name": "./streets"}, {"name": "streets", "data_dir": "."}])
def test_its_path_may_be_relative(name, tmp_path, monkeypatch):
    street.write(tmp_path / "streets", COUNTS)
    monkeypatch.chdir(tmp_path)
    found = data.open_data(data.Settings(**name))
    assert found.preprocessing.size == (24, 32) and len(pairs(found.split("train"))) == 5


def test_classes_that_no_file_names_are_counted(tmp_path):
    assert opened(street.write(tmp_path, COUNTS, classes=False)).class_names == ("class 0", "class 1", "class 2")


def masks_of(tmp_path: Path, mask: Image.Image, classes: dict | None = None) -> np.ndarray:
    """The masks of the training split, once all files of masks are this one."""
    root = street.write(tmp_path, COUNTS)
    for path in (root / "train" / "masks").iterdir():
        mask.save(path)
    if classes:
        (root / "classes.json").write_text(json.dumps({"names": street.NAMES} | classes))
    return opened(root).split("train").read_marked(np.arange(5))[0]["mask"]


MASK = street.pair(0)[1]


def test_palette_masks_are_read_by_their_entries(tmp_path):
    image = Image.fromarray(MASK).convert("P")
    image.putdata(MASK.reshape(-1))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    np.testing.assert_array_equal(masks_of(tmp_path, image)[0], MASK)


def test_another_value_may_be_void(tmp_path):
    found = masks_of(tmp_path, Image.fromarray(MASK), {"ignore": 2})
    np.testing.assert_array_equal(found[0], np.where(MASK == 2, street.VOID, MASK))


def test_colours_are_read_by_the_list_of_classes_json(tmp_path):
    pixels = np.zeros((*MASK.shape, 3), np.uint8) + 7  # no class has this colour
    pixels[MASK != street.VOID] = street.COLORS[MASK[MASK != street.VOID]]
    found = masks_of(tmp_path, Image.fromarray(pixels), {"colors": street.COLORS.tolist()})
    np.testing.assert_array_equal(found[0], MASK)


BAD = {
    "another size": (Image.fromarray(MASK[:-1]), r"a mask of \(23, 32\) pixels \(h, w\) for an image of \(24, 32\)"),
    "a label outside": (Image.fromarray(np.where(MASK == 2, 3, MASK)), "value 3, but the 3 classes are 0 to 2"),
    "all void": (Image.fromarray(np.full_like(MASK, 255)), "its mask is void everywhere"),
    "16 bits": (Image.fromarray(MASK.astype(np.uint16) * 257), "a mask of mode I;16.*; expected 8-bit"),
    "colours unlisted": (Image.fromarray(street.COLORS[MASK % 3]), 'list the colour of each class under "colors"'),
}


@pytest.mark.parametrize(("mask", "expected"), BAD.values(), ids=BAD)
def test_a_bad_mask_is_told_in_one_line(tmp_path, mask, expected):
    with pytest.raises(UserError, match=rf"broken image .*images/\d\d\.png: .*{expected}") as told:
        masks_of(tmp_path, mask)
    assert "\n" not in str(told.value)


def test_broken_masks_may_be_passed_over(tmp_path):
    root = street.write(tmp_path, COUNTS)
    Image.fromarray(np.full_like(MASK, 255)).save(root / "train" / "masks" / "00.png")
    split = opened(root, max_bad_fraction=0.2).split("train")
    assert split.load().good.sum() == 4 and len(split.bad) == 1


def test_an_image_without_a_mask(tmp_path):
    root = street.write(tmp_path, COUNTS)
    (root / "train" / "masks" / "03.png").unlink()
    with pytest.raises(UserError, match=r"images/03\.png has no mask: there is no .*masks/03\.png; .*1 of 5 lack one"):
        opened(root)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read"),
        ("{}", "KeyError: 'names'"),
        ('{"names": ["a", "a"]}', "expected 2 to 255 different names"),
        ('{"names": ["a", "b"], "colors": [[1, 2, 3], [1, 2, 3]]}', "1 different colours for 2 classes"),
    ],
)
def test_a_classes_json_that_is_wrong(tmp_path, content, expected):
    root = street.write(tmp_path, COUNTS)
    (root / "classes.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        opened(root)


def test_frequencies_of_classes_by_hand(tmp_path):
    """Of the pixels of the images that show a class (Eigen & Fergus 2015); void pixels count nowhere."""
    split = opened(street.write(tmp_path, COUNTS)).split("train")
    masks = split.read_marked(np.arange(5))[0]["mask"]
    shown, all_of = np.zeros(4), np.zeros(4)
    for mask in masks:
        for k in range(4):
            if (mask == k).any():
                shown[k] += (mask == k).sum()
                all_of[k] += (mask != street.VOID).sum()
    np.testing.assert_allclose(split.class_frequencies(4)[:3], shown[:3] / all_of[:3])
    assert split.class_frequencies(4)[3] == 0


class Streets:
    """Stands for a builder of TFDS: what `open_prepared_masks` reads of it."""

    def __init__(self, folder: Path, mask_feature) -> None:
        import tensorflow_datasets as features

        self.data_path = folder
        self.info = type("Info", (), {})()
        self.info.features = features.features.FeaturesDict(
            {"picture": features.features.Image(shape=(None, None, 3)), "segmentation_mask": mask_feature}
        )
        self.info.splits = {"train": type("Split", (), {"num_examples": 2, "filepaths": []})()}

    def as_data_source(self, split: str):
        return type("Data", (), {"data_source": [self.record(0), self.record(1)]})()

    def record(self, number: int) -> bytes:
        from tensorflow_datasets.proto import tf_example_pb2

        example = tf_example_pb2.Example()
        for key, pixels in zip(("picture", "segmentation_mask"), street.pair(number), strict=True):
            path = self.data_path / "one.png"
            Image.fromarray(pixels).save(path)
            example.features.feature[key].bytes_list.value.append(path.read_bytes())
        return example.SerializeToString()


def test_tfds_features_with_masks(tmp_path, monkeypatch):
    import tensorflow_datasets as features

    declared = features.features.LabeledImage(labels=list(street.NAMES), shape=(None, None, 1))
    plain = features.features.Image(shape=(None, None, 1))
    monkeypatch.setattr(tfds_masks, "open_builder", lambda name, data_dir: Streets(tmp_path, declared))
    found = data.sources.open_dataset("masks/streets", tmp_path)
    assert found.class_names == street.NAMES and found.fields == ("image", "mask")
    example = found.source("train").read(1)
    np.testing.assert_array_equal(example["mask"], street.pair(1)[1])
    assert isinstance(example["image"], bytes)
    monkeypatch.setattr(tfds_masks, "open_builder", lambda name, data_dir: Streets(tmp_path, plain))
    with pytest.raises(UserError, match=r"'segmentation_mask' does not name its classes; write classes\.json"):
        data.sources.open_dataset("masks/streets", tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": street.NAMES}))
    assert data.sources.open_dataset("masks/streets", tmp_path).class_names == street.NAMES


def test_a_tfds_data_set_without_masks():
    if not REAL_DATA.is_dir():
        pytest.skip("the prepared data sets are not here")
    with pytest.raises(UserError, match="cifar10 has no mask among its features"):
        tfds_masks.open_prepared_masks("cifar10", REAL_DATA)
    assert tfds.open_prepared("cifar10", REAL_DATA).fields == ("image", "label")


def test_camvid_is_read_whole():
    if not CAMVID.is_dir():
        pytest.skip("CamVid is not here")
    found = opened(CAMVID)
    assert found.dataset.splits == {"train": 367, "validation": 101, "test": 233} and len(found.class_names) == 11
    shares = found.split("validation").class_frequencies(11)
    assert shares.argmax() == found.class_names.index("building") or shares.argmax() == found.class_names.index("road")
