"""Each operation equals its plain definition, value and gradient, under JAX's transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from tests import quick
from vit_jax.ops.attend import attend, attention_logits, weighted
from vit_jax.ops.convolution import ORDER, conv_general_dilated
from vit_jax.ops.dense import dot_general
from vit_jax.ops.dropout import bernoulli, dropout
from vit_jax.ops.gelu import gelu
from vit_jax.ops.pooling import max_pool
from vit_jax.ops.remat import kept

KEY = jax.random.key(1)
LAST = (((2,), (0,)), ((), ()))


def plain_dropout(x):
    return jnp.where(jax.random.bernoulli(KEY, 0.7, x.shape), x / 0.7, 0)


def convolve(convolution, x, kernel):
    return convolution(x, kernel, (2, 1), "SAME", dimension_numbers=ORDER)


def pooled(pool, x, strides=(2, 2)):
    return pool(x, (3, 2), strides=strides, padding="SAME")


OPERATIONS = {  # the operation, its plain definition, the shapes of its arguments
    "attend": (attend, lambda logits, values: jax.nn.softmax(logits) @ values, [(2, 3, 4, 5), (2, 3, 5, 2)]),
    "convolution": (
        partial(convolve, conv_general_dilated),
        partial(convolve, lax.conv_general_dilated),
        [(2, 5, 7, 3), (3, 2, 3, 4)],
    ),
    "dense": (
        partial(dot_general, dimension_numbers=LAST),
        partial(lax.dot_general, dimension_numbers=LAST),
        [(2, 3, 5), (5, 2, 4)],
    ),
    "dropout": (partial(dropout, rate=0.3, rng=KEY, train=True), plain_dropout, [(2, 3, 5)]),
    "attention_logits": (attention_logits, lambda q, k: q @ k.swapaxes(2, 3), [(2, 3, 4, 2), (2, 3, 5, 2)]),
    "pooling": (partial(pooled, max_pool), partial(pooled, nn.max_pool), [(2, 5, 7, 3)]),
    "pooling apart": (
        partial(pooled, max_pool, strides=(3, 2)),
        partial(pooled, nn.max_pool, strides=(3, 2)),
        [(2, 6, 4, 3)],
    ),
    "weighted": (weighted, jnp.matmul, [(2, 3, 4, 5), (2, 3, 5, 2)]),
    "gelu": (gelu, partial(jax.nn.gelu, approximate=False), [(2, 3, 5)]),
}


def scanned(fn):
    return lambda *args: lax.scan(lambda carry, xs: (carry, fn(*xs)), 0, args)[1]


def looped(fn):
    return lambda *args: jnp.stack([fn(*xs) for xs in zip(*args, strict=True)])


TRANSFORMATIONS = {  # what is applied to the operation, and to its plain definition; whether over a first axis
    "alone": (lambda fn: fn, lambda fn: fn, False),
    "remat": (jax.checkpoint, lambda fn: fn, False),
    "remat dots": (partial(jax.checkpoint, policy=kept("dots")), lambda fn: fn, False),
    "scan": (scanned, looped, True),
    "scan remat": (lambda fn: scanned(jax.checkpoint(fn)), looped, True),
    "vmap": (jax.vmap, looped, True),
}


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_value_and_gradient(operation, transformation):
    (tuned, plain, shapes), (of_tuned, of_plain, stacked) = OPERATIONS[operation], TRANSFORMATIONS[transformation]
    shapes = [(2, *shape) if stacked else shape for shape in shapes]
    args = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def value_and_gradient(fn):
        return jax.value_and_grad(lambda *args: jnp.sin(fn(*args)).sum(), range(len(args)))

    found, expected = quick.jit(
        lambda *args: [value_and_gradient(f)(*args) for f in (of_tuned(tuned), of_plain(plain))]
    )(*args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_the_draws_in_a_scan_are_jaxs_own():
    keys = jax.random.split(KEY, 3)
    drawn = quick.jit(lambda keys: lax.map(lambda key: bernoulli(key, 0.4, (5, 7)), keys))(keys)
    np.testing.assert_array_equal(drawn, [jax.random.bernoulli(key, 0.4, (5, 7)) for key in keys])
