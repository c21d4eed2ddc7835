import json
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REAL_DATA as PREPARED
from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.prepare import PREPARABLE
from vit_jax.data.sources import MissingDataset, open_dataset

needs_prepared = pytest.mark.skipif(not PREPARED.is_dir(), reason=f"no prepared data sets in {PREPARED}")


@needs_prepared
@pytest.mark.parametrize(
    "name, splits, shape, first_class",
    [
        ("cifar10", {"train": 50000, "test": 10000}, (32, 32, 3), "airplane"),
        ("fashion_mnist:3.0.1", {"train": 60000, "test": 10000}, (28, 28, 1), "T-shirt/top"),
        ("imagenette/160px-v2", {"train": 9469, "validation": 3925}, (0, 0, 3), "n01440764"),
    ],
)
def test_prepared_data_are_what_tfds_reads(name, splits, shape, first_class):
    import tensorflow_datasets as tfds

    data = open_dataset(name, PREPARED)
    assert (dict(data.splits), data.image_shape, data.class_names[0]) == (splits, shape, first_class)
    for split in splits:
        source = data.source(split)
        assert len(source) == data.size(split) == splits[split]
        for row in (0, splits[split] - 1):
            example, expected = source.read(row), tfds.data_source(name, split=split, data_dir=PREPARED)[row]
            np.testing.assert_array_equal(decoding.decode(example["image"], 0), expected["image"])
            assert example["label"] == expected["label"]
    assert data.source("train[5:]").describe(3) == f"{name} train record 8"


@needs_prepared
def test_slices_read_what_tfds_slices_read():
    import tensorflow_datasets as tfds

    spec = "train[99%:]+test[:3]"
    source, expected = (
        open_dataset("cifar10", PREPARED).source(spec),
        tfds.data_source("cifar10", split=spec, data_dir=PREPARED),
    )
    assert len(source) == len(expected)
    assert [source.read(i)["label"] for i in range(495, 503)] == [expected[i]["label"] for i in range(495, 503)]


@needs_prepared
def test_several_threads_and_a_pickled_copy_read_the_same():
    source = open_dataset("cifar10", PREPARED).source("train[:300]+test[:300]")
    rows = np.random.default_rng(0).permutation(600).tolist()
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(source.read, rows))
    assert threaded == [copy.read(row) for row in rows]


@pytest.fixture
def tiny(tmp_path):
    """A prepared data set of two versions and 7 images, without a split of the real data."""
    if not PREPARED.is_dir():
        pytest.skip(f"no prepared data sets in {PREPARED}")
    for version in ("9.0.0", "10.0.0"):
        to = tmp_path / "fashion_mnist" / version
        to.mkdir(parents=True)
        for file in (PREPARED / "fashion_mnist" / "3.0.1").iterdir():
            if "train" not in file.name:
                shutil.copy(file, to)
        info = json.loads((to / "dataset_info.json").read_text())
        info["splits"] = [split for split in info["splits"] if split["name"] == "test"]
        (to / "dataset_info.json").write_text(json.dumps({**info, "version": version}))
    return tmp_path


def edit(info: Path, **fields) -> None:
    info.write_text(json.dumps({**json.loads(info.read_text()), **fields}))


def test_the_newest_version_is_taken_unless_one_is_named(tiny):
    edit(tiny / "fashion_mnist" / "9.0.0" / "dataset_info.json", fileFormat="tfrecord")
    assert dict(open_dataset("fashion_mnist", tiny).splits) == {"test": 10000}
    with pytest.raises(UserError, match="prepared as tfrecord.*pip install .*fashion_mnist:9.0.0"):
        open_dataset("fashion_mnist:9.0.0", tiny)


