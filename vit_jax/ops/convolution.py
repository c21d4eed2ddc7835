"""Convolutions of images, whose gradients are fast on CPUs."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vit_jax import platforms, sharding
from vit_jax.ops.dense import turned

PIXELS = 1024  # of a group of images, about: their patches and gradients fit into a core's cache
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
    0.11). On CPUs the images' gradient is written in that order. The kernel's, which XLA does at a third of a product's
    speed, is one of products: with it `cifar10:cnn` trains 1.7 times as fast, ResNet-50 1.35 times. On CPUs with units
    for bfloat16, the convolution of training and, at stride 1, the images' gradient are products in that format, too.
    On CPUs no gradient can be differentiated forwards (`jax.jvp`).
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
    if not _narrow(x, kernel):
        return _convolution(strides, pads, x, kernel), (x, kernel)
    convolution = partial(lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=ORDER)
    tuned = sharding.on_own_images(partial(as_products, strides, pads), whole=1)
    return lax.platform_dependent(x, kernel, cpu=tuned, default=convolution), (x, kernel)


def _narrow(*factors: Array) -> bool:
    """Whether CPUs train faster with products of patches: see `as_products`."""
    bfloat16 = all(v.dtype == jnp.bfloat16 and v.size for v in factors)
    return bfloat16 and platforms.multiplies_bfloat16()


def _backward(strides: Any, pads: Any, inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *inputs, dy, cpu=partial(tuned_gradients, strides, pads), default=partial(plain_gradients, strides, pads)
    )


_convolution.defvjp(_forward, _backward)


def plain_gradients(
    strides: Any, pads: Any, x: Float[Array, "n h w c"], kernel: Float[Array, "p q c d"], dy: Float[Array, "n h2 w2 d"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "p q c d"]]:
    """Of the images and the kernel, as JAX writes them."""
    convolution = partial(lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=ORDER)
    (dx,) = jax.linear_transpose(lambda x: convolution(x, kernel), x)(dy)
    return dx, jax.linear_transpose(lambda kernel: convolution(x, kernel), kernel)(dy)[0]


def tuned_gradients(
    strides: Any, pads: Any, x: Float[Array, "n h w c"], kernel: Float[Array, "p q c d"], dy: Float[Array, "n h2 w2 d"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "p q c d"]]:
    """The same: of the images a convolution whose axes are in `ORDER`, of the kernel a sum of products."""
    narrow = _narrow(dy, kernel)
    if narrow:  # else XLA computes it entry by entry, in the groups' flat form: ResNet-50 trains 1.17 times slower
        dy = lax.optimization_barrier(dy)
    around = []
    for axis, ((low, _), stride) in enumerate(zip(pads, strides, strict=True)):
        reach = (dy.shape[1 + axis] - 1) * stride + 1  # of dy, with stride - 1 zeros between its entries
        around.append((kernel.shape[axis] - 1 - low, x.shape[1 + axis] + low - reach))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    if narrow and all(stride == 1 for stride in strides):
        dx = sharding.on_own_images(partial(as_products, strides, tuple(around)), whole=1)(dy, flipped)
    else:
        dx = lax.conv_general_dilated(dy, flipped, (1, 1), around, lhs_dilation=strides, dimension_numbers=ORDER)
    of_kernel = partial(_kernel_gradient, strides, pads, kernel.shape[:2])
    return dx, sharding.on_own_images(of_kernel, summed=True)(x, dy).astype(kernel.dtype)


def _kernel_gradient(
    strides: Any, pads: Any, window: Any, x: Float[Array, "n h w c"], dy: Float[Array, "n h2 w2 d"]
) -> Float[Array, "p q c d"]:
    """(patches of x)^T dy for a few images at a time, which stay in the cache; summed in float32."""
    (n, *_, c), (_, height, width, d) = x.shape, dy.shape
    group = _group(n, height * width)
    of_patch = math.prod(window) * c
    narrow = _narrow(x, dy)
    patches_first = of_patch <= d and not narrow  # the product is faster with the fewer rows

    def add(total: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        of_x, of_dy = (v.reshape(group, *like.shape[1:]) for v, like in zip(images, (x, dy), strict=True))
        of_x = patches(of_x, strides, pads, window, (height, width)).reshape(-1, of_patch)
        of_dy = of_dy.reshape(-1, d)
        if narrow:
            product = jnp.matmul(turned(of_dy), of_x, preferred_element_type=jnp.float32)
            # XLA makes a transpose that follows a part of the product, in a form that it cannot compute (0.10, 0.12).
            return total + lax.optimization_barrier(product), None
        factors = (of_x, of_dy) if patches_first else (of_dy, of_x)
        over_pixels = (((0,), (0,)), ((), ()))
        return total + lax.dot_general(*factors, over_pixels, preferred_element_type=jnp.float32), None

    groups = x.reshape(n // group, -1), dy.reshape(n // group, -1)  # of more axes XLA may copy all, in another order
    total = jnp.zeros((of_patch, d) if patches_first else (d, of_patch), jnp.float32)
    total, _ = lax.scan(add, total, groups)
    return (total if patches_first else total.T).reshape(*window, c, d)


def as_products(
    strides: Any, pads: Any, x: Float[Array, "n h w c"], kernel: Float[Array, "p q c d"]
) -> Float[Array, "n h2 w2 d"]:
    """The convolution of training in bfloat16, with float32 sums: (patches of x) kernel for a few images at a time.

    XLA leaves products to a CPU's bfloat16 units, and convolutions not. With this and the gradients `cifar10:cnn`
    trains 1.55 times as fast as in float32 on a core of an AMD EPYC with AVX-512, ResNet-50 1.59 times (JAX 0.12).
    """
    (n, *pixels, _), (*window, _, d) = x.shape, kernel.shape
    padded = [size + low + high for size, (low, high) in zip(pixels, pads, strict=True)]
    height, width = ((size - reach) // stride + 1 for size, reach, stride in zip(padded, window, strides, strict=True))
    group, matrix = _group(n, height * width), kernel.reshape(-1, d)

    def multiply(images: Array) -> Array:
        of_x = patches(images.reshape(group, *x.shape[1:]), strides, pads, tuple(window), (height, width))
        return jnp.matmul(of_x, matrix, preferred_element_type=jnp.float32).astype(x.dtype)

    return lax.map(multiply, x.reshape(n // group, -1)).reshape(n, height, width, d)


def _group(n: int, pixels: int) -> int:
    """How many of n images, of so many pixels in the result, one product is for."""
    return max(g for g in range(1, n + 1) if n % g == 0 and g * pixels <= max(PIXELS, pixels))


def patches(
    x: Float[Array, "n h w c"], strides: Any, pads: Any, window: Any, size: tuple[int, int]
) -> Float[Array, "n h2 w2 pqc"]:
    """What a convolution multiplies with its kernel: for each entry of its result, of this size, the window's pixels.

    First those of a row, then those of a column: p + q copies compile in less time than p q.
    """
    around = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), around)
    for axis in (2, 1):
        reach, stride = (size[axis - 1] - 1) * strides[axis - 1] + 1, strides[axis - 1]
        x = jnp.concatenate([lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window[axis - 1])], axis=-1)
    return x
