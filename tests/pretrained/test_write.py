"""Writing a ViT for `transformers`: read back the same, loaded there without a word, with the same outputs."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open

from tests import quick
from tests.models.random_params import random_params
from tests.pretrained import parity
from vit_jax import models
from vit_jax.command import UserError
from vit_jax.data import resizing
from vit_jax.pretrained import open_weights, write
from vit_jax.pretrained.huggingface import processor
from vit_jax.pretrained.layout import Preprocessing
from vit_jax.pretrained.write import check, save_huggingface

SHAPE = (21, 35, 3)
IMAGES = parity.random_images(3, *SHAPE)
NAMES = ("ant", "bee", "cat", "dog", "elk")
TINY = {"patch_size": (7,), "width": 22, "depth": 3, "mlp_dim": 13, "num_heads": 2, "num_classes": 5}
VIEW = Preprocessing((21, 35), "stretch", 1.0, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]


def settings(**fields: Any) -> dict[str, Any]:
    return models.settings("vit", **{**TINY, **fields})


def random_variables(model: dict[str, Any], shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    return {"params": random_params(models.create(model), np.zeros((1, *shape), np.float32), train=False)}


def save(folder, model: dict[str, Any], names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Writes random variables, and returns them."""
    variables = random_variables(model)
    save_huggingface(folder, model, variables, names, VIEW, SHAPE[:2])
    return variables


@pytest.mark.parametrize(
    "fields", [{}, {"qkv_bias": False, "activation": "gelu_tanh", "norm_epsilon": 1e-12, "num_classes": 0}]
)
def test_what_was_written_reads_back_to_the_last_bit(tmp_path, fields):
    model = settings(**fields)
    names = NAMES if model["num_classes"] else ()
    variables = save(tmp_path, model, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    weights = open_weights(str(tmp_path))
    assert (weights.model, weights.grid, weights.preprocessing, weights.class_names) == (model, (3, 5), VIEW, names)
    found, written = weights.read(), flatten_dict(variables, sep="/")
    assert found.keys() == written.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert {array.dtype for array in parity.loaded(tmp_path)[0].values()} == {np.dtype("float32")}
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_fixed_positions_become_a_table(tmp_path):
    """As the encoder of a masked autoencoder has them: what is read back computes the same."""
    model = settings(width=24, pos_embed="sincos2d", num_classes=0)
    variables = save(tmp_path, model, ())
    weights = open_weights(str(tmp_path))
    assert weights.model["pos_embed"] == "learned" and weights.grid == (3, 5)
    ours = quick.jit(lambda v, x: models.create(model).apply(v, x, train=False))(variables, IMAGES)
    parity.assert_close(parity.run_ours(weights.model, weights.read(), IMAGES), np.asarray(ours))


def test_a_second_time_replaces_and_a_failure_leaves_what_was_there(tmp_path):
    save(tmp_path, settings())
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    model = settings(pooling="gap")
    with pytest.raises(UserError, match="pooling"):
        save_huggingface(tmp_path, model, random_variables(model), NAMES, VIEW, SHAPE[:2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(tmp_path, settings(width=26))
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 26


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "gap"}, "its ViT has no model.pooling='gap', only 'token'; export in another format"),
        ({"registers": 4}, "no model.registers=4, only 0"),
        ({"class_token": False, "pooling": "gap"}, "no model.class_token=False"),
        ({"pos_embed": "learned_2d"}, "no model.pos_embed='learned_2d', only 'learned' or 'sincos2d'"),
        ({"activation": "swiglu"}, "no model.activation='swiglu', only 'gelu' or 'gelu_tanh'"),
        ({"layer_scale": 1e-5}, "no model.layer_scale=1e-05, only 0.0"),
        ({"qk_norm": True}, "no model.qk_norm=True"),
        ({"head_dim": 7}, "no model.head_dim=7, only width / num_heads = 11"),
        ({"pre_logits": 17}, "no model.pre_logits=17"),
        ({"head_widths": (17,)}, r"no model.head_widths=\(17,\)"),
        ({"distillation_token": True}, "no model.distillation_token=True"),
        ({"num_classes": 7}, "5 class names for a model of 7 classes"),
    ],
)
def test_what_transformers_lacks_is_named(fields, message):
    check(settings(), NAMES)
    with pytest.raises(UserError, match=message):
        check(settings(**fields), NAMES)


@pytest.mark.parametrize("independent", [False, True])
def test_classes_that_are_judged_by_themselves_are_written_and_read_so(tmp_path, independent):
    model = settings()
    save_huggingface(tmp_path, model, random_variables(model), NAMES, VIEW, SHAPE[:2], independent=independent)
    kind = json.loads((tmp_path / "config.json").read_text()).get("problem_type")
    assert kind == ("multi_label_classification" if independent else None)
    assert open_weights(str(tmp_path)).loss == ("sigmoid" if independent else "softmax")


