"""Runs that learn from a teacher: another run, seen through its own preprocessing."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.models.random_params import random_params
from vit_jax import config, inference, models, pretrained
from vit_jax.command import UserError
from vit_jax.pretrained.write import save_huggingface
from vit_jax.train.teacher import open_teacher
from vit_jax.workdir import Workdir


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.finished(tmp_path_factory, "cnn")


def learn(teacher, workdir, *overrides):
    return tiny.start(workdir, "cnn", f"distill.teacher={teacher}", *overrides)


def student_of(folder, mean):
    return config.from_dict(config.to_dict(Workdir(folder).config()), [f"augment.mean={mean}", "augment.std=(0.3,)"])


def test_a_teacher_sees_the_images_as_it_learned_to(teacher):
    """Whatever normalisation the student has, the teacher's logits are those that it gives by itself."""
    trained = inference.load(teacher)
    images = np.random.default_rng(0).integers(0, 256, (5, 5, 7, 3), np.uint8)
    for mean in ("(0.1,)", "(0.4,0.5,0.6)"):
        student = student_of(teacher, mean)
        found = open_teacher(str(teacher), student, trained.class_names)
        seen = (images / 255 - np.asarray(student.augment.mean)) / np.asarray(student.augment.std)
        logits = found.forward(found.variables, jnp.asarray(seen, jnp.float32))
        np.testing.assert_allclose(logits, trained.logits(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_labels_a_student_learns_what_its_teacher_knows_and_resumes_exactly(teacher, tmp_path):
    soft = ("distill.weight=1.0", "distill.kind=soft", "distill.temperature=2.0")
    code, _ = learn(teacher, tmp_path / "whole", *soft)
    lines = [line for line in tiny.metric_lines(tmp_path / "whole") if "train/loss" in line]
    assert code == 0 and lines[-1]["train/loss"] < 0.2 * lines[0]["train/loss"]  # what is left between the two models
    assert lines[-1]["train/accuracy"] > 0.8  # of labels that it was never shown
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(11, tiny.signal.SIGTERM, patch)
        assert learn(teacher, tmp_path / "stopped", *soft)[0] == 143
    assert learn(teacher, tmp_path / "stopped", *soft)[0] == 0
    tiny.assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_distillation_token_needs_and_takes_a_teacher(tmp_path, tmp_path_factory):
    vit = tiny.finished(tmp_path_factory, "vit", "data.cache=device")
    token = ("model.distillation_token=true", "train.steps=4")
    with pytest.raises(UserError, match=r"set distill\.teacher"):
        tiny.start(tmp_path / "alone", "vit", *token)
    for weight in (0, 1):
        with pytest.raises(
            UserError, match=f"weight={weight} would leave one of the two heads of model 'vit' untrained"
        ):
            tiny.start(tmp_path / "alone", "vit", *token, f"distill.teacher={vit}", f"distill.weight={weight}")
    code, _ = tiny.start(tmp_path / "taught", "vit", *token, f"distill.teacher={vit}")
    head = [value for name, value in tiny.arrays(tmp_path / "taught").items() if "['params']['head_dist']" in name]
    assert code == 0 and all(np.abs(value).max() > 0 for value in head)


def test_a_teacher_of_other_classes_is_refused(teacher, tmp_path, caplog):
    with pytest.raises(UserError, match=r"knows the classes class 0, .* \(3\), the data set has .* \(4\)"):
        learn(teacher, tmp_path, "data.name=synthetic/5x7x3/4/200")
    student = student_of(teacher, "(0.5,)")
    with pytest.raises(UserError, match="in the same order"):
        open_teacher(str(teacher), student, ("class 1", "class 0", "class 2"))
    with caplog.at_level(logging.WARNING):
        open_teacher(str(teacher), student, ("n1", "n2", "n3"))
    assert "taken to be the same" in caplog.text
    assert json.loads(Workdir(teacher).labels_file.read_text()) == ["class 0", "class 1", "class 2"]


@pytest.mark.slow
def test_a_teacher_of_published_weights(teacher, tmp_path):
    """A folder written for `transformers`: its logits, through the student's normalisation, are the model's own."""
    size, names = (10, 15), ("class 0", "class 1", "class 2")
    model = models.settings("vit", patch_size=(5,), width=6, depth=1, mlp_dim=7, num_heads=2, num_classes=3)
    variables = {"params": random_params(models.create(model), np.zeros((1, *size, 3), np.float32), train=False)}
    view = pretrained.Preprocessing(size, "stretch", 1.0, "bicubic", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    save_huggingface(tmp_path / "hf", model, variables, names, view, size)

    student, loaded = student_of(teacher, "(0.4,0.5,0.6)"), inference.load(tmp_path / "hf")
    found = open_teacher(str(tmp_path / "hf"), student, names)
    images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
    seen = (images / 255 - np.asarray(student.augment.mean)) / np.asarray(student.augment.std)
    logits = found.forward(found.variables, jnp.asarray(seen, jnp.float32))
    np.testing.assert_allclose(logits, loaded.logits(images), rtol=1e-4, atol=1e-4)
    assert np.ptp(logits, axis=0).max() > 0.1

    one_step = ("train.steps=1", "log.every_steps=1", "distill.weight=1.0")
    losses = []
    for workdir, address in {tmp_path / "by_weights": tmp_path / "hf", tmp_path / "by_run": teacher}.items():
        assert learn(address, workdir, *one_step)[0] == 0
        losses += [line["train/loss"] for line in tiny.metric_lines(workdir) if "train/loss" in line]
    assert len(losses) == 2 and losses[0] != losses[1]
