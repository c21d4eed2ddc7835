"""Keras's ResNet101V2: the reports' counts, a forward pass by hand, Gaussian dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models import maps
from tests.models.maps import convolve, random_variables, relu, shapes
from vit_jax import models, trees
from vit_jax.models.resnetv2 import ResNetV2, gaussian_dropout

KEY = jax.random.key(4)
IMAGES = np.random.default_rng(5).normal(size=(2, 14, 22, 3)).astype(np.float32)


def counts(side: int, **fields) -> tuple[int, int]:
    """Parameters and batch statistics of `resnetv2/keras101` for square colour images."""
    model = models.create(models.settings("resnetv2/keras101", **fields))
    model.check((side, side, 3))
    variables = shapes(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    return trees.count(variables["params"]), trees.count(variables["batch_stats"])


@pytest.mark.parametrize(
    ("side", "fields", "parameters", "total"),
    [
        (32, {"num_classes": 100}, 44_205_796, 44_303_460),  # system B's report
        (32, {"head_widths": ()}, 42_626_560 - 97_664, 42_626_560),  # its backbone
        (224, {"head_widths": (), "pooling": "gap", "num_classes": 1000}, 44_675_560 - 97_664, 44_675_560),  # Keras
    ],
    ids=["report", "backbone", "keras"],
)
def test_golden_count(side, fields, parameters, total):
    assert models.names("resnetv2/*") == ["resnetv2/keras101"]
    assert counts(side, **fields) == (parameters, 97_664)
    assert parameters + 97_664 == total


def forward(v: dict, x: np.ndarray) -> np.ndarray:
    """Stages of 2 and 1 blocks, flattened, one hidden layer, head; in evaluation."""
    p, s = v["params"], v["batch_stats"]

    def normed(x, *place):
        params, statistics = p, s
        for name in place:
            params, statistics = params[name], statistics[name]
        return relu(maps.batch_norm(x, params, statistics, 1.001e-5))

    x = convolve(x, p["conv_root"]["kernel"], 2, (3, 3)) + p["conv_root"]["bias"]
    x = maps.max_pool(x, (1, 1), 0.0)
    # The last block of a stage strides, but not in the last stage; the first one projects its shortcut.
    for name, stride, projects in (("stage1_block1", 1, True), ("stage1_block2", 2, False), ("stage2_block1", 1, True)):
        block = p[name]
        y = normed(x, name, "norm1")
        shortcut = x[:, ::stride, ::stride]
        if projects:
            shortcut = y @ block["conv_proj"]["kernel"][0, 0] + block["conv_proj"]["bias"]
        y = normed(y @ block["conv1"]["kernel"][0, 0], name, "norm2")
        y = normed(convolve(y, block["conv2"]["kernel"], stride, (1, 1)), name, "norm3")
        x = shortcut + y @ block["conv3"]["kernel"][0, 0] + block["conv3"]["bias"]
    x = normed(x, "norm_head").reshape(len(x), -1)
    x = relu(x @ p["head_hidden_0"]["kernel"] + p["head_hidden_0"]["bias"])
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def test_forward_pass_by_hand():
    model = ResNetV2(stage_sizes=(2, 1), width=3, head_widths=(7,), gaussian_dropout=0.5, num_classes=5)
    variables = random_variables(model, IMAGES)
    assert ["bias" in variables["params"]["stage1_block1"][f"conv{i}"] for i in (1, 2, 3)] == [False, False, True]
    logits = quick.jit(partial(model.apply, train=False))(variables, IMAGES)
    expected = forward(variables, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_single_block_that_strides_projects_with_the_stride():
    model = ResNetV2(stage_sizes=(1, 1), width=3, pooling="gap")
    features, _ = jax.eval_shape(partial(model.init_with_output, train=False), KEY, IMAGES)
    assert features.shape == (2, 24)


def test_gaussian_dropout_has_dropouts_mean_and_variance():
    x = jnp.full((211, 223), 3.0)
    noise = np.asarray(gaussian_dropout(x, 0.2, KEY, train=True)) / 3.0
    assert abs(noise.mean() - 1) < 0.012  # 5 standard deviations
    assert abs(noise.var() - 0.25) < 0.009
    assert gaussian_dropout(x, 0.2, KEY, train=False) is x
    assert gaussian_dropout(x, 0.0, KEY, train=True) is x


def test_training_draws_noise_in_the_head_and_moves_the_statistics():
    model = ResNetV2(stage_sizes=(1,), width=3, head_widths=(7, 5), gaussian_dropout=0.5, dtype="bfloat16")
    variables = random_variables(model, IMAGES)
    apply = quick.jit(partial(model.apply, train=True, mutable="batch_stats"))
    one, changed = apply(variables, IMAGES, rngs={"dropout": KEY})
    other, _ = apply(variables, IMAGES, rngs={"dropout": jax.random.key(5)})
    assert one.shape == (2, 5) and one.dtype == jnp.bfloat16 and not np.array_equal(one, other)
    before, after = variables["batch_stats"]["norm_head"]["mean"], changed["batch_stats"]["norm_head"]["mean"]
    assert after.dtype == jnp.float32 and np.abs(before - after).min() > 0
