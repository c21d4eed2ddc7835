"""Losses against NumPy in float64."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax import losses, metrics

LOGITS = np.random.default_rng(3).normal(0, 5, (7, 5)).astype(np.float32)
TARGETS = np.random.default_rng(5).dirichlet(np.ones(5), 7).astype(np.float32)


def test_doctests():
    results = doctest.testmod(losses)
    assert results.attempted == 6 and results.failed == 0


def test_cross_entropies_of_soft_targets_are_summed_over_the_classes():
    x, given = LOGITS.astype(np.float64), (jnp.asarray(LOGITS), jnp.asarray(TARGETS))
    softmax = -(TARGETS * (x - np.log(np.exp(x).sum(axis=1, keepdims=True)))).sum(axis=1)
    np.testing.assert_allclose(losses.softmax_cross_entropy(*given), softmax, rtol=1e-5)
    p = 1 / (1 + np.exp(-x))
    sigmoid = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p)).sum(axis=1)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(*given), sigmoid, rtol=1e-5)


def test_multi_hot_by_hand():
    """Two classes of four are there, whatever their shares: (2 log(1 + e) + 2 log(1 + 1/e)) / 4 at logits of +-1."""
    logits = jnp.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [3.0, 0.0, 0.0, 0.0]])
    targets = jnp.array([[0.9, 0.1, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    far, near, log2 = np.log1p(np.e), np.log1p(np.exp(-1)), np.log(2)
    expected = [(far + near) / 2, near, (np.log1p(np.exp(-3)) + 3 * log2) / 4]
    np.testing.assert_allclose(losses.multi_hot_cross_entropy(logits, targets), expected, rtol=1e-6)
    gradient = quick.jit(jax.grad(lambda x: losses.multi_hot_cross_entropy(x, targets).sum()))(logits)
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(
        gradient[1], np.array([sigmoid - 1, sigmoid - 1, 1 - sigmoid, 1 - sigmoid]) / 4, rtol=1e-5
    )


def test_losses_are_float32_for_bfloat16_logits():
    logits, targets = jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(TARGETS)
    for loss in (losses.softmax_cross_entropy, losses.sigmoid_cross_entropy, losses.multi_hot_cross_entropy):
        values = loss(logits, targets)
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, loss(logits.astype(jnp.float32), targets))


def test_large_logits_stay_finite():
    logits, targets = jnp.array([[1e4, -1e4, 0.0]]), losses.one_hot(jnp.array([1]), 3)
    assert losses.softmax_cross_entropy(logits, targets) == 2e4
    assert losses.sigmoid_cross_entropy(logits, targets) == 2e4 + np.float32(np.log(2))
    np.testing.assert_allclose(losses.soft_distillation(-logits, logits, 1.0), [2e4], rtol=1e-6)
    for name, expected in {"softmax": [1, 0, 0], "sigmoid": [1, 0, 0.5]}.items():
        np.testing.assert_allclose(losses.LOSSES[name].probabilities(np.asarray(logits)), [expected])


def test_one_hot_smoothed_by_hand():
    plain = losses.one_hot(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(plain, [[0, 0, 1], [1, 0, 0]])
    smoothed = losses.one_hot(jnp.array([2, 0]), 3, smoothing=0.3)
    np.testing.assert_allclose(smoothed, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6)


def test_soft_distillation_is_the_divergence_of_softened_probabilities():
    student, teacher = LOGITS, LOGITS[::-1]
    p, q = (np.exp(x.astype(np.float64) / 3) for x in (teacher, student))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    found = losses.soft_distillation(jnp.asarray(student), jnp.asarray(teacher), 3.0)
    np.testing.assert_allclose(found, 9 * (p * np.log(p / q)).sum(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        losses.soft_distillation(jnp.asarray(teacher), jnp.asarray(teacher), 3.0), np.zeros(7)
    )


def test_a_hot_temperature_matches_logits():
    """Hinton et al., eq. 4: up to T^-1 the loss is half the squared distance of centred logits, over k."""
    student, teacher = (jnp.asarray(x - x.mean(axis=1, keepdims=True)) / 10 for x in (LOGITS, LOGITS[::-1]))
    found = losses.soft_distillation(student, teacher, 100.0)
    np.testing.assert_allclose(found, ((student - teacher) ** 2).sum(axis=1) / 10, rtol=0.03, atol=1e-3)


def test_hard_distillation_is_the_cross_entropy_of_the_teachers_decision():
    teacher = jnp.asarray(LOGITS[::-1])
    expected = losses.softmax_cross_entropy(jnp.asarray(LOGITS), losses.one_hot(teacher.argmax(axis=1), 5))
    np.testing.assert_array_equal(losses.hard_distillation(jnp.asarray(LOGITS), teacher), expected)


def test_distillation_teaches_the_student_alone():
    student, teacher = jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1])
    for loss in (
        lambda s, t: losses.soft_distillation(s, t, 2.0).sum(),
        lambda s, t: losses.hard_distillation(s, t).sum(),
    ):
        of_student, of_teacher = quick.jit(jax.grad(loss, argnums=(0, 1)))(student, teacher)
        assert (abs(of_student).sum(axis=1) > 0).all()
        np.testing.assert_array_equal(of_teacher, np.zeros_like(LOGITS))


def test_smoothing_before_or_after_mixing_is_the_same():
    a, b = jnp.array([1, 4]), jnp.array([0, 4])
    smoothed = 0.3 * losses.one_hot(a, 5, 0.1) + 0.7 * losses.one_hot(b, 5, 0.1)
    mixed = 0.3 * losses.one_hot(a, 5) + 0.7 * losses.one_hot(b, 5)
    np.testing.assert_allclose(smoothed, 0.9 * mixed + 0.1 / 5, rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_evaluation_has_the_metrics_bits(name):
    logits = np.concatenate([LOGITS, [[1e4, -1e4, 0, 0, 0], [np.nan, 0, 0, 0, 0], [np.inf, 1, 0, 0, 0]]])
    labels = np.arange(len(logits)) % 5
    expected = metrics.per_example(logits, labels, name)
    x = logits.astype(np.float64)
    x[~np.isfinite(x).all(axis=1)] = np.nan
    loss, confidence = losses.LOSSES[name].evaluation(x, x[np.arange(len(x)), labels])
    np.testing.assert_array_equal(loss, expected.loss)
    np.testing.assert_array_equal(confidence, expected.confidence)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_evaluation_is_the_loss_of_training(name):
    labels = np.arange(len(LOGITS)) % 5
    of_training = losses.LOSSES[name].per_example(jnp.asarray(LOGITS), losses.one_hot(jnp.asarray(labels), 5))
    x = LOGITS.astype(np.float64)
    found, confidence = losses.LOSSES[name].evaluation(x, x[np.arange(len(x)), labels])
    np.testing.assert_allclose(found, of_training, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(confidence, losses.LOSSES[name].probabilities(x).max(axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_guessing_costs_the_least_of_equal_logits(name):
    loss = losses.LOSSES[name]
    for k in (2, 7, 101):
        cost, formula = loss.guess(k)
        assert cost == pytest.approx(eval(formula.replace(" ln", " * ln").replace("+ * ln", "+ ln"), {"ln": math.log}))
        logit = math.log(1 / (k - 1)) if loss.independent else 0.0  # of probability 1 / k
        logits, targets = np.full((1, k), logit, np.float32), np.eye(k, dtype=np.float32)[[k // 2]]
        assert cost == pytest.approx(float(quick.jit(loss.per_example)(logits, targets)[0]), rel=1e-5)
    assert loss.guess(1)[0] == 0


def test_only_multi_hot_refuses_smoothed_targets():
    assert [name for name, loss in losses.LOSSES.items() if not loss.label_smoothing] == ["multi_hot"]
    assert [name for name, loss in losses.LOSSES.items() if loss.independent] == ["sigmoid", "multi_hot"]
