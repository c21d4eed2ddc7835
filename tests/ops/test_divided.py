"""Operations on several devices, and their second derivatives, are those of the plain definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.ops.test_transformed import OPERATIONS
from vit_jax import platforms, sharding

# Their first derivatives are rules of their own; of dropout's and erf's JAX's alone are left.
TUNED = ("attend", "convolution", "dense", "pooling", "pooling apart")
ATTENTION = ("attend", "attention_logits", "weighted")


def arguments(shapes, images):
    """Random ones, all or the first with so many images."""
    (_, *first), *others = shapes
    return [jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(images, *first), *others])]


def of_images(operation, shapes, images):
    """Random arguments; those of attention are of images both."""
    return arguments([(images, *s[1:]) for s in shapes] if operation in ATTENTION else shapes, images)


def value_and_gradient(fn):
    return lambda *args: jax.value_and_grad(lambda *given: jnp.sin(fn(*given)).sum(), range(len(args)))(*args)


@pytest.mark.parametrize("images", [4, 3], ids=["divided", "odd"])
@pytest.mark.parametrize("operation", TUNED)
def test_on_two_devices(operation, images):
    tuned, plain, shapes = OPERATIONS[operation]
    args = of_images(operation, shapes, images)
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:2])
    split = sharding.batch_sharding(mesh)

    def on_mesh(*args):  # as a step's first layer: a batch that is divided, and parameters that are not
        first = jax.lax.with_sharding_constraint(args[0], split if images % 2 == 0 else sharding.replicated(mesh))
        return value_and_gradient(tuned)(first, *args[1:])

    found = quick.jit(sharding.on_mesh(on_mesh, mesh))(*args)
    expected = quick.jit(value_and_gradient(plain))(*args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("operation", TUNED)
def test_second_derivatives(operation):
    tuned, plain, shapes = OPERATIONS[operation]
    args = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def of_gradients(fn):
        def loss(*given):
            _, gradients = value_and_gradient(fn)(*given)
            return sum(jnp.sin(g).sum() for g in gradients)

        return jax.grad(loss, range(len(args)))

    found, expected = quick.jit(lambda *args: [of_gradients(fn)(*args) for fn in (tuned, plain)])(*args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


@pytest.mark.parametrize("release", [(0, 10, 2), (0, 12, 0)])
@pytest.mark.parametrize("unit", ["avx2", "avx512_bf16"])
@pytest.mark.parametrize("operation", [*ATTENTION, "convolution", "dense"])
def test_in_bfloat16(operation, unit, release, monkeypatch):
    """As the plain definition in float32, but for rounding; on two devices, whatever the CPU and the release of JAX."""
    monkeypatch.setattr(jax, "__version_info__", release)
    monkeypatch.setattr(platforms, "cpu_units", lambda: {unit})
    tuned, plain, shapes = OPERATIONS[operation]
    args = [v.astype(jnp.bfloat16) for v in of_images(operation, shapes, 4)]
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:2])

    def gradients(fn):
        return lambda *args: jax.grad(lambda *given: (0.5 * fn(*given).astype(jnp.float32) ** 2).sum(), (0, 1))(*args)

    found = quick.jit(sharding.on_mesh(gradients(tuned), mesh))(*args)
    expected = quick.jit(gradients(plain))(*(v.astype(jnp.float32) for v in args))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.02, atol=0.02 * float(jnp.abs(b).max()))