def test_tfrecord_data_name_the_command_that_prepares_them_anew(tiny):
    edit(tiny / "fashion_mnist" / "10.0.0" / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(
        UserError, match="expected array_record; to prepare it: python -m .*prepare fashion_mnist --data_dir"
    ):
        open_dataset("fashion_mnist", tiny)
    edit(tiny / "fashion_mnist" / "10.0.0" / "dataset_info.json", alternativeFileFormats=["array_record"])
    assert len(open_dataset("fashion_mnist", tiny).source("test")) == 10000


def test_damaged_and_incomplete_data_are_named(tiny):
    newest = tiny / "fashion_mnist" / "10.0.0"
    records = next(newest.glob("*array_record*"))
    records.write_bytes(records.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be read.*prepare the data set again"):
        open_dataset("fashion_mnist", tiny).source("test").read(9999)
    records.unlink()
    with pytest.raises(UserError, match="is not in .*prepare the data set again"):
        open_dataset("fashion_mnist", tiny).source("test")
    (newest / "features.json").write_text("{")
    with pytest.raises(UserError, match="metadata .* cannot be read"):
        open_dataset("fashion_mnist", tiny)


def test_data_without_labels_or_images_are_refused(tiny):
    features = tiny / "fashion_mnist" / "10.0.0" / "features.json"
    content = json.loads(features.read_text())
    for key, said in (("label", "no class label among its features image"), ("image", "no 8- or 16-bit image")):
        left = {name: value for name, value in content["featuresDict"]["features"].items() if name != key}
        features.write_text(json.dumps({**content, "featuresDict": {"features": left}}))
        with pytest.raises(UserError, match=said):
            open_dataset("fashion_mnist", tiny)


def test_unlabelled_records_are_refused(tiny):
    features = tiny / "fashion_mnist" / "10.0.0" / "features.json"
    features.write_text(features.read_text().replace('"10"', '"2"'))
    (features.parent / "label.labels.txt").write_text("a\nb\n")
    source = open_dataset("fashion_mnist", tiny).source("test")
    with pytest.raises(UserError, match=r"label \d is outside 0..1; is the split test labelled"):
        for row in range(100):
            source.read(row)


@needs_prepared
@pytest.mark.parametrize(
    "name, said",
    [
        ("CIFAR10", "similar names: cifar10"),
        ("imagenette", "similar names: imagenette/160px-v2"),
        ("cifar10:9.9.9", r"\(prepared there: cifar10:3.0.2, fashion_mnist:3.0.1, imagenette/160px-v2:1.0.0\)"),
        ("cifar100", "to prepare it: python -m vit_jax.data.prepare cifar100 --data_dir "),
        ("imagenet21k", "TFDS has no data set of that name; name a folder of images"),
        ("stanford_dogs", r"to prepare it: pip install .*tf.*'stanford_dogs'.*array_record"),
    ],
)
def test_a_missing_data_set_says_what_is_there_and_how_to_get_it(name, said):
    with pytest.raises(MissingDataset, match=f"is not in {re.escape(str(PREPARED))} .*{said}"):
        open_dataset(name, PREPARED)


def test_without_a_data_dir_nothing_is_prepared(tmp_path):
    for data_dir in (tmp_path, tmp_path / "gone"):
        with pytest.raises(MissingDataset, match="prepared there: nothing"):
            open_dataset(PREPARABLE[0], data_dir)
    with pytest.raises(UserError, match="name is empty"):
        open_dataset("", tmp_path)


QUIET = """
import sys, socket
from pathlib import Path
def refuse(*args): raise AssertionError(f"network: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
from vit_jax.data import decoding
from vit_jax.data.sources import open_dataset
digits = open_dataset("digits", Path()).source("train")
assert "tensorflow_datasets" not in sys.modules
source = open_dataset("cifar10", Path(sys.argv[1])).source("train[:90%]+test")
assert decoding.decode(source.read(0)["image"], 0).shape == (32, 32, 3)
try:
    open_dataset("no_such_data", Path(sys.argv[1]))
except ValueError:
    pass
assert "tensorflow" not in sys.modules
import jax
assert not jax._src.xla_bridge.backends_are_initialized(), "a device was touched"
"""


@pytest.mark.slow
@needs_prepared
def test_reading_needs_no_tensorflow_no_network_no_device_and_says_nothing():
    done = subprocess.run([sys.executable, "-c", QUIET, str(PREPARED)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
