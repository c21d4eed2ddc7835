"""Theoretical receptive fields against the recursion that is worked out by hand, effective ones against a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import augment, models, step
from vit_jax.explain.network import open_network
from vit_jax.explain.receptive_field import effective_size, theoretical_size


def opened(name: str, side: int, **fields):
    model = models.create(models.settings(name, num_classes=3, **fields))
    shapes = jax.eval_shape(lambda: step.init_variables(model, 0, (side, side, 3)))
    settings = augment.Settings(mean=(0.5,) * 3, std=(0.2,) * 3)
    return open_network(model, shapes, settings), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


def size(windows: list[tuple[int, int]]) -> int:
    """Of (window, stride) from the first layer to the last."""
    reach, step = 1, 1
    for window, stride in windows:
        reach, step = reach + (window - 1) * step, step * stride
    return reach


def test_of_a_plain_cnn():
    network, x = opened("cnn", 96, stages=((5, 5), (7,)), dense_widths=(3,))
    assert theoretical_size(network, x) == (size([(3, 1), (3, 1), (2, 2), (3, 1), (2, 2)]),) * 2 == (12, 12)
    assert theoretical_size(network, x, "stage0_conv1") == (5, 5)


@pytest.mark.parametrize("bottleneck, published", [(False, 435), (True, 427)])
def test_of_resnet_18_and_50(bottleneck, published):
    """As Araujo et al. 2019 count them (version 1.5: a bottleneck strides in its 3x3 convolution)."""
    stages = (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)
    windows = [(7, 2), (3, 2)]
    for i, blocks in enumerate(stages):
        for j in range(blocks):
            stride = 2 if i and not j else 1
            windows += [(3, stride)] if bottleneck else [(3, stride), (3, 1)]
    assert size(windows) == published
    network, x = opened("resnet", 640, stage_sizes=stages, bottleneck=bottleneck, width=8)
    assert theoretical_size(network, x) == (published, published)


@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_a_transformer_and_a_mixer_see_everything(name):
    fields = {"patch_size": (8,), "width": 8, "depth": 1}
    more = {"mlp_dim": 5, "num_heads": 2} if name == "vit" else {"token_mlp_dim": 3, "channel_mlp_dim": 5}
    network, x = opened(name, 32, **fields, **more)
    assert theoretical_size(network, x) == (32, 32)


def test_the_effective_field_of_a_gaussian():
    """exp(-r^2 / 2 s^2) exceeds 1 - 0.9545 inside a circle of radius s sqrt(2 ln(1 / 0.0455))."""
    y, x = np.mgrid[-50:51, -50:51]
    gaussian = np.exp(-(x**2 + y**2) / (2 * 9.0**2))
    expected = np.sqrt(np.pi * 2 * np.log(1 / 0.0455)) * 9.0
    assert effective_size(gaussian[None].repeat(3, axis=0)) == pytest.approx(expected, rel=0.01)
