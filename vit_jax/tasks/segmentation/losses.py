"""Losses of masks, one number for each image: an image without a known pixel has the loss 0.

Each image counts alike, so the mean of a batch is the mean of its parts, however it is divided.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vit_jax.augment import VOID


def cross_entropy(
    logits: Float[Array, "n h w k"], mask: UInt8[Array, "n h w"], weights: Float[Array, " k"] | None = None
) -> Float[Array, " n"]:
    """The mean over the known pixels, each times the weight of its class."""
    of_label = one_hot(mask, logits.shape[-1])
    chosen = of_label if weights is None else of_label * weights[None, None, None]
    surprise = -(chosen * jax.nn.log_softmax(logits)).sum(axis=(1, 2, 3))
    return surprise / jnp.maximum((mask != VOID).sum(axis=(1, 2)), 1)


def dice(logits: Float[Array, "n h w k"], mask: UInt8[Array, "n h w"]) -> Float[Array, " n"]:
    """1 - 2 |p y| / (|p| + |y|), p the probabilities of known pixels, over the classes that the image shows.

    The soft Dice coefficient (Milletari et al. 2016, arXiv:1606.04797, s. 3) without squares, one for each class.
    """
    y = one_hot(mask, logits.shape[-1])
    p = jax.nn.softmax(logits) * (mask != VOID)[..., None]
    overlap, sizes, there = ((p * y).sum(axis=(1, 2)), (p + y).sum(axis=(1, 2)), y.any(axis=(1, 2)))
    of_class = 1 - 2 * overlap / jnp.maximum(sizes, 1e-6)
    return (of_class * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1)


def one_hot(mask: UInt8[Array, "n h w"], k: int) -> Float[Array, "n h w {k}"]:
    """1 at each pixel's class; zeros at void ones."""
    return jax.nn.one_hot(mask.astype(jnp.int32), k)
