"""Products with kernels are the same however they are arranged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vit_jax import sharding
from vit_jax.models.layers import AddPositions
from vit_jax.models.products import dot_general, row_major

LAST = (((2,), (0,)), ((), ()))
HEADS = (((2, 3), (0, 1)), ((), ()))


@pytest.mark.parametrize(
    ("x", "kernel", "dimensions"),
    [((2, 5, 8), (8, 3), LAST), ((2, 5, 8), (8, 2, 3), LAST), ((2, 5, 2, 4), (2, 4, 3), HEADS)],
)
def test_a_product_and_its_gradients(x, kernel, dimensions, monkeypatch):
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, kernel)))

    def loss(product, x, kernel):
        return jnp.sum(jnp.sin(product(x, kernel, dimensions)))

    expected = jax.value_and_grad(loss, (1, 2))(lax.dot_general, x, kernel)
    found = jax.value_and_grad(loss, (1, 2))(dot_general, x, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def ranks(fn):
        (product,) = [e for e in jax.make_jaxpr(fn)(x, kernel).eqns if e.primitive is lax.dot_general_p]
        return [v.aval.ndim for v in product.invars]

    assert ranks(lambda x, kernel: dot_general(x, kernel, dimensions)) == [2, 2]
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("tpu", "TPU v3"))
    assert ranks(lambda x, kernel: dot_general(x, kernel, dimensions)) == [x.ndim, kernel.ndim]


def test_other_products_stay_as_they_are():
    x, y = jnp.ones((2, 5, 8)), jnp.ones((2, 8, 3))
    assert dot_general(x, y, (((2,), (1,)), ((0,), (0,)))).shape == (2, 5, 3)
    assert dot_general(x, jnp.ones((3, 8)), (((2,), (1,)), ((), ()))).shape == (2, 5, 3)


def constraints(jaxpr) -> list[tuple[int, ...]]:
    """The orders of axes, slowest first, that a program demands."""
    return [e.params["layout"].major_to_minor for e in jaxpr.eqns if e.primitive.name == "layout_constraint"]


def test_the_layout_is_held_on_gpus_in_both_directions(monkeypatch):
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert row_major(x) is x
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H100"))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(row_major(x) ** 2)))(x)
    assert value == jnp.sum(x**2)
    np.testing.assert_array_equal(gradient, 2 * x)
    both = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(row_major(x) ** 2)))(x)
    assert constraints(both) == [(0, 1, 2)] * 2


@pytest.mark.parametrize("positions", ["learned", "learned_2d", "sincos2d"])
def test_positions_hold_it(positions, monkeypatch):
    """What sums over images in the gradient stands between two of them."""
    module, x = AddPositions(positions, (2, 3)), jnp.ones((2, 7, 8))
    params = module.init(jax.random.key(0), x)
    assert constraints(jax.make_jaxpr(module.apply)(params, x)) == []
    monkeypatch.setattr(sharding, "devices_of_activations", lambda: ("gpu", "NVIDIA H100"))
    assert constraints(jax.make_jaxpr(module.apply)(params, x)) == [(0, 1, 2)]
