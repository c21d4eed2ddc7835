"""Masked autoencoding: who sees what, the loss by hand, a run that is resumed, and one that starts from its encoder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests import quick, tiny
from vit_jax import augment, config, evaluate, inference, models, step, tasks, train, trees
from vit_jax.command import UserError
from vit_jax.tasks import masked_autoencoder
from vit_jax.workdir import Workdir

SHAPE, PATCH, L = (12, 8, 3), (4, 2), 3 * 4
ENCODER = {"patch_size": PATCH, "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 2, "pos_embed": "sincos2d"}
SETTINGS = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(5, *SHAPE)), jnp.float32)
NOISE = jnp.asarray(RNG.random((5, L)), jnp.float32)


def task_of(**fields) -> masked_autoencoder.MaskedAutoencoder:
    view = augment.Settings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model = models.create(models.settings("vit", **ENCODER))
    parts = tasks.Parts(model, SHAPE, ("a", "b"), augment=view, train_augment=view)
    return tasks.create(tasks.settings("masked_autoencoder", **SETTINGS | fields), parts)


TASK = task_of()


@pytest.fixture(scope="module")
def variables():
    return quick.jit(lambda: step.init_variables(TASK.module, 0, SHAPE))()


@pytest.fixture(scope="module")
def predict():
    return quick.jit(lambda variables, images, noise: TASK.module.apply(variables, images, noise, train=False))


def test_a_quarter_of_the_patches_is_seen_those_with_the_least_noise(variables, predict):
    _, mask = predict(variables, IMAGES, NOISE)
    assert mask.shape == (5, L) and (mask.sum(axis=1) == 9).all()
    seen = np.argsort(NOISE, axis=1)[:, :3]
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(mask), seen, axis=1), 0)


def test_hidden_pixels_reach_nothing_and_seen_ones_all(variables, predict):
    predicted, mask = predict(variables, IMAGES, NOISE)
    pixels = masked_autoencoder.patches(IMAGES, PATCH)
    for changed, same in ((mask, True), (1 - mask, False)):
        other = masked_autoencoder.whole(pixels + changed[..., None], PATCH, SHAPE)
        found, _ = predict(variables, other, NOISE)
        assert bool((np.abs(found - predicted).max(axis=-1) < 1e-6).all()) == same


def test_each_prediction_stands_at_the_place_of_its_patch(variables, predict):
    """Images whose patches change places, as their noise does, are painted alike but for the positions."""
    order = RNG.permutation(L)
    pixels = masked_autoencoder.patches(IMAGES, PATCH)
    _, mask = predict(variables, masked_autoencoder.whole(pixels[:, order], PATCH, SHAPE), NOISE[:, order])
    np.testing.assert_array_equal(mask, predict(variables, IMAGES, NOISE)[1][:, order])


def test_patches_are_taken_apart_row_by_row_and_put_together_again():
    pixels = masked_autoencoder.patches(IMAGES, PATCH)
    assert pixels.shape == (5, L, 4 * 2 * 3)
    np.testing.assert_array_equal(pixels[2, 5], IMAGES[2, 4:8, 2:4].reshape(-1))
    np.testing.assert_array_equal(masked_autoencoder.whole(pixels, PATCH, SHAPE), IMAGES)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_by_hand(variables, predict, normalize):
    predicted, mask = (np.asarray(x, np.float64) for x in predict(variables, IMAGES, NOISE))
    target = np.asarray(masked_autoencoder.patches(IMAGES, PATCH), np.float64)
    if normalize:
        deviation = np.sqrt(target.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        target = (target - target.mean(axis=-1, keepdims=True)) / deviation
    expected = [((p - t) ** 2).mean(axis=-1)[m > 0].mean() for p, t, m in zip(predicted, target, mask, strict=True)]
    task = task_of(normalize_patches=normalize)
    found = task.per_example(jnp.asarray(predicted, jnp.float32), task.target(IMAGES)[0], jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_images_mask_in_evaluation_is_a_function_of_its_number(variables):
    images = jnp.asarray(RNG.integers(0, 256, (3, *SHAPE), np.uint8))
    outputs = quick.jit(lambda batch: TASK.outputs(variables, batch, {}))
    first = outputs({"image": images, "number": jnp.array([7, 0, 3])})
    other = outputs({"image": images[::-1], "number": jnp.array([3, 0, 7])})
    for name, rows in first.items():
        np.testing.assert_allclose(rows, other[name][::-1], rtol=1e-5)
    np.testing.assert_array_equal(first["picture"], images)
    hidden = (first["masked"] != first["picture"]).any(axis=-1)
    np.testing.assert_array_equal(first["painted"][~hidden], first["picture"][~hidden])


def test_an_evaluation_needs_the_pictures_of_the_first_images_alone():
    evaluator, image = TASK.evaluator(20), np.zeros((1, *SHAPE), np.uint8)
    for i in range(20):
        pictures = {name: image for name, first in TASK.shown.items() if i < first}
        evaluator.add({"index": np.array([i]), "loss": np.ones(1)} | pictures)
    assert evaluator.scalars() == {"loss": 1.0} and TASK.shown
    assert evaluator.picture().width == masked_autoencoder.SHOWN * (64 + 4) + 4  # each is 64 x 96


def test_the_encoder_keeps_its_names_and_its_work_is_counted():
    encoder = jax.eval_shape(lambda: step.init_variables(TASK.parts.model, 0, SHAPE))["params"]
    both = jax.eval_shape(lambda: step.init_variables(TASK.module, 0, SHAPE))["params"]
    more = set(trees.names(both)) - set(trees.names(encoder))
    assert set(trees.names(encoder)) <= set(trees.names(both))
    assert {name.split("/")[0] for name in more} == {"decoder", "decoder_embedding", "decoder_pixels", "mask_token"}
    modules = TASK.module.clone(encoder=TASK.parts.model.clone(scan=True)), TASK.module
    scanned, looped = quick.jit(lambda: [step.init_variables(module, 0, SHAPE) for module in modules])()
    assert jax.tree.all(jax.tree.map(np.array_equal, trees.unstack_layers(scanned)["params"], looped["params"]))


def get_config(arg: str = "") -> ConfigDict:
    c = tiny.get_config("vit")
    fields = {"patch_size": (2,), "depth": 1, "class_token": False, "pooling": "gap"}
    c.model = models.settings("vit", **ENCODER | fields)
    c.task = tasks.settings("masked_autoencoder", **SETTINGS)
    c.augment.flip = 0.5
    c.train.accumulate = 1
    c.train.steps = 20
    return c


def start(workdir: Path, *overrides: str) -> train.Result:
    return tiny.train_quietly(get_config(), workdir, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("mae") / "run"
    assert start(workdir).exit_code == 0
    return workdir


def test_a_run_learns_to_paint_and_leaves_a_picture(finished):
    lines = [line["train/loss"] for line in tiny.metric_lines(finished) if "train/loss" in line]
    result = tiny.result(finished)
    assert lines[-1] < 0.9 * lines[0] and result["monitor"] == "loss" and 0 < result["test/loss"] < 1.2
    with Image.open(finished / masked_autoencoder.PICTURE) as picture:
        assert picture.height == 3 * (96 + 18 + 4) + 4
    assert result["parameters"] > trees.count(inference.load(finished).variables["params"])


@pytest.mark.slow
def test_a_run_resumes_exactly(finished, tmp_path):
    tiny.assert_resumes(start, tmp_path, finished)


def test_a_finished_run_is_evaluated_whole(finished):
    found = evaluate.evaluate_run(finished)
    assert found["test/loss"] == pytest.approx(tiny.result(finished)["test/loss"], rel=1e-5) and found["images"] == 360


@pytest.mark.slow
def test_the_encoder_starts_a_fine_tuning_run_and_gives_features(finished, tmp_path):
    predictor = inference.load(finished)
    assert predictor.class_names == () and predictor.features(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 8)
    with pytest.raises(UserError, match="have no head and predict nothing"):
        predictor.predict(np.zeros((2, 8, 8, 1), np.uint8))
    tuned = config.from_dict(tiny.get_config("vit"), [f"init.weights={finished}", "train.steps=1", "optim.lr=1e-30"])
    fields = {**config.to_dict(tuned), "model": {**dict(Workdir(finished).config().model), "num_classes": 0}}
    assert tiny.train_quietly(fields, tmp_path / "tuned").exit_code == 0
    ours, theirs = (tiny.arrays(folder) for folder in (tmp_path / "tuned", finished))
    names = [
        name for name in ours if "['params']['Transformer']" in name and "opt_state" not in name and "ema" not in name
    ]
    assert len(names) == 18  # of one block, and the last norm
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name.replace("['params']", "['ema']['params']", 1)], atol=1e-6)
