"""DeiT: the distillation token, its place and its head, and what training and evaluation return."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.random_params import parameter_shapes, random_params, silence
from vit_jax import models
from vit_jax.models.vit import ViT

KEY = jax.random.key(0)
SHAPE = (14, 15, 3)  # with 7x5 patches a grid of 2x3
IMAGES = jnp.asarray(np.random.default_rng(5).normal(size=(5, *SHAPE)), jnp.float32)
TINY = {"patch_size": (7, 5), "width": 8, "depth": 2, "mlp_dim": 11, "num_heads": 2, "num_classes": 13}


def tiny(**fields) -> ViT:
    return ViT(**{**TINY, "distillation_token": True, **fields})


def test_a_model_of_another_size_has_the_token_too():
    assert models.create(models.settings("deit", **TINY)) == tiny()
    assert models.names("deit") == models.names("deit/") == []


def test_the_token_adds_itself_its_position_and_its_head():
    added = {"dist": (1, 1, 8), "head_dist/kernel": (8, 13), "head_dist/bias": (13,)}
    changed = {"Transformer/posembed_input/pos_embedding": (1, 8, 8)}
    plain = parameter_shapes(tiny(distillation_token=False), IMAGES)
    assert parameter_shapes(tiny(), IMAGES) == plain | added | changed
    assert not plain.keys() & added.keys()


def test_tokens_are_class_distillation_registers_patches():
    model = tiny(depth=1, registers=3)
    params = random_params(model, IMAGES, train=False)
    block = params["Transformer"]["encoderblock_0"]
    silence(block)
    _, sown = quick.jit(partial(model.apply, train=False, mutable="intermediates"))({"params": params}, IMAGES)
    tokens = sown["intermediates"]["Transformer"]["encoderblock_0"]["tokens"][0]
    assert tokens.shape == (5, 2 + 3 + 6, 8)
    position = params["Transformer"]["posembed_input"]["pos_embedding"][0]
    np.testing.assert_allclose(tokens[1, 0], params["cls"][0, 0] + position[0], rtol=1e-5)
    np.testing.assert_allclose(tokens[1, 1], params["dist"][0, 0] + position[1], rtol=1e-5)
    np.testing.assert_allclose(tokens[1, 2:5], params["Transformer"]["registers"][0], rtol=1e-5)
    patch = np.asarray(IMAGES)[1, :7, :5].reshape(-1) @ params["embedding"]["kernel"].reshape(-1, 8)
    np.testing.assert_allclose(tokens[1, 5], patch + params["embedding"]["bias"] + position[2], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(tiny(), IMAGES, train=False)


def test_evaluation_averages_the_heads_and_training_keeps_them_apart(params):
    @partial(quick.jit, static_argnames="train")
    def run(params, *, train):
        def is_norm(module, _):
            return module.name == "encoder_norm"

        seen = {"mutable": ("intermediates", "distillation"), "capture_intermediates": is_norm}
        return tiny().apply({"params": params}, IMAGES, train=train, rngs={"dropout": KEY}, **seen)

    def head(name: str, token: np.ndarray) -> np.ndarray:
        return token @ params[name]["kernel"] + params[name]["bias"]

    logits, seen = run(params, train=False)
    tokens = np.asarray(seen["intermediates"]["Transformer"]["encoder_norm"]["__call__"][0])
    by_class, by_teacher = head("head", tokens[:, 0]), head("head_dist", tokens[:, 1])
    np.testing.assert_allclose(logits, (by_class + by_teacher) / 2, rtol=1e-4, atol=1e-5)
    assert "distillation" not in seen

    logits, seen = run(params, train=True)
    np.testing.assert_allclose(logits, by_class, rtol=1e-4, atol=1e-5)
    (distilled,) = seen["distillation"]["logits"]
    np.testing.assert_allclose(distilled, by_teacher, rtol=1e-4, atol=1e-5)


def test_without_classes_it_returns_the_mean_of_both_tokens():
    apply = partial(tiny(num_classes=0).init_with_output, train=False)
    features, variables = jax.eval_shape(apply, KEY, IMAGES)
    assert features.shape == (5, 8)
    assert not {"head", "head_dist"} & variables["params"].keys()
