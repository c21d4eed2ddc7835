"""Metrics of masks against counts pixel by pixel."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax.augment import VOID
from vit_jax.metrics import segmentation

K, N, H, W, RADIUS = 5, 3, 13, 17, 2
RNG = np.random.default_rng(0)


def masks() -> np.ndarray:
    """Blocks of classes with void specks; class 4 occurs in no mask of the first image."""
    found = RNG.integers(0, K, (N, 5, 6)).repeat(3, axis=1).repeat(3, axis=2)[:, :H, :W].astype(np.uint8)
    found[0][found[0] == 4] = 1
    return found


TRUTH, PREDICTED = masks(), masks()
TRUTH[RNG.random(TRUTH.shape) < 0.05] = VOID


def brute_force_confusion(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    counts = np.zeros((K, K), np.int64)
    for found, true in zip(predicted.reshape(-1), truth.reshape(-1), strict=True):
        if true != VOID:
            counts[true, found] += 1
    return counts


def test_confusion_against_a_count_of_each_pixel():
    found = quick.jit(lambda p, t: segmentation.confusion(p, t, K))(PREDICTED, TRUTH)
    for i in range(N):
        np.testing.assert_array_equal(found[i], brute_force_confusion(PREDICTED[i], TRUTH[i]))


def test_iou_against_sets_of_pixels():
    counts = brute_force_confusion(PREDICTED, TRUTH)
    counts[:, 3] = counts[3] = 0  # class 3 neither there nor predicted
    known = TRUTH != VOID
    found = segmentation.iou_per_class(counts)
    assert math.isnan(found[3])
    kept = known & (TRUTH != 3) & (PREDICTED != 3)
    for k in (0, 1, 2, 4):
        true, predicted = kept & (k == TRUTH), kept & (k == PREDICTED)
        assert found[k] == pytest.approx((true & predicted).sum() / (true | predicted).sum(), rel=1e-12)


def brute_force_edges(labels: np.ndarray, k: int) -> list[tuple[int, int]]:
    places = []
    for y in range(H):
        for x in range(W):
            around = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            others = [labels[a, b] for a, b in around if 0 <= a < H and 0 <= b < W]
            if labels[y, x] == k and any(other not in (k, VOID) for other in others):
                places.append((y, x))
    return places


def brute_force_f1(predicted: np.ndarray, truth: np.ndarray, k: int) -> float:
    found, true = brute_force_edges(np.where(truth == VOID, VOID, predicted), k), brute_force_edges(truth, k)
    if not found and not true:
        return math.nan

    def share(of: list, to: list) -> float:
        return sum(any(math.dist(a, b) <= RADIUS for b in to) for a in of) / len(of) if of else 0.0

    precision, recall = share(found, true), share(true, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_f1_against_all_pairs_of_pixels():
    truth = TRUTH.copy()
    truth[2] = 0  # one class alone has no edge
    hits = quick.jit(lambda p, t: segmentation.boundary_hits(p, t, K, RADIUS))(PREDICTED, truth)
    found = segmentation.boundary_f1_of(np.asarray(hits))
    expected = [[brute_force_f1(PREDICTED[i], truth[i], k) for k in range(K)] for i in range(N)]
    assert np.nanstd(expected) > 0.1 and np.isnan(expected[2]).sum() < K
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_disc_is_round():
    marked = np.zeros((1, 9, 9, 1), bool)
    marked[0, 4, 3] = True
    found = np.asarray(segmentation.near(jnp.asarray(marked), 3))[0, :, :, 0]
    y, x = np.mgrid[:9, :9]
    np.testing.assert_array_equal(found, (y - 4) ** 2 + (x - 3) ** 2 <= 9)
