"""Losses per example, unreduced, in float32 whatever the logits' dtype: the caller averages, weights or masks.

`LOSSES` has those of `task.loss` by name, each with what evaluation and messages must know of it. A new one is a
function and a call of `register`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Float64, Integer

from vit_jax.names import claim


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


Evaluated = tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]


def softmax_evaluation(x: Float64[np.ndarray, "n k"], of_label: Float64[np.ndarray, " n"]) -> Evaluated:
    """`Loss.evaluation` of softmax: -log p(label) and the largest probability."""
    largest = x.max(axis=1)
    log_total = np.log(np.exp(x - largest[:, None]).sum(axis=1))
    return log_total - (of_label - largest), np.exp(-log_total)


def sigmoid_evaluation(x: Float64[np.ndarray, "n k"], of_label: Float64[np.ndarray, " n"]) -> Evaluated:
    """`Loss.evaluation` of sigmoid: the classes' binary cross-entropies, summed, and the largest probability."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.logaddexp(0, x).sum(axis=1) - of_label, np.exp(-np.logaddexp(0, -x.max(axis=1)))


def multi_hot_evaluation(x: Float64[np.ndarray, "n k"], of_label: Float64[np.ndarray, " n"]) -> Evaluated:
    """`Loss.evaluation` of multi_hot: the mean over the classes."""
    loss, confidence = sigmoid_evaluation(x, of_label)
    return loss / x.shape[1], confidence


def softmax_guess(k: int) -> tuple[float, str]:
    """`Loss.guess` of softmax: the entropy of the class, ln k.

    Smoothed and mixed targets leave it so: they add up to 1 for each image, and the loss is linear in them.
    """
    return math.log(k), f"ln({k})"


def sigmoid_guess(k: int) -> tuple[float, str]:
    """`Loss.guess` of sigmoid: k times the entropy of "is it this one?", of probability 1/k."""
    rest = (k - 1) * math.log(k / (k - 1)) if k > 1 else 0.0
    return math.log(k) + rest, f"ln({k}) + {k - 1} ln({k}/{k - 1})"


def multi_hot_guess(k: int) -> tuple[float, str]:
    """`Loss.guess` of multi_hot: the mean over the classes. Mixed images have two, and cost more."""
    cost, formula = sigmoid_guess(k)
    return cost / k, f"({formula}) / {k}"


@dataclass(frozen=True)
class Loss:
    """A loss of `task.loss`: what a step minimises, and what the rest of the program must know of it.

    The defaults are those of a loss whose logits mean a softmax, as `softmax_cross_entropy`'s do.
    """

    # (logits [n k], targets [n k]) -> [n]; the targets are smoothed and mixed.
    per_example: Callable[[Float[Array, "n k"], Float[Array, "n k"]], Float[Array, " n"]]
    # (logits [n k], those of the labels [n]) -> (loss [n], largest probability [n]) on the host, in float64; rows of
    # logits that are not finite come as NaN, and must stay so.
    evaluation: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = softmax_evaluation
    # The least mean loss of a model that knows of k classes that they are equally frequent, and no more; its formula.
    guess: Callable[[int], tuple[float, str]] = softmax_guess
    independent: bool = False  # each class has a probability of its own, by sigmoid
    label_smoothing: bool = True  # whether smoothed targets make sense

    def probabilities(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """What the logits mean, on the host."""
        if self.independent:
            return 0.5 * (1 + np.tanh(0.5 * logits))  # does not overflow
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


LOSSES: dict[str, Loss] = {}


def register(name: str, loss: Loss) -> None:
    """Adds the loss for `task.loss=<name>`; raises `UserError` for a name that is taken."""
    claim("loss", name, loss, LOSSES.get(name))
    LOSSES[name] = loss


register("softmax", Loss(softmax_cross_entropy))
register("sigmoid", Loss(sigmoid_cross_entropy, sigmoid_evaluation, sigmoid_guess, independent=True))
register(
    "multi_hot",  # smoothing would make every class a whole target
    Loss(multi_hot_cross_entropy, multi_hot_evaluation, multi_hot_guess, independent=True, label_smoothing=False),
)
