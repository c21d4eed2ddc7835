"""ResNets: published sizes, a forward pass by hand, norms, stochastic depth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.conftest import rest_is_slow
from tests.models import maps
from tests.models.maps import convolve, random_variables, relu, shapes
from tests.models.random_params import random_params
from vit_jax import models, trees
from vit_jax.command import UserError
from vit_jax.models.resnet import ResidualBlock, ResNet, convolution, normalization

KEY = jax.random.key(2)
IMAGES = np.random.default_rng(3).normal(size=(3, 14, 22, 3)).astype(np.float32)  # even sides: SAME would pad unevenly
# For 224-pixel images and 1000 classes: parameters, as PyTorch's torchvision counts them, and batch statistics.
PARAMETERS = {
    "resnet/18": (11_689_512, 9_600),
    "resnet/34": (21_797_672, 17_024),
    "resnet/50": (25_557_032, 53_120),
    "resnet/101": (44_549_160, 105_344),
    "resnet/152": (60_192_808, 151_424),
}


def test_every_size_has_a_golden_count():
    assert models.names("resnet/*") == list(PARAMETERS)


@pytest.mark.parametrize("name", rest_is_slow(PARAMETERS, 3))
def test_golden_count(name):
    model = models.create(models.settings(name, num_classes=1000))
    model.check((224, 224, 3))
    variables = shapes(model, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert (trees.count(variables["params"]), trees.count(variables["batch_stats"])) == PARAMETERS[name]


def forward(v: dict, x: np.ndarray, *, bottleneck: bool, stem: str) -> np.ndarray:
    """Two stages of 1 and 2 blocks, average pooling, head; in evaluation."""
    p, s = v["params"], v["batch_stats"]

    def layer(x, place, stride, pad, conv="conv_root", norm="norm_root"):
        x = convolve(x, place(p)[conv]["kernel"], stride, (pad, pad))
        return maps.batch_norm(x, place(p)[norm], place(s)[norm], 1e-5)

    x = relu(layer(x, lambda tree: tree, *((2, 3) if stem == "imagenet" else (1, 1))))
    x = maps.max_pool(x, (1, 1), -np.inf) if stem == "imagenet" else x
    for name, stride in (("stage1_block1", 1), ("stage2_block1", 2), ("stage2_block2", 1)):
        block = partial(layer, place=lambda tree, name=name: tree[name])
        y = x
        strides = [1, stride, 1] if bottleneck else [stride, 1]  # v1.5: the stride is the 3x3's
        for i, step in enumerate(strides, 1):
            y = block(y, stride=step, pad=0 if bottleneck and i != 2 else 1, conv=f"conv{i}", norm=f"norm{i}")
            y = relu(y) if i < len(strides) else y
        if "conv_proj" in p[name]:
            x = block(x, stride=stride, pad=0, conv="conv_proj", norm="norm_proj")
        x = relu(x + y)
    return x.mean(axis=(1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize(("bottleneck", "stem"), [(False, "imagenet"), (True, "imagenet"), (True, "small")])
def test_forward_pass_by_hand(bottleneck, stem):
    model = ResNet(stage_sizes=(1, 2), bottleneck=bottleneck, width=5, stem=stem, num_classes=7)
    variables = random_variables(model, IMAGES)
    assert ("conv_proj" in variables["params"]["stage1_block1"]) == bottleneck
    assert "conv_proj" in variables["params"]["stage2_block1"]
    assert "conv_proj" not in variables["params"]["stage2_block2"]
    logits = quick.jit(partial(model.apply, train=False))(variables, IMAGES)
    expected = forward(variables, IMAGES, bottleneck=bottleneck, stem=stem)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_batch_statistics_move_by_what_the_momentum_leaves():
    model = ResNet(stage_sizes=(1,), bottleneck=False, width=5, stem="small", norm_momentum=0.8, dropout=0.5)
    variables = random_variables(model, IMAGES)
    apply = quick.jit(partial(model.apply, train=True, mutable="batch_stats"))
    features, changed = apply(variables, IMAGES, rngs={"dropout": KEY})
    assert features.shape == (3, 5)
    mapped = convolve(IMAGES, variables["params"]["conv_root"]["kernel"], 1, (1, 1))
    old, new = variables["batch_stats"]["norm_root"], changed["batch_stats"]["norm_root"]
    np.testing.assert_allclose(new["mean"], 0.8 * old["mean"] + 0.2 * mapped.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["var"], 0.8 * old["var"] + 0.2 * mapped.var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_the_norm_is_a_choice(norm):
    model = ResNet(stage_sizes=(1, 1), bottleneck=False, width=32, norm=norm, dtype="bfloat16", num_classes=3)
    model.check((14, 22, 3))
    variables = shapes(model, IMAGES)
    assert ("batch_stats" in variables) == (norm == "batch")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert set(variables["params"]["norm_root"]) == {"scale", "bias"}
    logits = jax.eval_shape(partial(model.apply, train=False), variables, IMAGES)
    assert (logits.shape, logits.dtype) == ((3, 3), jnp.float32)


def test_layer_norm_looks_at_one_position():
    norm = normalization("layer", 1e-5, 0.9, "float32", train=True)()
    x = jnp.asarray(IMAGES[:1, :2, :2])
    alone = norm.apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, x)
    changed = norm.apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, x.at[0, 0, 0].add(5.0))
    np.testing.assert_array_equal(alone[0, 1], changed[0, 1])
    np.testing.assert_allclose(alone.mean(axis=-1), 0, atol=1e-6)
    with pytest.raises(UserError, match="'instance' is unknown; choose batch, layer or group"):
        normalization("instance", 1e-5, 0.9, "float32", train=True)


def block(zero_init_last_norm: bool) -> ResidualBlock:
    norm = normalization("layer", 1e-5, 0.9, "float32", train=True)
    return ResidualBlock(3, 1, False, zero_init_last_norm, partial(convolution, dtype="float32"), norm)


@pytest.mark.parametrize("zero", [True, False])
def test_a_block_starts_as_the_identity_if_its_last_norm_starts_at_zero(zero):
    module = block(zero)
    output, _ = quick.jit(partial(module.init_with_output, drop_rate=0.0, train=True))(KEY, IMAGES, KEY)
    assert np.array_equal(output, relu(IMAGES)) == zero


def test_stochastic_depth_drops_whole_images_and_scales_the_others():
    module, x = block(False), np.broadcast_to(IMAGES[:1], (31, *IMAGES.shape[1:]))
    params = random_params(module, x, KEY, drop_rate=0.0, train=False)
    run = quick.jit(module.apply, static_argnames=("drop_rate", "train"))
    kept = run({"params": params}, x, KEY, drop_rate=0.0, train=True)[0]
    output = run({"params": params}, x, KEY, drop_rate=0.5, train=True)
    dropped = np.array([np.array_equal(image, relu(IMAGES[0])) for image in output])
    assert 3 < dropped.sum() < 28
    branch = convolution_branch(params, x[:1])[0]
    for image in np.asarray(output)[~dropped]:
        np.testing.assert_allclose(image, relu(IMAGES[0] + 2 * branch), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(kept, relu(IMAGES[0] + branch), rtol=1e-3, atol=1e-3)
    evaluated = run({"params": params}, x, KEY, drop_rate=0.5, train=False)
    np.testing.assert_allclose(evaluated[0], kept, rtol=1e-5, atol=1e-6)


def convolution_branch(p: dict, x: np.ndarray) -> np.ndarray:
    """The residual branch of a basic block with layer norms."""

    def normed(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    x = relu(normed(convolve(x, p["conv1"]["kernel"], 1, (1, 1)), p["norm1"]))
    return normed(convolve(x, p["conv2"]["kernel"], 1, (1, 1)), p["norm2"])


def test_the_rate_of_stochastic_depth_grows_from_block_to_block():
    model = ResNet(stage_sizes=(2, 3), bottleneck=False, stochastic_depth=0.2)
    np.testing.assert_allclose([model.drop_rate(i) for i in range(5)], [0, 0.05, 0.1, 0.15, 0.2])
    assert ResNet(stage_sizes=(1,), bottleneck=False, stochastic_depth=0.2).drop_rate(0) == 0
