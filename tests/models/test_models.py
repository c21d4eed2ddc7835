"""The table of models: names, fields, golden parameter counts, and the published systems' sizes."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.small import SMALL, small
from vit_jax import config, models, trees
from vit_jax.command import UserError
from vit_jax.models import registry
from vit_jax.pretrained import fit, parameter_shapes

CONFIGS = Path(__file__).parents[2] / "configs"


def shapes(model, *image_shape: int):
    """The shapes of a model's variables; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def test_a_looped_model_has_the_scanned_ones_parameters():
    model = models.create(models.settings("vit/Ti16", num_classes=1000))
    looped, scanned = (shapes(m, 224, 224, 3)["params"] for m in (model, model.clone(scan=True)))
    stacked = jax.eval_shape(trees.stack_layers, looped)
    assert trees.names(stacked) == trees.names(scanned)
    assert jax.tree.leaves(stacked) == jax.tree.leaves(scanned)


@pytest.mark.parametrize(
    ("spec", "num_classes", "image_shape", "parameters"),
    [
        ("cifar100.py:vit", 100, (72, 72, 3), 45_923_300),  # system B's report
        ("cifar10.py:vit", 10, (32, 32, 3), 3_195_146),  # system D's report
        ("cifar10.py:cnn", 10, (32, 32, 3), 5_852_234),  # the same
        ("fashion_mnist.py:cnn", 10, (28, 28, 1), 257_162),  # system A prints none: ours
        ("fashion_mnist.py:vit6", 10, (72, 72, 1), 21_662_154),
        ("fashion_mnist.py:vit8", 10, (72, 72, 1), 13_402_378),
        ("visual_transformer.py:report_vit", 10, (72, 72, 3), 21_666_762),  # system E prints none either
        ("visual_transformer.py:report_cnn", 10, (32, 32, 3), 319_178),
        ("cifar100.py", 100, (32, 32, 3), 3_783_269),  # CCT-7/3x1: 3.76 million in its paper, for 10 classes
    ],
)
def test_the_configs_build_the_reports_models(spec, num_classes, image_shape, parameters):
    given = config.load(str(CONFIGS / spec))
    assert (given.augment.resize * 2 or image_shape[:2]) == image_shape[:2]
    model = models.create({**given.model, "num_classes": num_classes})
    model.check(image_shape)
    assert trees.count(shapes(model, *image_shape)["params"]) == parameters


def test_settings_are_the_row_the_defaults_and_what_is_given():
    settings = models.settings("vit/S16", dropout=0.1, depth=3)
    assert list(settings)[0] == "name" and settings["name"] == "vit/S16"
    assert set(settings) == {"name", *models.fields("vit/S16")}
    assert (settings["patch_size"], settings["width"], settings["num_heads"]) == ((16,), 384, 6)
    assert (settings["depth"], settings["dropout"], settings["pooling"]) == (3, 0.1, "token")


class Affine(nn.Module):
    """A model from outside: one layer, nothing declared."""

    width: int
    num_classes: int = 0

    def check(self, image_shape):
        pass

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Conv(self.width, (2, 2), name="stem")(images).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


def test_a_model_from_outside_is_registered_in_one_line(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", dict(models.FAMILIES))
    models.register("affine", Affine, {"small": {"width": 5}})
    models.register("plain", Affine)
    assert models.names("affine*") == ["affine/small"] and models.names("plain*") == ["plain"]
    model = models.create(models.settings("affine/small", num_classes=7))
    assert model == Affine(5, 7) and models.module_class("plain") is Affine
    assert trees.names(shapes(model, 8, 8, 3)["params"]) == ["head/bias", "head/kernel", "stem/bias", "stem/kernel"]
    with pytest.raises(UserError, match=r"'affine/smal' is unknown; did you mean affine/small\?"):
        models.settings("affine/smal")
    with pytest.raises(ValueError, match="family='affine/small' must be a name without '/'"):
        models.register("affine/small", Affine)


def test_weights_of_a_model_that_declares_nothing_are_fitted(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", dict(models.FAMILIES))
    models.register("plain", Affine)
    source, model = (models.settings("plain", width=5, num_classes=k) for k in (7, 3))
    found = {n: np.ones(shape, np.float32) for n, shape in parameter_shapes(source, (8, 8, 3)).items()}
    wanted = parameter_shapes(model, (8, 8, 1))
    arrays, report = fit(found, source=source, grid=(0, 0), model=model, image_shape=(8, 8, 1), shapes=wanted)
    assert {n: array.shape for n, array in arrays.items()} == wanted
    assert {row.name: row.action for row in report.rows} == {
        "params/head/bias": "new",
        "params/head/kernel": "new",
        "params/stem/bias": "loaded",
        "params/stem/kernel": "adapted",
    }


def test_create_keeps_name_and_fields_apart():
    model = models.create(models.settings("vit/S16", num_classes=7))
    assert (model.name, model.width, model.num_classes) == (None, 384, 7)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit/S17", {}, "'vit/S17' is unknown; did you mean vit/S1"),
        ("vit/b16", {}, r"'vit/b16' is unknown; did you mean vit/B16\?"),
        ("vit/g141", {}, "did you mean .*vit/g14"),
        ("perceptron", {}, "'perceptron' is unknown; known: vit/mu16, .*vit/B16, .*cnn/conv6"),
        ("vit/S16", {"dropuot": 0.1}, "'vit/S16' has no field 'dropuot'; did you mean 'dropout'?"),
        ("vit/S16", {"xyzzy": 1}, "has no field 'xyzzy'; known: patch_size, width, .*remat"),
        ("vit/S16", {"parent": 1}, "has no field 'parent'"),
        (
            "vit",
            {"width": 8, "patch_size": (2,)},
            "'vit' needs depth, mlp_dim, num_heads; give them, or choose .*vit/S16",
        ),
    ],
)
def test_a_mistake_names_the_choices(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.settings(name, **fields)


@pytest.mark.parametrize("pos_embed", ["learned", "learned_2d", "relative_bias", "relative"])
def test_a_bfloat16_model_keeps_parameters_and_logits_in_float32(pos_embed):
    model = models.create(
        models.settings(
            "vit/mu16",
            num_classes=7,
            pos_embed=pos_embed,
            registers=2,
            pooling="map",
            activation="swiglu",
            qk_norm=True,
            layer_scale=0.1,
            pre_logits=5,
            head_widths=(3,),
            dtype="bfloat16",
        )
    )
    variables = shapes(model, 32, 48, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert {"cls", "registers"} <= {name.rsplit("/", 1)[-1] for name in trees.names(variables["params"])}
    images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
    apply = partial(model.apply, train=False, mutable="intermediates")
    logits, sown = jax.eval_shape(apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert sown["intermediates"]["Transformer"]["encoderblock_0"]["tokens"][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("family", "fields"), [*((name, {}) for name in SMALL), ("compact", {"pos_embed": "sincos1d"})]
)
def test_each_bfloat16_family_keeps_parameters_statistics_and_logits_in_float32(family, fields):
    model = small(family, dtype="bfloat16", **fields)
    images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
    logits, variables = jax.eval_shape(partial(model.init_with_output, train=False), jax.random.key(0), images)
    kept = [variables["params"], variables.get("batch_stats", {})]
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    seen = jax.eval_shape(partial(model.apply, train=False, method="features"), variables, images)
    assert seen.patches.dtype == jnp.bfloat16
