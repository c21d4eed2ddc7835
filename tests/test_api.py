"""`import vit_jax`: instant, complete, and helpful about what is not there."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests import tiny
from vit_jax import run, trees
from vit_jax.command import UserError

LIGHT = """
import sys, vit_jax
print(dir(vit_jax), sorted({"jax", "flax", "numpy", "PIL"} & set(sys.modules)))
vit_jax.list_models()
print("jax" in sys.modules)
"""


def test_importing_imports_no_jax():
    found = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["['create', 'list_models', 'load'] []", "True"]


@pytest.mark.parametrize("size", [16, 48])
def test_a_model_fits_any_image_size(size):
    model = vit_jax.create("vit/mu16", num_classes=7)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, size, size, 3)), train=False))
    assert variables["params"]["head"]["kernel"].shape == (32, 7)
    assert variables["params"]["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, (size // 16) ** 2 + 1, 32)


def test_a_published_model_has_its_published_size():
    model = vit_jax.create("vit/B16", num_classes=10)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    assert trees.count(variables["params"]) == 86_567_656 - 990 * 769  # timm's vit_base_patch16_224 with 10 classes


def test_fields_change_the_model_and_no_class_means_no_head():
    model = vit_jax.create("vit", patch_size=(5,), width=14, depth=3, mlp_width=11, heads=7, pooling="gap")
    features, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 10, 15, 3)), train=False)
    )
    assert features.shape == (2, 14) and model.pooling == "gap"


def test_models_are_listed():
    assert "vit/B16" in vit_jax.list_models() and "resnet/50" in vit_jax.list_models()
    assert vit_jax.list_models("deit/*") and all(name.startswith("deit/") for name in vit_jax.list_models("deit/*"))


def test_a_run_is_loaded(tmp_path_factory):
    workdir = tiny.finished(tmp_path_factory, "cnn")
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    found, expected = vit_jax.load(workdir), run.open(workdir)
    np.testing.assert_array_equal(found.logits(images), expected.logits(images))
    assert vit_jax.load(str(workdir), overrides=["task.loss=sigmoid"]).config.task["loss"] == "sigmoid"


def test_what_is_not_there_is_told():
    with pytest.raises(AttributeError, match=r"no attribute 'crate'; it has create, list_models, load, and modules"):
        vit_jax.crate  # noqa: B018 - the access is what is tested
    with pytest.raises(UserError, match=r"model 'vit/B15' is unknown; did you mean vit/B1"):
        vit_jax.create("vit/B15")
    with pytest.raises(UserError, match=r"no field 'widht'; did you mean 'width'"):
        vit_jax.create("vit/B16", widht=3)
