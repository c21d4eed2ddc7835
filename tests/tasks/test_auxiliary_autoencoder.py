"""Classification with an auxiliary autoencoder: its losses are those of both tasks; commands see a classifier."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import quick, tiny
from vit_jax import augment, evaluate, inference, models, step, tasks, train, trees

SHAPE = (12, 8, 3)
ENCODER = {"patch_size": (4, 2), "width": 8, "depth": 1, "mlp_dim": 12, "num_heads": 2, "pos_embed": "sincos2d"}
DECODER = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3, "normalize_patches": True}
RNG = np.random.default_rng(0)
N = 8
BATCH = {"image": jnp.asarray(RNG.integers(0, 256, (N, *SHAPE), np.uint8)), "label": jnp.asarray(RNG.integers(0, 3, N))}
VIEW = augment.Settings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), flip=0.5)


def task_of(name="auxiliary_autoencoder", **fields) -> tasks.Task:
    model = models.create(models.settings("vit", **ENCODER, num_classes=3, zero_head=False))
    parts = tasks.Parts(model, SHAPE, ("a", "b", "c"), augment=VIEW, train_augment=VIEW)
    return tasks.create(tasks.settings(name, **fields), parts)


TASK = task_of(**DECODER, weight=0.3)


@pytest.fixture(scope="module")
def params():
    return quick.jit(lambda: step.init_variables(TASK.module, 0, SHAPE))()["params"]


def test_the_loss_is_that_of_both_tasks_on_the_same_images(params):
    rngs = step.rngs_for(3, 4, jnp.arange(N))

    def losses(params):
        told = task_of("classification", label_smoothing=0.1).loss(params, {}, {}, BATCH, rngs, {})[0]
        painted = task_of("masked_autoencoder", **DECODER).loss(params, {}, {}, BATCH, rngs, {})[0]
        return told, painted, TASK.loss(params, {}, {}, BATCH, rngs, {})

    told, painted, (found, aux) = quick.jit(losses)(params)
    assert float(found) == pytest.approx(0.3 * float(told) + 0.7 * float(painted), rel=1e-5)
    assert float(aux.metrics["classification_loss"]) == pytest.approx(float(told), rel=1e-5)
    assert float(aux.metrics["painting_loss"]) == pytest.approx(float(painted), rel=1e-5)


def test_views_are_averaged_as_in_any_classification():
    seen = type(TASK)(TASK.settings, dataclasses.replace(TASK.parts, tta="flip"))
    assert seen.parts.tta == "flip"


def test_the_defaults_are_the_authors():
    settings = tasks.settings("auxiliary_autoencoder")
    assert settings["weight"] == 0.1 and settings["mask_ratio"] == 0.75 and not settings["normalize_patches"]
    assert (settings["decoder_width"], settings["decoder_depth"], settings["decoder_heads"]) == (128, 2, 16)


def test_a_run_that_classifies_no_better_than_by_guessing_is_told():
    scalars = {"loss": 0.2, "painting_loss": 0.1, "accuracy": 0.34}
    assert "what guessing gives" in TASK.warnings({**scalars, "classification_loss": np.log(3)})[0]
    assert TASK.warnings({**scalars, "classification_loss": 0.5}) == []


def get_config(arg: str = "") -> ConfigDict:
    c = tiny.get_config("vit")
    c.model = models.settings("vit", **ENCODER | {"patch_size": (2,), "class_token": False, "pooling": "gap"})
    c.task = tasks.settings("auxiliary_autoencoder", **DECODER, weight=0.5)
    c.train.steps = 6
    c.train.accumulate = 1
    c.log.report = False
    c.checkpoint.every_steps = 4
    return c


def start(workdir: Path, *overrides: str) -> train.Result:
    return tiny.train_quietly(get_config(), workdir, *overrides)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_commands_see_a_classifier(tmp_path):
    finished, resumed = tmp_path / "finished", tmp_path / "resumed"
    assert start(finished).exit_code == 0
    tiny.assert_resumes(start, resumed, finished, at=3)
    result = tiny.result(finished)
    assert result["monitor"] == "accuracy"
    assert evaluate.evaluate_run(finished)["test/accuracy"] == pytest.approx(result["test/accuracy"], abs=1e-6)
    predictor = inference.load(finished)
    assert result["parameters"] > trees.count(predictor.variables["params"])
    assert predictor.predict(np.zeros((2, 8, 8, 1), np.uint8)).probabilities.shape == (2, 10)
