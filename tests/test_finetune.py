"""Runs that start from weights: those of another run, whole or in part, and what resuming makes of it."""

import json
import signal

import numpy as np
import pytest

from tests import tiny
from vit_jax import inference
from vit_jax.command import UserError
from vit_jax.workdir import Workdir

NO_TRAINING = ("optim.lr=1e-30", "optim.schedule=constant", "train.steps=1", "evaluate.every_steps=0")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.finished(tmp_path_factory, "cnn")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A fine-tuning that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    assert finetune(source, workdir)[0] == 0
    return workdir


def finetune(source, workdir, *overrides):
    return tiny.start(workdir, "cnn", f"init.weights={source}", *overrides)


def test_the_model_before_training_is_that_of_the_weights(source, tmp_path):
    code, text = finetune(source, tmp_path, *NO_TRAINING, "evaluate.before=true")
    result, before = tiny.result(tmp_path), tiny.result(source)
    assert code == 0 and "loaded" in text and "Before training" in text
    for key in ("accuracy", "loss", "f1_macro"):
        assert result[f"before/{key}"] == before[f"test/{key}"]
    ours, theirs = tiny.arrays(tmp_path), tiny.arrays(source)
    for name in (name for name in ours if name.startswith("['params']")):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_images_are_brought_to_the_size_and_normalisation_of_the_weights_and_other_classes_get_a_new_head_of_zeros(
    source, tmp_path
):
    code, text = finetune(source, tmp_path, *NO_TRAINING, "data.name=synthetic/11x13x3/4/200", "evaluate.before=true")
    assert code == 0 and "new" in text
    stored, learned = (json.loads(Workdir(path).preprocessing_file.read_text()) for path in (tmp_path, source))
    assert stored["mean"] == learned["mean"] and stored["std"] == learned["std"]
    assert stored["size"] == [11, 13] and stored["input"] == [5, 7]
    trained = inference.load(tmp_path)
    assert trained.config.augment.resize == (5, 7)
    assert trained.logits(np.zeros((2, 11, 13, 3), np.uint8)).shape == (2, 4)
    assert tiny.result(tmp_path)["before/loss"] == pytest.approx(np.log(4))
    head = [value for name, value in tiny.arrays(tmp_path).items() if name.startswith("['params']['head']")]
    assert len(head) == 2 and all(np.abs(value).max() < 1e-20 for value in head)


def test_an_interrupted_fine_tuning_resumes_without_the_weights(source, whole, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, signal.SIGTERM, patch)
        assert finetune(source, tmp_path / "stopped")[0] == 143
    monkeypatch.setattr(inference, "find_weights", None)
    code, text = finetune(source, tmp_path / "stopped")
    assert code == 0 and "resumed at step 11" in text
    tiny.assert_same_run(tmp_path / "stopped", whole)


@pytest.mark.slow
def test_a_scanned_model_starts_from_a_looped_one_s_weights(tmp_path_factory, tmp_path):
    vit = tiny.finished(tmp_path_factory, "vit", "data.cache=device")
    code, _ = tiny.start(tmp_path, "vit", f"init.weights={vit}", *NO_TRAINING, "model.scan=true")
    assert code == 0
    assert tiny.result(tmp_path)["test/loss"] == pytest.approx(tiny.result(vit)["test/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("init.weights=nowhere.npz",), "nowhere.npz"),
        (("model.dense_widths=(19,)",), r"model\.dense_widths=\(19,\) \(weights: \(17,\)\)"),
        (("init.head=keep", "data.name=synthetic/5x7x3/4/200"), "init.head='keep'"),
        (("init.head=neww",), "choose from auto, keep, new"),
        (("init.weights=", "init.head=keep"), "needs weights"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(source, tmp_path, overrides, expected):
    with pytest.raises(UserError, match=expected):
        finetune(source, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_first_checkpoint_was_cut_off_starts_from_its_weights_again(source, whole, tmp_path):
    """Orbax leaves an unfinished folder, which is no checkpoint."""
    (tmp_path / "cut" / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir(parents=True)
    code, text = finetune(source, tmp_path / "cut")
    assert code == 0 and "loaded" in text
    tiny.assert_same_run(tmp_path / "cut", whole)
