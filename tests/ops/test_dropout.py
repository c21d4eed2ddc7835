"""Bits that fuse are JAX's own dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax.ops import dropout as bits
from vit_jax.ops.dropout import dropout

KEY = jax.random.key(0)
dropped = quick.jit(partial(dropout, train=True), static_argnums=1)


@pytest.mark.parametrize(
    ("shape", "p"),
    [((), 0.5), ((7,), 0.1), ((3, 1, 5), 0.999), *(((2, 3, 4, 65), p) for p in (0.0, 0.1, 1.0))],
    ids=str,
)
def test_the_bits_are_jaxs_own(shape, p):
    @quick.jit
    def draw(seed):
        rng = jax.random.fold_in(jax.random.key(seed), 3)
        ours = bits.bernoulli(rng, p, shape), bits.fusible(jax.random.key_data(rng), p, shape)
        return jax.random.bernoulli(rng, p, shape), ours

    for seed in (0, 2**31 + 5):
        expected, ours = draw(np.uint32(seed))
        for found in ours:
            np.testing.assert_array_equal(found, expected)


def test_other_generators_are_left_to_jax():
    rng = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(bits.bernoulli(rng, 0.3, (9,)), jax.random.bernoulli(rng, 0.3, (9,)))


def test_each_row_of_a_batch_of_keys_has_its_own():
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = quick.jit(jax.vmap(lambda key: bits.bernoulli(key, 0.5, (64,))))(keys)
    expected = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (64,)))(keys)
    np.testing.assert_array_equal(drawn, expected)


def test_threefrys_known_answer():
    """Of the authors' Random123: key and counter of zeros, and of ones."""
    zero, ones = np.zeros(2, np.uint32), np.full(2, 2**32 - 1, np.uint32)
    for key, expected in ((zero, (0x6B200159, 0x99BA4EFE)), (ones, (0x1CB996FC, 0xBB002BE7))):
        x, y = bits.threefry(jnp.asarray(key), *(jnp.asarray(key[i]) for i in range(2)))
        assert (int(x), int(y)) == expected


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean():
    x = jnp.full((101, 103), 3.0)
    y = np.asarray(dropped(x, 0.2, KEY))
    assert abs(np.mean(y == 0) - 0.2) < 0.02  # 5 standard deviations
    np.testing.assert_allclose(y[y != 0], 3.0 / 0.8, rtol=1e-6)


def test_dropout_is_the_identity_at_rate_0_and_outside_training():
    x = jnp.arange(7.0)
    assert dropout(x, 0.0, KEY, train=True) is x
    assert dropout(x, 0.9, KEY, train=False) is x


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 7)], ids=str)
def test_the_first_tokens_draw_what_they_would_among_all(shape):
    x = jnp.ones(shape)
    alone = dropout(x[..., :2, :], 0.5, KEY, train=True, num_tokens=5)
    np.testing.assert_array_equal(alone, dropout(x, 0.5, KEY, train=True)[..., :2, :])
