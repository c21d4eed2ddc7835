"""Pictures of what a model is shown, and what it goes by."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import augment, config, optim, sharding, step, tasks
from vit_jax.command import UserError
from vit_jax.data import open_data
from vit_jax.data.batching import train_indices
from vit_jax.report import augmentations, texture
from vit_jax.train.experiment import host_crop, with_data

CONFIG = str(REPOSITORY / "configs" / "digits.py")


def size(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.slow
def test_a_sheet_has_more_rows_for_more_steps(tmp_path):
    out = tmp_path / "sheet.png"
    shape = ["--images", "3", "--rows", "2", "--height", "40"]
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape]) == 0
    wide, tall = size(out)
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape[:3], "4", *shape[4:]]) == 0
    assert size(out)[0] == wide and size(out)[1] > tall


def test_without_augmentation_both_rows_of_a_step_are_the_same(tmp_path):
    out = tmp_path / "sheet.png"
    off = [f"--config.augment.{field}" for field in ("crop_padding=0", "flip=0", "rotation=0", "zoom=()", "shear=0")]
    off += ["--config.augment.translation=()", "--config.augment.erasing=0", "--config.data.name=synthetic/8x8x3/3/97"]
    augmentations.main(["--config", CONFIG, "--out", str(out), "--rows", "1", "--height", "32", *off])
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    half = len(pixels) // 2
    first, second = (
        np.unique(part.reshape(-1, 3), axis=0, return_counts=True) for part in (pixels[:half], pixels[half:])
    )
    coloured = [{tuple(c): n for c, n in zip(*part, strict=True) if len(set(c)) > 1} for part in (first, second)]
    assert coloured[0] == coloured[1] and len(coloured[0]) > 10


HOST_CROP = ["data.cache=none", "data.crop_on=host", "data.image_size=(4,5)", "augment.crop_area=(0.3,0.6)"]


@pytest.fixture
def rows(monkeypatch):
    """The images on the last sheet, by their captions."""
    shown = {}
    monkeypatch.setattr(augment, "contact_sheet", lambda rows, height: shown.update(rows) or Image.new("1", (1, 1)))
    return shown


def test_the_weights_that_a_run_starts_from_decide_the_size(rows, tmp_path_factory):
    workdir = tiny.finished(tmp_path_factory, "cnn")
    larger, shapes = "data.name=synthetic/10x14x3/3/97", []
    for start in ([], [f"init.weights={workdir}"]):
        augmentations.sheet(config.load(tiny.spec("cnn"), [larger, *start]), images=2, rows=1, height=1)
        shapes.append(rows["step 0"].shape)
    assert shapes == [(2, 10, 14, 3), (2, 5, 7, 3)]
    sized = [larger, "init.weights=runs/not-there", "augment.resize=(3,)"]  # then they decide nothing
    augmentations.sheet(config.load(tiny.spec("cnn"), sized), images=2, rows=1, height=1)
    assert rows["step 0"].shape == (2, 3, 3, 3)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(HOST_CROP, marks=pytest.mark.slow),
        pytest.param(["data.repeats=3", "train.accumulate=4"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_row_is_what_a_training_step_sees_of_its_batch(rows, more):
    mixed = [f"augment.{field}" for field in ("flip=0.5", "crop_padding=2", "erasing=0.5", "mixup=0.8", "cutmix=1")]
    given = config.load(tiny.spec("cnn"), [*mixed, "augment.mix_probability=0.7", "seed=5", *more])
    augmentations.sheet(given, images=6, rows=2, height=1)
    seen, parts = [], given.train.accumulate

    class Watching(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            jax.debug.callback(seen.append, images)
            return nn.Dense(3)(images.mean(axis=(1, 2)))

    data = open_data(given.data)
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:1])
    loader = data.loader(data.split("train"), mesh, on_device=True, crop=host_crop(given, data))
    view = with_data(given, data, loader.load().split).augment
    if more == HOST_CROP:
        view = dataclasses.replace(view, crop_area=())
    tx, classes = optim.create(given.optim), ("a", "b", "c")
    of_task = tasks.Parts(Watching(), data.preprocessing.shape, classes, augment=view, train_augment=view)
    task = tasks.create(tasks.settings("classification"), of_task)
    train_step = step.make_train_step(
        task, tx, lambda at, total: jnp.float32(0), seed=5, total_steps=9, accumulate=parts
    )
    state = step.init_state(task, tx, 5, ema=False)
    del seen[:]
    for batch in loader.train(5, 40, 0, 2):
        state, _ = train_step(state, batch, loader.constants)
        jax.effects_barrier()
    assert len(seen) == 2 * parts
    assert [c.split(":")[0] for c in rows] == ["step 0, unchanged", "step 0", "step 1, unchanged", "step 1"]
    for row, expected in zip(list(rows.values())[1::2], seen[::parts], strict=True):
        np.testing.assert_array_equal(row, augment.displayed(view, np.asarray(expected))[:6])


@pytest.mark.slow
def test_a_crop_on_the_host_looks_other_than_the_whole_image_and_than_a_crop_on_the_device(rows):
    seen = {}
    for where in ("host", "device"):
        given = config.load(tiny.spec("cnn"), [*HOST_CROP, f"data.crop_on={where}"])
        augmentations.sheet(given, images=7, rows=1, height=1)
        unchanged, seen[where] = rows.values()
    assert unchanged.shape == seen["host"].shape == (7, 4, 5, 3)
    for other in (unchanged, seen["device"]):
        assert (seen["host"] != other).any(axis=(1, 2, 3)).all()


def test_an_image_that_repeats_comes_so_often_each_time_augmented_anew(rows):
    given = config.load(tiny.spec("cnn"), ["data.repeats=3", "augment.crop_padding=2", "augment.flip=0.5"])
    augmentations.sheet(given, images=7, rows=1, height=1)
    unchanged, seen = rows.values()
    first = open_data(given.data).split("train").read(train_indices(given.seed, 0, 40, 180)[:3])["image"]
    np.testing.assert_array_equal(unchanged, first[[0, 0, 0, 1, 1, 1, 2]])
    assert len(np.unique(seen, axis=0)) == 7


def test_more_images_than_a_batch_holds_are_the_batch(rows):
    augmentations.sheet(config.load(tiny.spec("cnn"), ["train.batch_size=5"]), images=7, rows=1, height=1)
    assert [len(images) for images in rows.values()] == [5, 5]


def test_a_caption_tells_the_shares_of_mixed_images():
    assert augmentations.caption(0, 1.0) == "step 0"
    assert augmentations.caption(2, 0.63) == "step 2: 63% of each image, 37% of its counterpart"


@pytest.mark.parametrize(("flags", "expected"), [(["--rows", "0"], "must be positive"), ([], "cannot write")])
def test_mistakes(tmp_path, flags, expected):
    with pytest.raises(UserError, match=expected):
        augmentations.main(["--config", tiny.spec("cnn"), "--out", str(tmp_path / "nowhere" / "sheet.png"), *flags])


def test_pairs_in_conflict_are_of_two_classes():
    labels = np.array([0, 0, 1, 2, 1, 0, 2])
    shape, other = texture.conflicting(labels, seed=3)
    assert len(shape) > 2 and (labels[shape] != labels[other]).all()
    for seed in range(5):  # of two images every other order pairs each with itself
        assert set(map(tuple, zip(*texture.conflicting(np.array([0, 1]), seed), strict=True))) == {(0, 1), (1, 0)}
    with pytest.raises(UserError, match="all images are of one class"):
        texture.conflicting(np.zeros(4, int), seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny.finished(tmp_path_factory, "cnn")


def test_models_are_compared_by_shape_and_texture(tmp_path, finished, capsys):
    twin = tmp_path / "twin"
    twin.symlink_to(finished)
    assert texture.main([str(finished), str(twin), "--out", str(tmp_path / "out"), "--images", "30"]) == 0
    found = json.loads((tmp_path / "out" / "texture.json").read_text())
    ours, theirs = found["models"].values()
    taken = ours["taken_for_shape"], ours["taken_for_texture"]
    assert ours == theirs and ours["accuracy"] == 1 and ours["shape_bias"] == pytest.approx(taken[0] / sum(taken))
    [pair] = found["error_consistency"]
    assert pair["models"] == ["run", "twin"] and pair["conflict"] == pytest.approx(1)
    assert pair["unchanged"] is None  # no mistakes to agree on
    assert size(tmp_path / "out" / "texture.png")[0] > 100
    assert "shape bias" in " ".join(capsys.readouterr().out.split())
    validation = ["--config.evaluate.split=validation", "--out", str(tmp_path / "validation")]
    assert texture.main([str(finished), *validation]) == 0
    assert json.loads((tmp_path / "validation" / "texture.json").read_text())["images"] == 20


@pytest.mark.slow
def test_texture_explains_mistakes(tmp_path, finished):
    with pytest.raises(UserError, match="a run is given twice"):
        texture.main([str(finished), str(finished), "--out", str(tmp_path)])
    for flags, expected in {
        ("--images", "-1"): "--images -1 is negative",
        ("--seed", "-1"): "--seed -1 is negative",
        ("--config.optim.lr=7",): "optim.lr changes nothing in this report",
        ("--config.corruption.kind=noise", "--config.corruption.severity=5"): "corruption.kind changes nothing",
        ("--config.evaluate.split=tset",): "split 'tset' of",
    }.items():
        with pytest.raises(UserError, match=expected):
            texture.main([str(finished), *flags, "--out", str(tmp_path)])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --out"):
        texture.main([str(finished), "--images", "9", "--out", str(tmp_path / "file")])
