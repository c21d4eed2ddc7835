"""Products of activations with kernels."""

import math
from functools import partial
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

Product = Any  # `(x, kernel) -> their product`


def dot_general(
    x: Float[Array, "..."], kernel: Float[Array, "..."], dimension_numbers: Any, **options: Any
) -> Float[Array, "..."]:
    """`lax.dot_general`, to be given to `nn.Dense`; on CPUs its gradients are products of two matrices.

    Of activations with more axes XLA's CPU compiler copies the transpose for the gradient of every kernel: 3 to 4 % of
    a ViT's step. On TPUs a reshape that merges tokens is the copy, unless eight divides their number.

    Where x [... d] ends with the axes that the kernel [d ...] begins with, it cannot be differentiated forwards
    (`jax.jvp`).
    """
    (ends, begins), (batch, _) = dimension_numbers
    k = len(ends)
    dense = not batch and tuple(ends) == tuple(range(x.ndim - k, x.ndim)) and tuple(begins) == tuple(range(k))
    plain: Product = partial(lax.dot_general, dimension_numbers=dimension_numbers, **options)
    return _dense(plain, partial(matrices, k, options), x, kernel) if dense else plain(x, kernel)


def matrices(k: int, options: dict[str, Any], x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """The product over the last k axes of x, as one of two matrices."""
    d = math.prod(kernel.shape[:k])
    y = lax.dot_general(x.reshape(-1, d), kernel.reshape(d, -1), (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[: x.ndim - k], *kernel.shape[k:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense(plain: Product, tuned: Product, x: Array, kernel: Array) -> Array:
    return plain(x, kernel)


def _forward(plain: Product, tuned: Product, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain(x, kernel), (x, kernel)


def _backward(plain: Product, tuned: Product, inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*inputs, dy, cpu=partial(gradients, tuned), default=partial(gradients, plain))


def gradients(product: Product, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Of x and the kernel."""
    (dx,) = jax.linear_transpose(lambda x: product(x, kernel), x)(dy)
    return dx, jax.linear_transpose(partial(product, x), kernel)(dy)[0]


_dense.defvjp(_forward, _backward)
