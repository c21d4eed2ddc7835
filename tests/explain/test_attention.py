"""Rollout, its gradient-weighted kind and distances, on attention that is made by hand."""

import numpy as np
import pytest

from vit_jax.explain.attention import mean_distances, roll_out, roll_out_gradients

RNG = np.random.default_rng(0)


def random_attention(n: int, a: int, l: int) -> np.ndarray:
    found = RNG.random((n, a, l, l)).astype(np.float32)
    return found / found.sum(axis=-1, keepdims=True)


def test_rollout_is_the_product_of_mixed_attention():
    layers = [random_attention(2, 3, 5) for _ in range(4)]
    found = np.asarray(roll_out(layers))
    for image in range(2):
        expected = np.eye(5)
        for layer in layers:
            expected = (0.5 * layer[image].mean(axis=0) + 0.5 * np.eye(5)) @ expected
        np.testing.assert_allclose(found[image], expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_rollout_of_two_known_layers():
    """Token 0 reads token 1 in the second layer, which has read token 2 in the first."""
    first, second = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    first[1], second[0] = (0, 0, 1), (0, 1, 0)
    found = np.asarray(roll_out([first[None, None], second[None, None]]))[0]
    np.testing.assert_allclose(found[0], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(found[1], [0, 0.5, 0.5])


def test_gradients_weigh_attention_and_negative_ones_do_not_count():
    layers = [random_attention(2, 3, 5) for _ in range(4)]
    gradients = [RNG.normal(size=(2, 3, 5, 5)).astype(np.float32) for _ in range(4)]
    found = np.asarray(roll_out_gradients(layers, gradients))
    for image in range(2):
        expected = np.eye(5)
        for layer, gradient in zip(layers, gradients, strict=True):
            weighted = np.mean([np.maximum(a * g, 0) for a, g in zip(layer[image], gradient[image], strict=True)], 0)
            expected = expected + weighted @ expected
        np.testing.assert_allclose(found[image], expected, rtol=1e-4)
    none = roll_out_gradients(layers, [-np.abs(gradient) for gradient in gradients])
    np.testing.assert_array_equal(np.asarray(none)[1], np.eye(5))


def test_distance_of_known_attention():
    """Of patches of 5 x 7 pixels, 2 x 3 of them: one head looks aside, the other up or down."""
    right = np.zeros((1, 2, 7, 7), np.float32)
    right[..., 0] = 0.9  # of the class token, which has no place
    for patch in range(6):
        neighbour = patch + 1 if patch % 3 < 2 else patch - 1
        right[0, 0, 1 + patch, 1 + neighbour] = 0.1
        right[0, 1, 1 + patch, 1 + (patch + 3) % 6] = 0.1
    found = np.asarray(mean_distances([right, right], (2, 3), (5.0, 7.0)))
    assert found.shape == (1, 2, 2)
    np.testing.assert_allclose(found[0], [[7, 5], [7, 5]], rtol=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (3, 1)])
def test_distance_of_uniform_attention(grid):
    h, w = grid
    places = [(y * 4, x * 6) for y in range(h) for x in range(w)]
    expected = np.mean([np.hypot(a[0] - b[0], a[1] - b[1]) for a in places for b in places])
    uniform = np.full((1, 1, h * w, h * w), 1 / (h * w), np.float32)
    assert float(mean_distances([uniform], grid, (4.0, 6.0))[0, 0, 0]) == pytest.approx(expected, rel=1e-5)
