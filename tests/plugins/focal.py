"""The focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 4) with gamma = 2: what is easy counts less."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vit_jax import losses


def focal(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, " n"]:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(targets * (1 - jnp.exp(log_p)) ** 2 * log_p).sum(axis=-1)


def evaluation(logits: np.ndarray, of_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each example and the probability of its most probable class, on the host."""
    cross_entropy, confidence = losses.softmax_evaluation(logits, of_label)
    return (1 - np.exp(-cross_entropy)) ** 2 * cross_entropy, confidence


def guess(k: int) -> tuple[float, str]:
    """The loss of a model that takes all classes for equally probable, for the warning that a run learns nothing."""
    return (1 - 1 / k) ** 2 * math.log(k), f"(1 - 1/{k})^2 ln({k})"


losses.register("focal", losses.Loss(focal, evaluation, guess))