def test_other_families_cannot_be_written():
    with pytest.raises(UserError, match="only a 'vit' can be written, not 'resnet/18'"):
        check(models.settings("resnet/18", num_classes=5), NAMES)


@pytest.mark.parametrize(
    ("size", "resize", "fraction"),
    [((21, 35), "stretch", 1.0), ((21, 35), "stretch", 0.7), ((21, 21), "crop", 1.0), ((224, 224), "crop", 224 / 256)],
)
def test_preprocessing_reads_back(tmp_path, size, resize, fraction):
    given = Preprocessing(size, resize, fraction, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = settings(patch_size=(7,))
    save_huggingface(tmp_path, model, random_variables(model, (*size, 3)), NAMES, given, size)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if (resize, fraction) == ("crop", 1.0):
        given = dataclasses.replace(given, crop_fraction=processor.AS_A_WHOLE)
    assert processor.read(written, VIEW) == given


def test_other_pixels_of_photos_are_told(caplog):
    view = Preprocessing((21, 21), "crop", 1.0, "bilinear", (0.5,), (0.5,))
    write.processor(view, 3)
    assert "evaluated with data.crop_fraction=0.999999 it sees the very pixels" in caplog.text
    caplog.clear()
    for other in ({"crop_fraction": 0.9}, {"interpolation": "bicubic"}, {"resize": "stretch"}):
        write.processor(dataclasses.replace(view, **other), 3)
    assert not caplog.text


@pytest.mark.parametrize("fraction", [0.9, 0.875, 0.95, 1 / 3])
def test_others_scale_images_as_we_do(fraction):
    """Whatever the fraction: the size that is written is the one that our evaluation scales to, and back again."""
    for side in range(16, 400):
        given = Preprocessing((side, side), "crop", fraction, "bilinear", (0.5,), (0.5,))
        edge = write.processor(given, 3)["size"]["shortest_edge"]
        assert (edge, edge) == resizing.covering((side, side), fraction) == resizing.covering((side, side), side / edge)


def test_a_crop_that_is_no_square_is_refused_and_grey_statistics_are_repeated(tmp_path):
    model = settings()
    crop = Preprocessing((21, 35), "crop", 1.0, "bilinear", (0.5,), (0.5,))
    with pytest.raises(UserError, match="its processors crop squares only, not 21x35"):
        save_huggingface(tmp_path / "new", model, random_variables(model), NAMES, crop, SHAPE[:2])
    assert not (tmp_path / "new").exists()
    square = Preprocessing((21, 21), "crop", 1.0, "bilinear", (0.3,), (0.4,))
    variables = random_variables(model, (21, 21, 3))
    save_huggingface(tmp_path, model, variables, NAMES, square, (21, 21))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"] == [0.3] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "activation": "gelu_tanh", "num_classes": 0},  # self-distillation leaves such a one
        {"width": 24, "pos_embed": "sincos2d", "num_classes": 0},  # as a masked autoencoder's encoder
    ],
)
def test_transformers_loads_it_and_computes_the_same(tmp_path, fields):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = settings(norm_epsilon=1e-3, **fields)
    variables = save(tmp_path, model, NAMES if model["num_classes"] else ())
    theirs, report = transformers.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.id2label == dict(enumerate(NAMES if model["num_classes"] else ()))
    ours = quick.jit(lambda v, x: models.create(model).apply(v, x, train=False))(variables, IMAGES)
    outputs = parity.run_theirs(theirs.eval(), IMAGES)
    parity.assert_close(np.asarray(ours), outputs.logits)  # without classes: the class token


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "resize", "fraction"), [("ViT", "stretch", 1.0), ("DeiT", "stretch", 0.75), ("Bit", "crop", 0.75)]
)
def test_transformers_preprocesses_so(tmp_path, kind, resize, fraction):
    transformers = pytest.importorskip("transformers")
    Image = pytest.importorskip("PIL.Image")
    given = Preprocessing((21, 21), resize, fraction, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model = settings()
    save_huggingface(tmp_path, model, random_variables(model, (21, 21, 3)), NAMES, given, (21, 21))
    pixels = np.random.default_rng(31).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    loaded = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(tmp_path)
    found = loaded(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    height, width = {"ViT": (21, 21), "DeiT": (28, 28), "Bit": (33, 28)}[kind]  # 28 x 60 / 50 = 33.6
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 21) // 2, (width - 21) // 2
    cropped = resized[top : top + 21, left : left + 21] / 255
    np.testing.assert_allclose(found, (cropped - given.mean) / given.std, atol=1e-5)
