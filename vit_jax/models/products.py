"""Products of activations with kernels, and their layout, as each platform's compiler wants them."""

import math
from typing import Any

from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from vit_jax import sharding


def dot_general(
    x: Float[Array, "..."], kernel: Float[Array, "..."], dimension_numbers: Any, **options: Any
) -> Float[Array, "..."]:
    """`lax.dot_general`; on CPUs a product of two matrices, where x [... d] ends with what kernel [d ...] begins with.

    With more axes XLA copies the activations, transposed, for the gradient of every kernel: 3 to 4 % of a ViT's step.
    On TPUs a reshape that merges tokens is the copy, unless eight divides their number.
    """
    (ends, begins), (batch, _) = dimension_numbers
    k, first = len(ends), x.ndim - len(ends)
    matrices = not batch and tuple(ends) == tuple(range(first, x.ndim)) and tuple(begins) == tuple(range(k))
    if not matrices or sharding.devices_of_activations()[0] != "cpu":
        return lax.dot_general(x, kernel, dimension_numbers, **options)
    d = math.prod(x.shape[first:])
    y = lax.dot_general(x.reshape(-1, d), kernel.reshape(d, -1), (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[:first], *kernel.shape[k:])


def row_major(x: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """x, and its gradient, held to the usual layout on GPUs; elsewhere x as it is.

    A parameter that is added to every image, as positions are, has a gradient that sums over images. XLA wants these
    side by side for that, on GPUs, and gives all activations that layout, which no product or kernel of attention
    takes: without this kernels that transpose took a sixth of ViT-B/16's step on an H100 (benchmarks/README.md).
    `jax.export` refuses a program with such a constraint unless its checks are switched off.
    """
    if sharding.devices_of_activations()[0] != "gpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))
