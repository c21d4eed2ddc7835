"""Max-pooling of images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "n h w c"],
    window_shape: tuple[int, int],
    strides: tuple[int, int],
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Float[Array, "n h2 w2 c"]:
    """`nn.max_pool`; on CPUs its derivative chooses among a window's entries by comparisons.

    JAX's scatters, which takes XLA's CPU code six times as long for windows of 2x2, 1.5 to 2.5 times for 3x3 at stride
    2: 7 % of `cifar10:cnn`'s step. Of equal entries the first gets the gradient, as there; in a window with NaN none
    does. Where windows do not overlap, the derivative chooses by the place of the largest entry: another 10 % in
    bfloat16.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window_shape, strides, padding)
    return _max_pool(tuple(window_shape), tuple(strides), tuple(map(tuple, padding)), x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _max_pool(window: Any, strides: Any, pads: Any, x: Array) -> Array:
    return nn.max_pool(x, window, strides, pads)


@_max_pool.defjvp
def _max_pool_jvp(window: Any, strides: Any, pads: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    plain = partial(nn.max_pool, window_shape=window, strides=strides, padding=pads)
    y = plain(x)
    apart = window == strides and not any(map(any, pads))
    return y, lax.platform_dependent(
        x,
        y,
        dx,
        cpu=partial(_chosen_apart, window) if apart else partial(_chosen, window, strides, pads),
        default=lambda x, _, dx: jax.jvp(plain, (x,), (dx,))[1],
    )


def _chosen_apart(window: Any, x: Array, y: Array, dx: Array) -> Array:
    """Of dx the entries that were largest in x, of windows that do not overlap.

    The barriers keep XLA from computing the places, and what the sum's gradient is computed from, anew for each entry.
    """
    (n, h, w, c), (p, q) = y.shape, window
    x, dx = x[:, : h * p, : w * q], dx[:, : h * p, : w * q]  # without what no window reaches
    places = [(i, j) for i in range(p) for j in range(q)]
    first = jnp.full(y.shape, len(places), jnp.int32)  # of the places, row by row; len(places): none
    for place, (i, j) in reversed(list(enumerate(places))):
        first = jnp.where(x[:, i::p, j::q] == y, jnp.int32(place), first)
    own = jnp.arange(len(places), dtype=jnp.int32).reshape(1, 1, p, 1, q, 1)
    chosen = jnp.where(lax.optimization_barrier(first)[:, :, None, :, None] == own, dx.reshape(n, h, p, w, q, c), 0)
    return lax.optimization_barrier(chosen.astype(jnp.float32).sum(axis=(2, 4)).astype(dx.dtype))


def _chosen(window: Any, strides: Any, pads: Any, x: Array, y: Array, dx: Array) -> Array:
    """Of dx the entries that were largest in x; added up in float32, which is faster than in bfloat16."""
    entries = partial(_entries, window, strides, pads, y.shape[1:3])
    dy, free = jnp.zeros(y.shape, jnp.float32), jnp.ones(y.shape, bool)
    for of_x, of_dx in zip(entries(x, -jnp.inf), entries(dx.astype(jnp.float32), 0.0), strict=True):
        dy += jnp.where((of_x == y) & free, of_dx, 0)
        free &= of_x != y
    return dy.astype(dx.dtype)


def _entries(window: Any, strides: Any, pads: Any, size: tuple[int, ...], x: Array, edge: float) -> list[Array]:
    """All windows' first entries, then their second ones, and so on; row by row."""
    n, *_, c = x.shape
    x = lax.pad(x, jnp.asarray(edge, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    ends = [(count - 1) * stride + 1 for count, stride in zip(size, strides, strict=True)]
    return [
        lax.slice(x, (0, i, j, 0), (n, i + ends[0], j + ends[1], c), (1, *strides, 1))
        for i in range(window[0])
        for j in range(window[1])
    ]
