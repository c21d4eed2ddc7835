"""Metrics of masks: what a device counts of each image, and what the counts of a whole split amount to.

`k` classes; `VOID` pixels, which belong to none, count nowhere.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from vit_jax.augment import VOID
from vit_jax.metrics.registry import Metric, register

register("mean_iou", Metric("mean IoU", "mIoU", brief=True))
register("mean_iou_tta", Metric("mean IoU, test-time augmentation", "mIoU TTA"))
register("iou", Metric("IoU", "IoU"))  # of one class
register("pixel_accuracy", Metric("pixel accuracy", "pixels", brief=True))
register("boundary_f1", Metric("boundary F1", "BF"))


def confusion(predicted: UInt8[Array, "n h w"], truth: UInt8[Array, "n h w"], k: int) -> Int[Array, "n {k} {k}"]:
    """Pixels of each true class (row) that are predicted as each class (column), for each image."""
    true, found = (jax.nn.one_hot(labels.astype(jnp.int32), k) for labels in (truth, predicted))
    return jnp.einsum("nhwk,nhwq->nkq", true, found).astype(jnp.int32)  # exact below 2**24 pixels


def edges(labels: UInt8[Array, "n h w"], k: int) -> Bool[Array, "n h w {k}"]:
    """Pixels of each class beside one of another class: above, below, left or right."""
    padded = jnp.pad(labels, ((0, 0), (1, 1), (1, 1)), constant_values=VOID)
    h, w = labels.shape[1:]
    others = (padded[:, y : y + h, x : x + w] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)))
    beside = jnp.stack([(other != labels) & (other != VOID) for other in others]).any(axis=0)
    return beside[..., None] & (labels[..., None] == jnp.arange(k)[None, None, None])


def near(marked: Bool[Array, "n h w k"], radius: int) -> Bool[Array, "n h w k"]:
    """Pixels no further than `radius` from one that is marked, row by row of the disc."""
    h, w = marked.shape[1:3]
    around = jnp.pad(marked.astype(jnp.int32), ((0, 0), (radius, radius), (radius + 1, radius), (0, 0)))
    counts = jnp.cumsum(around, axis=2)
    found = jnp.zeros_like(marked)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - dy**2)
        rows = counts[:, radius + dy : radius + dy + h]
        found |= rows[:, :, radius + 1 + reach :][:, :, :w] > rows[:, :, radius - reach :][:, :, :w]
    return found


def boundary_hits(
    predicted: UInt8[Array, "n h w"], truth: UInt8[Array, "n h w"], k: int, radius: int
) -> Int[Array, "n {k} 4"]:
    """Edge pixels of each class: predicted ones near true ones, all predicted, true ones near predicted, all true."""
    found, true = edges(jnp.where(truth == VOID, VOID, predicted), k), edges(truth, k)
    counted = found & near(true, radius), found, true & near(found, radius), true
    return jnp.stack([x.sum(axis=(1, 2)) for x in counted], axis=-1).astype(jnp.int32)


def boundary_f1_of(hits: Integer[np.ndarray, "n k 4"]) -> Float[np.ndarray, "n k"]:
    """The F1 of each class's edges in each image (Csurka et al. 2013, BMVC); NaN where neither has any."""
    near_true, predicted, near_predicted, true = np.moveaxis(hits.astype(np.float64), 2, 0)
    precision, recall = near_true / np.maximum(predicted, 1), near_predicted / np.maximum(true, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where(predicted + true > 0, f1, np.nan)


def iou_per_class(confusion: Integer[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Intersection over union of each class; NaN of a class that is neither there nor predicted."""
    both = np.diag(confusion).astype(np.float64)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)
