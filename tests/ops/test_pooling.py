"""Max-pooling is Linen's: its values, its gradients where entries are equal, and its programs for accelerators."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests import quick
from tests.ops.lowered import lowered
from vit_jax.ops.pooling import max_pool

X = jax.random.randint(jax.random.key(0), (2, 7, 8, 3), 0, 3)  # small numbers, many of them equal


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2, 2), (2, 2), "VALID"),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 3), (1, 2), "SAME"),
        ((1, 1), (2, 2), "VALID"),
        ((1, 2), (1, 2), "VALID"),
        ((7, 4), (7, 4), "SAME"),
    ],
)
def test_equal_entries(window, strides, padding, dtype):
    def derivatives(pool, x):
        def pooled(x):
            return pool(x, window, strides=strides, padding=padding)

        y, back = jax.vjp(pooled, x)
        dy = jnp.arange(y.size, dtype=x.dtype).reshape(y.shape) % 8
        return y, back(dy), jax.jvp(pooled, (x,), (jnp.cos(x),))[1]

    found, expected = quick.jit(lambda x: [derivatives(pool, x) for pool in (max_pool, nn.max_pool)])(X.astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_keep_their_own(platform):
    def pooled(pool, x):
        return pool(x, (2, 2), strides=(2, 2)).sum()

    counts = [
        Counter(re.findall(r"select_and_scatter|reduce_window|select\b", text))
        for pool in (max_pool, nn.max_pool)
        for text in [lowered(jax.value_and_grad(partial(pooled, pool)), X.astype(jnp.float32), platform=platform)]
    ]
    assert counts[0] == counts[1] and counts[0]["select_and_scatter"]
