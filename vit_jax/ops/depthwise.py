"""A depthwise convolution: each channel by a small kernel of its own, as a sum of shifted copies.

XLA's grouped convolutions are slow on CPUs: of 128 maps of 7x7 with 256 channels the forward pass takes 132 ms, as
shifted copies 3 to 9; both gradients 700 ms, here 15 to 20.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def depthwise(x: Float[Array, "n h w c"], kernel: Float[Array, "p q 1 c"]) -> Float[Array, "n h w c"]:
    """The convolution of each channel, with zeros around the map; p and q are odd."""
    return depthwise_convolution(x, kernel)


@jax.jit  # under this name `flops` counts it
def depthwise_convolution(x: Float[Array, "n h w c"], kernel: Float[Array, "p q 1 c"]) -> Float[Array, "n h w c"]:
    p, q, *_ = kernel.shape
    _, h, w, _ = x.shape
    around, kernel = _padded(x, p, q), kernel.astype(x.dtype)
    copies = [around[:, i : i + h, j : j + w] * kernel[i, j][None, None] for i in range(p) for j in range(q)]
    return sum(copies[1:], copies[0])


def _padded(x: Float[Array, "n h w c"], p: int, q: int) -> Float[Array, "n H W c"]:
    return jnp.pad(x, ((0, 0), (p // 2, p // 2), (q // 2, q // 2), (0, 0)))


def _backward(inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    dx = depthwise_convolution(dy, jnp.flip(kernel, (0, 1)))
    size = kernel.shape[0], kernel.shape[1]
    dkernel = lax.platform_dependent(x, dy, cpu=partial(row_by_row, size), default=partial(tap_by_tap, size))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


depthwise.defvjp(lambda x, kernel: (depthwise(x, kernel), (x, kernel)), _backward)


def tap_by_tap(
    size: tuple[int, int], x: Float[Array, "n h w c"], dy: Float[Array, "n h w c"]
) -> Float[Array, "taps c"]:
    """The kernel's gradient in float32, a sum over the whole map for each of its numbers."""
    _, h, w, _ = x.shape
    around = _padded(x, *size)
    shifts = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return jnp.stack([(around[:, i : i + h, j : j + w] * dy).astype(jnp.float32).sum((0, 1, 2)) for i, j in shifts])


def row_by_row(
    size: tuple[int, int], x: Float[Array, "n h w c"], dy: Float[Array, "n h w c"]
) -> Float[Array, "taps c"]:
    """The same in a loop over the map's rows, which CPUs keep in their caches: 7 times as fast."""
    (p, q), (_, h, w, c) = size, x.shape
    around = _padded(x, p, q)

    def add(total: Array, row: Array) -> tuple[Array, None]:
        rows = lax.dynamic_slice_in_dim(around, row, p, axis=1)
        of_row = lax.dynamic_index_in_dim(dy, row, axis=1, keepdims=False)
        products = [rows[:, i, j : j + w] * of_row for i in range(p) for j in range(q)]
        return total + jnp.stack([product.astype(jnp.float32).sum((0, 1)) for product in products]), None

    return lax.scan(add, jnp.zeros((p * q, c)), jnp.arange(h))[0]
