"""Data sets of Hugging Face's package: saved to disk and as Parquet, with classes of every kind; bad ones told."""

from pathlib import Path

import numpy as np
import pytest

from tests.data import shards
from vit_jax.command import UserError
from vit_jax.data import Settings, open_data
from vit_jax.data.sources import MissingDataset, open_dataset

hf = pytest.importorskip("datasets", reason="no datasets: pip install 'vit_jax[hf-datasets]'")
NOWHERE = Path("/no/such/folder")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    hf.disable_progress_bars()


def table(numbers, labels=None, label=None, image="img", **columns):
    """Images of these numbers, encoded, and labels of a kind."""
    features = {image: hf.Image(), **({} if label is None else {"label": label})}
    rows = {image: [{"bytes": shards.png(i), "path": None} for i in numbers]} | columns
    return hf.Dataset.from_dict(rows | ({} if label is None else {"label": list(labels)}), hf.Features(features))


def three(label=None, **labels):
    """Splits of 5, 2 and 3 images."""
    label = hf.ClassLabel(names=["cat", "dog"]) if label is None else label
    numbers = {"train": range(5), "validation": range(5, 7), "test": range(7, 10)}
    return hf.DatasetDict(
        {split: table(given, labels.get(split, [i % 2 for i in given]), label) for split, given in numbers.items()}
    )


def saved(folder: Path, given) -> str:
    given.save_to_disk(str(folder / "saved"))
    return f"hf/{folder / 'saved'}"


def as_parquet(folder: Path, given) -> str:
    (folder / "data").mkdir()
    for split, rows in given.items():
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return f"hf/{folder}"


@pytest.mark.parametrize("write", [saved, as_parquet])
def test_rows_are_read_at_random_their_images_as_stored(write, tmp_path, monkeypatch):
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = open_dataset(write(tmp_path, three()), NOWHERE)
    assert dataset.splits == {"train": 5, "validation": 2, "test": 3} and dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (8, 6, 3) and dataset.fields == ("image", "label")
    source = dataset.open_split("test")
    assert source.read(1) == {"image": shards.png(8), "label": 0}
    assert source.labels().tolist() == [1, 0, 1] and source.describe(1).endswith("test row 1")
    with pytest.raises(IndexError):
        source.read(3)


def test_a_folder_beside_other_data_is_found_and_decoded(tmp_path):
    saved(tmp_path, three())
    data = open_data(Settings(name="hf/saved", data_dir=str(tmp_path)))
    assert data.specs == {"train": "train", "validation": "validation", "test": "test"}
    np.testing.assert_array_equal(data.split("train").load().arrays["image"][3], shards.pixels(3))


def test_a_folder_may_have_the_name_of_a_format(tmp_path, monkeypatch):
    """Which the package knows: `datasets.load_dataset("arrow")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "arrow").mkdir()
    as_parquet(tmp_path / "arrow", three())
    assert open_dataset("hf/arrow", NOWHERE).splits["train"] == 5


def test_classes_may_be_numbers_or_names_or_absent(tmp_path):
    numbers = open_dataset(saved(tmp_path / "a", three(hf.Value("int64"), train=[0, 2, 1, 0, 2])), NOWHERE)
    assert numbers.class_names == ("0", "1", "2")
    named = three(hf.Value("string"), train=list("bcabc"), validation=["a", "b"], test=["c", "a", "b"])
    names = open_dataset(saved(tmp_path / "b", named), NOWHERE)
    assert names.class_names == ("a", "b", "c") and names.open_split("train").labels().tolist() == [1, 2, 0, 1, 2]
    without = open_dataset(saved(tmp_path / "c", hf.DatasetDict(train=table(range(3)))), NOWHERE)
    assert without.fields == ("image",) and without.open_split("train").read(2) == {"image": shards.png(2)}


def test_a_test_split_whose_labels_are_kept_is_passed_over(tmp_path, caplog):
    dataset = open_dataset(saved(tmp_path, three(test=[-1, -1, -1])), NOWHERE)
    assert set(dataset.splits) == {"train", "validation"} and "test has no labels" in caplog.text


BAD = {
    "no train": (lambda: hf.DatasetDict(test=table(range(2))), "has the splits test, none of them train"),
    "no image": (lambda: hf.Dataset.from_dict({"label": [0, 1]}), "no column of images, only label"),
    "paths": (
        lambda: hf.Dataset.from_dict({"image": ["a.jpg"], "label": [0]}),
        "no column of images, only image, label",
    ),
    "no label": (lambda: three(train=[0, None, 1, 0, 1]), "train row 1 has no label"),
    "a fraction": (lambda: three(hf.Value("float32")), "label=0.0; expected a whole number"),
    "negative": (lambda: three(hf.Value("int64"), train=[0, 1, -1, 0, 1]), "train row 2 has label=-1, outside 0..1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_in_one_line(name, tmp_path):
    make, expected = BAD[name]
    address = saved(tmp_path, make())
    with pytest.raises(UserError, match=expected) as told:
        open_dataset(address, NOWHERE)
    assert "\n" not in str(told.value)


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(MissingDataset, match="there is no folder ./nothing"):
        open_dataset("hf/./nothing", NOWHERE)
    monkeypatch.setattr(hf, "load_dataset", lambda *names: (_ for _ in ()).throw(ConnectionError("no\nnetwork")))
    with pytest.raises(MissingDataset, match=r"nor could it be fetched from the Hub \(ConnectionError: no\)"):
        open_dataset("hf/someone/something", NOWHERE)
