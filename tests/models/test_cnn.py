"""The plain CNN against a composition by hand, and its batch norm's statistics."""

from functools import partial

import jax
import numpy as np
import pytest

from tests import quick
from tests.models.random_params import random_params
from vit_jax.models.cnn import CNN
from vit_jax.ops.dropout import dropout

IMAGES = np.random.default_rng(3).normal(size=(5, 7, 11, 3)).astype(np.float32)
KEY = jax.random.key(1)


def convolve(x: np.ndarray, p: dict) -> np.ndarray:
    """3x3, zeros outside, stride 1."""
    n, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = (padded[:, i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(3) for j in range(3))
    return sum(taps) + p["bias"]


def pool(x: np.ndarray) -> np.ndarray:
    """The largest of each 2x2, odd rows and columns left out."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def test_a_stage_is_convolutions_with_relu_then_pool_then_norm():
    model = CNN(stages=((3, 2), (5,)), dense_widths=(7,), num_classes=4, pool_last=False, dropout=0.5)
    params = random_params(model, IMAGES, train=False)
    apply = quick.jit(partial(model.apply, train=True, mutable="batch_stats"))
    variables = {"params": params, "batch_stats": initial_statistics(model)}
    logits, changed = apply(variables, IMAGES, rngs={"dropout": KEY})

    def normed(x, p):
        return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * p["scale"] + p["bias"]

    x = relu(convolve(relu(convolve(IMAGES, params["stage0_conv0"])), params["stage0_conv1"]))
    pooled = pool(x)
    x = normed(pooled, params["stage0_norm"])
    x = normed(relu(convolve(x, params["stage1_conv0"])), params["stage1_norm"])
    x = relu(x.reshape(5, -1) @ params["dense0"]["kernel"] + params["dense0"]["bias"])
    key = jax.random.fold_in(model.apply({}, rngs={"dropout": KEY}, method=lambda m: m.make_rng("dropout")), 0)
    x = np.asarray(quick.jit(partial(dropout, rate=0.5, train=True))(x, rng=key))
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)

    # The statistics start at mean 0 and variance 1, and move by 1 %.
    moved = changed["batch_stats"]["stage0_norm"]
    np.testing.assert_allclose(moved["mean"], 0.01 * pooled.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * pooled.var((0, 1, 2)), rtol=1e-3)


def initial_statistics(model: CNN) -> dict:
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)["batch_stats"]
    return {
        name: {"mean": np.zeros(leaf["mean"].shape, np.float32), "var": np.ones(leaf["var"].shape, np.float32)}
        for name, leaf in shapes.items()
    }


def test_evaluation_uses_the_statistics_and_leaves_them_alone():
    model = CNN(stages=((2,),), dense_widths=(), num_classes=3)
    params, statistics = random_params(model, IMAGES, train=False), initial_statistics(model)
    statistics["stage0_norm"]["mean"] += 0.5
    apply = quick.jit(partial(model.apply, train=False, mutable="batch_stats"))
    logits, changed = apply({"params": params, "batch_stats": statistics}, IMAGES)
    x = (pool(relu(convolve(IMAGES, params["stage0_conv0"]))) - 0.5) / np.sqrt(1 + 1e-5)
    x = x * params["stage0_norm"]["scale"] + params["stage0_norm"]["bias"]
    expected = x.reshape(5, -1) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], statistics)


@pytest.mark.parametrize(("norm", "leaves"), [("batch", 4), ("layer", 2), ("none", 0)])
def test_the_norm_is_a_choice(norm, leaves):
    model = CNN(stages=((2,),), dense_widths=(), norm=norm)
    variables = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)
    norms = [part["stage0_norm"] for part in variables.values() if "stage0_norm" in part]
    assert len(jax.tree.leaves(norms)) == leaves
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.mark.parametrize(("pool_last", "features"), [(True, 1 * 2 * 5), (False, 3 * 5 * 5)])
def test_without_classes_it_returns_features(pool_last, features):
    model = CNN(stages=((2,), (5,)), dense_widths=(), pool_last=pool_last)
    output, _ = jax.eval_shape(partial(model.init_with_output, train=False), KEY, IMAGES)
    assert output.shape == (5, features)


def test_check_counts_only_the_stages_that_pool():
    assert CNN(stages=((3,),) * 3, dense_widths=(), pool_last=False).check((7, 11, 3)) is None
