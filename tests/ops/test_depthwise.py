"""A depthwise convolution as shifted copies is XLA's grouped one, with its gradients and its operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vit_jax import flops
from vit_jax.ops.depthwise import depthwise, row_by_row, tap_by_tap

X, DY = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(2, 2, 5, 7, 3)))
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 1, 3)), jnp.float32)


def grouped(x, kernel):
    order = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order, feature_group_count=3)


def test_it_and_its_gradients_are_those_of_a_grouped_convolution():
    found, of_it = jax.vjp(depthwise, X, KERNEL)
    expected, of_grouped = jax.vjp(grouped, X, KERNEL)
    for ours, theirs in zip((found, *of_it(DY)), (expected, *of_grouped(DY)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", [row_by_row, tap_by_tap])
def test_both_ways_to_the_kernels_gradient(gradient):
    _, of_grouped = jax.vjp(grouped, X, KERNEL)
    np.testing.assert_allclose(gradient((3, 5), X, DY).reshape(KERNEL.shape), of_grouped(DY)[1], rtol=1e-5, atol=1e-5)


def test_it_is_counted_as_a_grouped_convolution():
    assert flops.count(depthwise, X, KERNEL) == flops.count(grouped, X, KERNEL) == 2 * X.size * 15
