"""Losses per example, unreduced, in float32 whatever the logits' dtype: the caller averages, weights or masks."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Integer


def softmax_cross_entropy(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
    """-sum_k targets_k log softmax(logits)_k; the targets are probabilities: smoothed, mixed, a teacher's.

    >>> softmax_cross_entropy(jnp.zeros((2, 4)), one_hot(jnp.array([0, 3]), 4))
    Array([1.3862944, 1.3862944], dtype=float32)
    """
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))


def sigmoid_cross_entropy(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Binary cross-entropy of each class, targets 0..1, summed over them (Beyer et al. 2020, arXiv:2006.07159, s. 5).

    timm averages over the classes: 1 / k of this.

    >>> sigmoid_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.0, 1.0, 1.0, 0.5]]))
    Array([2.7725887], dtype=float32)
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))
    return losses.sum(axis=-1)


def multi_hot_cross_entropy(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Binary cross-entropy, averaged over the classes; every class with a share of the image is a whole target.

    DeiT III (Touvron et al. 2022, arXiv:2204.07118, s. 4): an image mixed of two shows both. Gradients are 1 / k of
    those of `sigmoid_cross_entropy`, so that clipping them to a norm of 1 changes few.

    >>> multi_hot_cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.0, 0.3, 0.7, 0.0]]))
    Array([0.6931472], dtype=float32)
    """
    return sigmoid_cross_entropy(logits, (targets > 0).astype(jnp.float32)) / logits.shape[-1]


def soft_distillation(
    student: Float[Array, "n k"], teacher: Float[Array, "n k"], temperature: float
) -> Float[Array, " n"]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits; no gradient reaches the teacher.

    Hinton et al. 2015 (arXiv:1503.02531, s. 2); the second term of eq. 2 in Touvron et al. 2021 (arXiv:2012.12877),
    whose published code divides by k besides.

    >>> soft_distillation(jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[9.0, 1.0]])), temperature=2.0).round(4)
    Array([0.5232], dtype=float32)
    """
    of_student = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    of_teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature)
    return temperature**2 * (jnp.exp(of_teacher) * (of_teacher - of_student)).sum(axis=-1)


def hard_distillation(student: Float[Array, "n k"], teacher: Float[Array, "n k"]) -> Float[Array, " n"]:
    """-log softmax(student) at the class that the teacher prefers (the second term of eq. 3 in arXiv:2012.12877).

    >>> hard_distillation(jnp.zeros((1, 2)), jnp.array([[-3.0, 5.0]]))
    Array([0.6931472], dtype=float32)
    """
    return softmax_cross_entropy(student, one_hot(teacher.argmax(axis=-1), teacher.shape[-1]))


def one_hot(labels: Integer[Array, " n"], k: int, smoothing: float = 0.0) -> Float[Array, "n k"]:
    """(1 - smoothing) * one-hot + smoothing / k (label smoothing, Szegedy et al. 2016, arXiv:1512.00567, s. 7).

    >>> one_hot(jnp.array([1]), 4, smoothing=0.2)
    Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, k), smoothing)
