"""For the convolutional models: variables, and convolution, pooling and norms in a few lines of NumPy."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn

from tests.models.random_params import random_params


def shapes(model: nn.Module, images) -> dict:
    """Of all variables; nothing is computed."""
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def random_variables(model: nn.Module, images) -> dict:
    """Parameters and batch statistics, none of them 0 or 1."""
    rng = np.random.default_rng(17)
    statistics = jax.tree.map(
        lambda leaf: rng.uniform(0.3, 1.7, leaf.shape).astype(np.float32), shapes(model, images).get("batch_stats", {})
    )
    return {"params": random_params(model, images, train=False)} | ({"batch_stats": statistics} if statistics else {})


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, pad: tuple[int, int]) -> np.ndarray:
    """`pad` zeros before and after, on both axes; kernel [height width c features]."""
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    p, q = kernel.shape[:2]
    h, w = (x.shape[1] - p) // stride + 1, (x.shape[2] - q) // stride + 1
    taps = (
        x[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride] @ kernel[i, j]
        for i, j in np.ndindex(p, q)
    )
    return sum(taps)


def max_pool(x: np.ndarray, pad: tuple[int, int], outside: float) -> np.ndarray:
    """3x3 with stride 2, on a map surrounded by `outside`."""
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return windows.max(axis=(-2, -1))


def batch_norm(x: np.ndarray, params: dict, statistics: dict, epsilon: float) -> np.ndarray:
    """In evaluation."""
    return (x - statistics["mean"]) / np.sqrt(statistics["var"] + epsilon) * params["scale"] + params["bias"]


def group_norm(x: np.ndarray, params: dict, epsilon: float, groups: int = 32) -> np.ndarray:
    n, h, w, c = x.shape
    y = x.reshape(n, h, w, groups, c // groups).astype(np.float64)
    mean, variance = y.mean(axis=(1, 2, 4), keepdims=True), y.var(axis=(1, 2, 4), keepdims=True)
    return ((y - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * params["scale"] + params["bias"]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)
