"""One image has one row of logits: in every form that a caller may give it, in evaluation, and after export."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests import quick, tiny
from tests.data.images import photo
from vit_jax import config, models, sharding, step
from vit_jax.augment import input_shape
from vit_jax.data import open_data
from vit_jax.explain.methods import read_pixels
from vit_jax.export import export, find_trained, open_exported
from vit_jax.inference import Predictor
from vit_jax.report import texture
from vit_jax.train.evaluation import evaluate_split
from vit_jax.train.experiment import make_task

FAST = "stretch, then resized on the device"  # the view that the others are cases of
SIZE, STORED = (12, 10), ((29, 31), (12, 10), (17, 13))  # one image has the model's size by chance
VIEWS = {
    "crop": ("data.image_size=12,10", "data.crop_fraction=0.7"),
    "bicubic": ("data.image_size=12,10", "data.crop_fraction=0.8", "data.interpolation=bicubic"),
    "stretch, then resized on the device": (
        "data.image_size=12,10",
        "data.resize=stretch",
        "data.crop_fraction=0.6",
        "augment.resize=14,8",
    ),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes; lossless, so that a file and the array in it are one image."""
    root = tmp_path_factory.mktemp("equal logits") / "photos"
    for i in range(16):
        file = root / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(photo(*STORED[i % 3], scale=3), i, axis=1)).save(file)
    return root


@pytest.fixture(
    scope="module", params=[name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in VIEWS]
)
def predictor(request, photos) -> Predictor:
    """Untrained; its data is opened as training opens it."""
    given = config.load(tiny.spec("cnn"), (f"data.name={photos}", *VIEWS[request.param]))
    data = open_data(given.data)
    used = dataclasses.replace(given.augment, mean=(0.4,) * 3, std=(0.3,) * 3)
    prepared = dataclasses.replace(given.with_model(num_classes=2), augment=used)
    model, shape = models.create(prepared.model), input_shape(used, data.preprocessing.shape)
    variables = quick.jit(lambda: step.init_variables(model, 0, shape))()
    head = {"kernel": np.float32([[0.5, -0.4]]).repeat(17, axis=0), "bias": np.zeros(2, np.float32)}
    variables = {**variables, "params": {**variables["params"], "head": head}}
    return Predictor(prepared, model, variables, data.class_names, data.preprocessing, 0)


def files_of(predictor: Predictor) -> list[str]:
    source = open_data(predictor.config.data).split("test").source
    return [source.describe(i) for i in range(len(source))]


def assert_equal(found: np.ndarray, expected: np.ndarray, form: str = "") -> None:
    assert np.ptp(expected, axis=0).max() > 1e-3  # images differ
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=form)


def test_every_form_has_the_same_logits(predictor):
    files = files_of(predictor)
    stored = [np.asarray(Image.open(file)) for file in files]
    assert len({image.shape for image in stored}) > 1
    seen = np.stack([predictor.preprocessing(Path(file).read_bytes()) for file in files])
    logits = predictor.logits(seen)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    forms = {
        "files": files,
        "Pillow images": [Image.open(file) for file in files],
        "arrays at the model's size": seen,
        "a list of them": list(seen),
        "arrays of other sizes": [
            seen[i] if image.shape[:2] == SIZE else image for i, image in enumerate(stored)
        ],  # what has this size is taken as it is
    }
    for name, form in forms.items():
        assert_equal(predictor.predict(form).probabilities, expected, name)
        assert_equal(predictor.features(form), predictor.features(seen), name)
    streamed = np.concatenate([found.probabilities for found, _ in predictor.predict_files(files, 3)])
    assert_equal(streamed, expected)
    chance = next(image for image in stored if image.shape[:2] == SIZE)  # a photo of this size is one as any other
    taken, cropped = (predictor.predict([form]).probabilities for form in (chance, Image.fromarray(chance)))
    assert np.abs(taken - cropped).max() > 1e-4


@pytest.mark.parametrize("cache", ["device", "host", "none"])
def test_evaluation_has_the_same_logits(predictor, cache):
    settings = predictor.config
    data = open_data(dataclasses.replace(settings.data, cache=cache))
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    task = make_task(settings, predictor.class_names, predictor.preprocessing.shape)
    loader = data.loader(data.split("test"), mesh, on_device=True)
    found = evaluate_split(jax.jit(step.make_eval_step(task)), predictor.variables, loader, 3, task).found
    seen = np.stack([predictor.preprocessing(Path(file).read_bytes()) for file in files_of(predictor)])
    assert_equal(found.logits[np.argsort(found.place)], predictor.logits(seen))


@pytest.mark.parametrize("with_preprocessing", [False, True])
def test_an_exported_model_has_the_same_logits(predictor, tmp_path, with_preprocessing):
    seen = np.stack([predictor.preprocessing(Path(file).read_bytes()) for file in files_of(predictor)])
    trained, file = find_trained(predictor), tmp_path / "model.stablehlo"
    export(trained, "stablehlo", file, seen, with_preprocessing=with_preprocessing)
    exported = open_exported(file)
    again = np.stack([exported.about.view(Path(name).read_bytes()) for name in files_of(predictor)])
    assert_equal(exported(again), predictor.logits(seen))


@pytest.mark.slow
def test_the_texture_report_shows_models_what_evaluation_shows_them(predictor):
    found, _ = texture.compare({"a": predictor}, images=0, seed=0)
    data = open_data(predictor.config.data).split("test").load().arrays
    right = predictor.logits(data["image"]).argmax(axis=1) == data["label"]
    assert found["models"]["a"]["accuracy"] == right.mean()


def test_explanations_enlarge_what_was_seen(predictor):
    seen = np.stack([predictor.preprocessing(Path(file).read_bytes()) for file in files_of(predictor)[:2]])
    larger = read_pixels(predictor, seen, scale=2)
    whole = [np.asarray(Image.fromarray(image).resize((20, 24), Image.Resampling.BILINEAR)) for image in seen]
    np.testing.assert_array_equal(larger, whole)
