"""Pictures of what a model is shown, and what it goes by."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import augment, config, optim, run, step
from vit_jax.command import UserError
from vit_jax.data import open_data
from vit_jax.report import augmentations, texture

CONFIG = str(REPOSITORY / "configs" / "digits.py")


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_a_sheet_has_a_row_unchanged_and_rows_augmented(tmp_path):
    out = tmp_path / "sheet.png"
    shape = ["--images", "3", "--rows", "2", "--height", "40"]
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape]) == 0
    wide, tall = size(out)
    assert augmentations.main(["--config", CONFIG, "--out", str(out), *shape[:3], "4", *shape[4:]]) == 0
    assert size(out)[0] == wide and size(out)[1] > tall


def test_without_augmentation_all_rows_are_the_first(tmp_path):
    out = tmp_path / "sheet.png"
    off = [f"--config.augment.{field}" for field in ("crop_padding=0", "flip=0", "rotation=0", "zoom=()", "shear=0")]
    off += ["--config.augment.translation=()", "--config.augment.erasing=0", "--config.data.name=synthetic/8x8x3/3/50"]
    augmentations.main(["--config", CONFIG, "--out", str(out), "--rows", "1", "--height", "32", *off])
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    half = len(pixels) // 2
    first, second = (
        np.unique(part.reshape(-1, 3), axis=0, return_counts=True) for part in (pixels[:half], pixels[half:])
    )
    coloured = [{tuple(c): n for c, n in zip(*part, strict=True) if len(set(c)) > 1} for part in (first, second)]
    assert coloured[0] == coloured[1] and len(coloured[0]) > 10


def test_a_row_is_what_a_training_step_sees_of_its_images(monkeypatch):
    mixed = [f"augment.{field}" for field in ("flip=0.5", "crop_padding=2", "erasing=0.5", "mixup=0.8", "cutmix=1")]
    given = config.load(tiny.spec("cnn"), [*mixed, "augment.mix_probability=0.7", "seed=5"])
    rows, seen = {}, []
    monkeypatch.setattr(augment, "contact_sheet", lambda shown, height: rows.update(shown) or Image.new("1", (1, 1)))
    augmentations.sheet(given, images=6, rows=2, height=1)

    class Watching(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            jax.debug.callback(seen.append, images)
            return nn.Dense(3)(images.mean(axis=(1, 2)))

    data = open_data(given.data)
    view = run.prepare(given, data, data.split("train")).augment
    images, labels = data.split("train").read(np.arange(6))
    model, tx = Watching(), optim.create(given.optim)
    train_step = step.make_train_step(
        model, tx, lambda at, total: jnp.float32(0), view, step.Objective(3), seed=5, total_steps=9
    )
    state = step.init_state(model, tx, 5, data.view.shape, ema=False)
    del seen[:]
    for _ in range(2):
        state, _ = train_step(state, {"image": jnp.asarray(images), "label": jnp.asarray(labels)}, {})
        jax.effects_barrier()
    assert len(seen) == 2 and list(rows)[0] == "unchanged" and (rows.pop("unchanged") == images).all()
    for row, expected in zip(rows.values(), seen, strict=True):
        np.testing.assert_array_equal(row, augment.displayed(view, np.asarray(expected)))
    assert [caption.split(":")[0] for caption in rows] == ["step 0", "step 1"]


def test_a_caption_tells_the_shares_of_mixed_images():
    assert augmentations.caption(0, 1.0) == "step 0"
    assert augmentations.caption(2, 0.63) == "step 2: 63% of each image, 37% of its counterpart"


@pytest.mark.parametrize(("flags", "expected"), [(["--rows", "0"], "must be positive"), ([], "cannot write")])
def test_mistakes(tmp_path, flags, expected):
    with pytest.raises(UserError, match=expected):
        augmentations.main(["--config", CONFIG, "--out", str(tmp_path / "nowhere" / "sheet.png"), *flags])


def test_pairs_in_conflict_are_of_two_classes():
    labels = np.array([0, 0, 1, 2, 1, 0, 2])
    shape, other = texture.conflicting(labels, seed=3)
    assert len(shape) > 2 and (labels[shape] != labels[other]).all()
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


def test_texture_explains_mistakes(tmp_path, finished):
    with pytest.raises(UserError, match="a run is given twice"):
        texture.main([str(finished), str(finished), "--out", str(tmp_path)])
    with pytest.raises(UserError, match="--images -1 is negative"):
        texture.main([str(finished), "--images", "-1", "--out", str(tmp_path)])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --out"):
        texture.main([str(finished), "--images", "9", "--out", str(tmp_path / "file")])
