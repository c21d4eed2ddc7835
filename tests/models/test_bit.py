"""BiT: published sizes, the authors' names, standardised kernels, a forward pass by hand."""

from functools import partial

import jax
import numpy as np

from tests import quick
from tests.models import maps
from tests.models.maps import convolve, relu
from tests.models.random_params import random_params
from vit_jax.models.bit import BiT, StdConv

KEY = jax.random.key(6)
IMAGES = np.random.default_rng(7).normal(size=(2, 14, 22, 3)).astype(np.float32)


def standardise(kernel: np.ndarray) -> np.ndarray:
    return (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)


def test_a_standardised_convolution_ignores_its_kernels_scale_and_mean():
    module = StdConv(5, 3, 2)
    params = random_params(module, IMAGES)
    run = quick.jit(module.apply)
    output = run({"params": params}, IMAGES)
    np.testing.assert_allclose(output, convolve(IMAGES, standardise(params["kernel"]), 2, (1, 1)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(run({"params": {"kernel": 3 * params["kernel"] + 2}}, IMAGES), output, atol=1e-4)


def test_the_two_epsilons_damp_a_small_kernel():
    kernel = np.random.default_rng(8).normal(0, 1e-5, (1, 1, 3, 2)).astype(np.float32)
    for variance_epsilon, deviation_epsilon in ((1e-10, 0.0), (0.0, 1e-5)):
        module = StdConv(2, 1, 1, "SAME", variance_epsilon, deviation_epsilon)
        deviation = np.sqrt(kernel.var((0, 1, 2)) + variance_epsilon) + deviation_epsilon
        expected = IMAGES @ ((kernel - kernel.mean((0, 1, 2))) / deviation)[0, 0]
        output = quick.jit(module.apply)({"params": {"kernel": kernel}}, IMAGES)
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def forward(p: dict, x: np.ndarray) -> np.ndarray:
    """Two stages of 1 and 2 units."""

    def conv(x, p, stride=1):
        pad = p["kernel"].shape[0] // 2
        return convolve(x, standardise(p["kernel"]), stride, (pad, pad))

    x = maps.max_pool(conv(x, p["root_block"]["conv_root"], 2), (1, 1), 0.0)
    for block, unit, stride in (("block1", "unit01", 1), ("block2", "unit01", 2), ("block2", "unit02", 1)):
        u = p[block][unit]
        y = relu(maps.group_norm(x, u["gn1"], 1e-5))
        shortcut = conv(y, u["conv_proj"], stride) if "conv_proj" in u else x
        y = relu(maps.group_norm(conv(y, u["conv1"]), u["gn2"], 1e-5))
        y = relu(maps.group_norm(conv(y, u["conv2"], stride), u["gn3"], 1e-5))
        x = shortcut + conv(y, u["conv3"])
    x = relu(maps.group_norm(x, p["norm-pre-head"], 1e-5)).mean(axis=(1, 2))
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def test_forward_pass_by_hand():
    model = BiT(stage_sizes=(1, 2), width=32, num_classes=5)
    params = random_params(model, IMAGES, train=False)
    run = quick.jit(partial(model.apply, train=False))
    logits = run({"params": params}, IMAGES)
    expected = forward(params, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    others = np.concatenate([IMAGES[:1], 9 * IMAGES[1:]])
    np.testing.assert_allclose(run({"params": params}, others)[0], logits[0], rtol=1e-4)  # no batch norm


def test_the_head_starts_at_zero_and_features_are_the_mean_map():
    model = BiT(stage_sizes=(1,), width=32, num_classes=5)
    head = quick.jit(lambda images: model.init(KEY, images, train=True)["params"]["head"])(IMAGES)
    assert not np.any(head["kernel"]) and not np.any(head["bias"])
    features, _ = jax.eval_shape(partial(model.clone(num_classes=0).init_with_output, train=False), KEY, IMAGES)
    assert features.shape == (2, 128)
