"""Losses against NumPy in float64."""

import doctest

import jax.numpy as jnp
import numpy as np

from vit_jax import losses

LOGITS = np.random.default_rng(3).normal(0, 5, (7, 5)).astype(np.float32)
TARGETS = np.random.default_rng(5).dirichlet(np.ones(5), 7).astype(np.float32)


def test_doctests():
    results = doctest.testmod(losses)
    assert results.attempted == 3 and results.failed == 0


def test_softmax_cross_entropy_with_soft_targets():
    log_p = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
    losses_ = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS))
    np.testing.assert_allclose(losses_, -(TARGETS * log_p).sum(axis=1), rtol=1e-5)


def test_sigmoid_cross_entropy_sums_over_classes():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p)).sum(axis=1)
    losses_ = losses.sigmoid_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS))
    np.testing.assert_allclose(losses_, expected, rtol=1e-5)


def test_losses_are_float32_for_bfloat16_logits():
    logits, targets = jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(TARGETS)
    for loss in (losses.softmax_cross_entropy, losses.sigmoid_cross_entropy):
        values = loss(logits, targets)
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, loss(logits.astype(jnp.float32), targets))


def test_large_logits_stay_finite():
    logits, targets = jnp.array([[1e4, -1e4, 0.0]]), losses.one_hot(jnp.array([1]), 3)
    assert losses.softmax_cross_entropy(logits, targets) == 2e4
    assert losses.sigmoid_cross_entropy(logits, targets) == 2e4 + np.float32(np.log(2))


def test_one_hot_smoothed_by_hand():
    plain = losses.one_hot(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(plain, [[0, 0, 1], [1, 0, 0]])
    smoothed = losses.one_hot(jnp.array([2, 0]), 3, smoothing=0.3)
    np.testing.assert_allclose(smoothed, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6)
