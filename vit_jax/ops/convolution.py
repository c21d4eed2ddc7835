"""Convolutions of images, whose gradients are fast on CPUs inside loops, too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ORDER = ("NHWC", "HWIO", "NHWC")  # of the axes of images, kernel and result


def conv_general_dilated(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "p q e d"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "n h2 w2 d"]:
    """`lax.conv_general_dilated` of images, to be given to `nn.Conv`; with groups or dilation it is just that.

    XLA's fast convolutions for CPUs want the axes in `ORDER`. It turns those of gradients round itself, but not in a
    loop's body, as of accumulated gradients: a naive one takes their place there, 30 to 100 times as slow (jaxlib
    0.11). On CPUs the gradients are written in that order. They cannot be differentiated forwards (`jax.jvp`).
    """
    rates = (options.get(name) or (1,) for name in ("lhs_dilation", "rhs_dilation"))
    if options.get("feature_group_count", 1) > 1 or any(rate != 1 for pair in rates for rate in pair):
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **{"dimension_numbers": ORDER, **options})
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolution(strides, tuple(map(tuple, padding)), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(strides: Any, pads: Any, x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=ORDER)


def _forward(strides: Any, pads: Any, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(strides, pads, x, kernel), (x, kernel)


def _backward(strides: Any, pads: Any, inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *inputs, dy, cpu=partial(in_order, strides, pads), default=partial(plain_gradients, strides, pads)
    )


_convolution.defvjp(_forward, _backward)


def plain_gradients(
    strides: Any, pads: Any, x: Float[Array, "n h w c"], kernel: Float[Array, "p q c d"], dy: Float[Array, "n h2 w2 d"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "p q c d"]]:
    """Of the images and the kernel, as JAX writes them."""
    convolution = partial(lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=ORDER)
    (dx,) = jax.linear_transpose(lambda x: convolution(x, kernel), x)(dy)
    return dx, jax.linear_transpose(lambda kernel: convolution(x, kernel), kernel)(dy)[0]


def in_order(
    strides: Any, pads: Any, x: Float[Array, "n h w c"], kernel: Float[Array, "p q c d"], dy: Float[Array, "n h2 w2 d"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "p q c d"]]:
    """The same, as convolutions whose axes are in `ORDER`."""
    around_y, around_x = [], []
    for axis, ((low, _), stride) in enumerate(zip(pads, strides, strict=True)):
        size, window = x.shape[1 + axis], kernel.shape[axis]
        reach = (dy.shape[1 + axis] - 1) * stride + 1  # of dy, with stride - 1 zeros between its entries
        around_y.append((window - 1 - low, size + low - reach))
        around_x.append((low, window - 1 + reach - size - low))
    convolution = partial(lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=ORDER)
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = convolution(dy, turned, padding=around_y, lhs_dilation=strides)
    # Images are summed over, as channels were: they change places.
    dkernel = convolution(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), padding=around_x, rhs_dilation=strides)
    return dx, dkernel.transpose(1, 2, 0, 3)
