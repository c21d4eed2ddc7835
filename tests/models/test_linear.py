"""Linear layers are Flax's: parameters and numbers to the bit in float32, sums of bfloat16 numbers in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from tests import quick
from tests.ops.lowered import lowered
from vit_jax.models.linear import Conv, Dense
from vit_jax.ops.dense import add_bias, gradients, narrow_gradients

NORMAL = {"bias_init": nn.initializers.normal(), "name": "layer"}
LAYERS = {  # ours, Flax's, the shape of their inputs
    "dense": (Dense(6, **NORMAL), nn.Dense(6, **NORMAL), (2, 5, 16)),
    "heads": (Dense((2, 3), **NORMAL), nn.DenseGeneral((2, 3), **NORMAL), (2, 5, 16)),
    "out": (Dense(7, axis=(-2, -1), **NORMAL), nn.DenseGeneral(7, axis=(-2, -1), **NORMAL), (2, 5, 2, 3)),
    "conv": (Conv(7, (3, 3), strides=2, **NORMAL), nn.Conv(7, (3, 3), strides=2, **NORMAL), (2, 6, 5, 3)),
    "no bias": (Dense(6, bias=False), nn.Dense(6, use_bias=False), (2, 5, 16)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_parameters_and_numbers(layer):
    *both, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)

    def run(module):
        variables = module.init(jax.random.key(1), x)
        return variables, module.apply(variables, x)

    jax.tree.map(np.testing.assert_array_equal, *quick.jit(lambda: [run(module) for module in both])())


@pytest.mark.parametrize(("x", "kernel"), [((3, 5, 32), (32, 2, 3)), ((3, 5, 2, 3), (2, 3, 7))])
def test_gradients_of_narrow_products(x, kernel):
    k = len(x) - 2
    product = partial(lax.dot_general, dimension_numbers=(((2, 3)[:k], (0, 1)[:k]), ((), ())))
    dy = (*x[:2], *kernel[k:])
    x, kernel, dy = (
        jax.random.normal(jax.random.key(i), shape).astype(jnp.bfloat16) for i, shape in enumerate((x, kernel, dy))
    )
    found = quick.jit(partial(narrow_gradients, k))(x, kernel, dy)
    expected = quick.jit(partial(gradients, product))(*(v.astype(jnp.float32) for v in (x, kernel, dy)))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16), strict=True)


def test_a_bias_is_learned_from_many_small_gradients():
    y, bias = jnp.zeros((1000, 3), jnp.bfloat16), jnp.zeros(3)

    def loss(y, bias):
        return (add_bias(y, bias) * jnp.bfloat16(0.01)).astype(jnp.float32).sum()

    dy, found = quick.jit(jax.grad(loss, (0, 1)))(y, bias)
    assert dy.dtype == jnp.bfloat16 and found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, 1000 * jnp.float32(jnp.bfloat16(0.01)), rtol=1e-5
    )  # bfloat16 sums would stop at 4
    for platform, sums in {"cpu": "f32", "tpu": "bf16", "cuda": "bf16"}.items():
        text = lowered(jax.grad(loss, 1), y, bias, platform=platform)
        assert f"(tensor<1000x3x{sums}>" in text.partition("stablehlo.reduce")[2].partition("\n")[0]
