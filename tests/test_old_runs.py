"""A run that the code of November 2026 trained, before Workdir and tasks: it is still evaluated, used and resumed.

`fixtures/run_2026_11.tar.xz` is a CNN of two channels on synthetic/5x7x3/3/97 with flips, averages and checkpoints of
steps 4 and 6, its last.
"""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import vit_jax
from vit_jax.data import open_data
from vit_jax.workdir import Workdir

STORED = Path(__file__).parent / "fixtures" / "run_2026_11.tar.xz"


@pytest.fixture
def old(tmp_path) -> Workdir:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return Workdir(tmp_path / "run")


def test_it_is_read(old):
    assert old.is_run() and old.is_finished() and old.saved_steps() == [4, 6]
    assert old.class_names() == ("class 0", "class 1", "class 2") and old.images()["train"] > 60
    assert [line["step"] for line in old.metrics() if "train/loss" in line] == [2, 4, 6]


def test_it_predicts_and_evaluates_as_it_did(old):
    stored, result = np.load(old.predictions_file), old.result()
    images, labels = open_data(old.config().data).split("test").read(stored["index"])
    np.testing.assert_array_equal(labels, stored["label"])
    np.testing.assert_allclose(vit_jax.load(old.path).logits(images), stored["logits"], rtol=1e-4, atol=1e-5)
    found = vit_jax.evaluate(old.path)
    assert found["step"] == 6
    for name in ("loss", "accuracy", "f1_macro", "ece"):
        assert found[f"test/{name}"] == pytest.approx(result[f"test/{name}"], rel=1e-4)


def test_it_goes_on_from_its_checkpoint_to_the_same_result(old):
    before, logged = old.result(), old.metrics()
    shutil.rmtree(old.checkpoints / "6")
    old.result_file.unlink()
    vit_jax.train(old.config_file, console=Console(quiet=True))
    found = old.result()
    for name in ("test/loss", "test/accuracy", "val/loss", "best_val/loss"):
        assert found[name] == pytest.approx(before[name], rel=1e-4)
    again = old.metrics()
    assert [line["step"] for line in again] == [line["step"] for line in logged]
    for ours, theirs in zip(again, logged, strict=True):
        same = {
            name: value
            for name, value in theirs.items()
            if name not in ("train/images_per_second", "train/input_wait_fraction")
        }
        assert {name: ours[name] for name in same} == pytest.approx(same, rel=1e-4)
