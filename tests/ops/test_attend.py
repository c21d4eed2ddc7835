"""Means weighted by a softmax, their derivatives, and the softmax whose parts have names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from tests import quick
from vit_jax.ops.attend import attend, softmax

N, A, M, E = 2, 3, 11, 5
KEY = jax.random.key(0)


def test_the_values_means_and_their_derivatives():
    logits, values = (jax.random.normal(k, s) for k, s in ((KEY, (N, A, 4, M)), (jax.random.key(1), (N, A, M, E))))

    def plain(logits, values):
        return jax.nn.softmax(logits) @ values

    def loss(fn, logits, values):
        return jnp.sin(fn(logits, values)).sum()

    gradients = [quick.jit(jax.value_and_grad(partial(loss, fn), (0, 1)))(logits, values) for fn in (attend, plain)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    small = logits[:1, :1, :2, :3], values[:1, :1, :3, :2]
    check_grads(jax.jit(attend), small, order=2, rtol=1e-2, atol=1e-2)


def test_the_softmax_with_named_parts_is_softmax_to_the_bit():
    logits = 10 * jax.random.normal(KEY, (2, 3, 5, 7))
    assert (softmax(logits) == jax.nn.softmax(logits)).all()
