"""Products with kernels are the same however they are arranged."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import quick
from tests.ops.lowered import lowered
from vit_jax.ops.dense import dot_general

LAST = (((2,), (0,)), ((), ()))
HEADS = (((2, 3), (0, 1)), ((), ()))


@pytest.mark.parametrize(
    ("x", "kernel", "dimensions"),
    [((2, 5, 8), (8, 3), LAST), ((2, 5, 8), (8, 2, 3), LAST), ((2, 5, 2, 4), (2, 4, 3), HEADS)],
)
def test_a_product_and_its_gradients(x, kernel, dimensions):
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, kernel)))

    def loss(product, x, kernel):
        return jnp.sum(jnp.sin(product(x, kernel, dimensions)))

    found, expected = (
        quick.jit(jax.value_and_grad(partial(loss, product), (0, 1)))(x, kernel)
        for product in (dot_general, lax.dot_general)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def products(product, platform):
        """The ranks of both factors of each product in the program of the gradients."""
        text = lowered(jax.grad(lambda *args: loss(product, *args), (0, 1)), x, kernel, platform=platform)
        factors = re.findall(r"dot_general .* : \(tensor<(\S*)xf32>, tensor<(\S*)xf32>\)", text)
        assert len(factors) == 3
        return [tuple(shape.count("x") + 1 for shape in pair) for pair in factors]

    plain = products(lax.dot_general, "cpu")
    assert sorted(products(dot_general, "tpu")) == sorted(products(dot_general, "cuda")) == sorted(plain)
    assert (2, 2) in products(dot_general, "cpu") and (2, 2) not in plain


def test_other_products_stay_as_they_are():
    x, y = jnp.ones((2, 5, 8)), jnp.ones((2, 8, 3))
    assert dot_general(x, y, (((2,), (1,)), ((0,), (0,)))).shape == (2, 5, 3)
    assert dot_general(x, jnp.ones((3, 8)), (((2,), (1,)), ((), ()))).shape == (2, 5, 3)
