"""Products of activations with kernels, and biases added to them."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vit_jax import platforms

Product = Any  # `(x, kernel) -> their product`
Gradients = Any  # `(x, kernel, gradient of the product) -> those of x and kernel`


def dot_general(
    x: Float[Array, "..."], kernel: Float[Array, "..."], dimension_numbers: Any, **options: Any
) -> Float[Array, "..."]:
    """`lax.dot_general`, to be given to `nn.Dense`; on CPUs its gradients are products of two matrices.

    Of activations with more axes XLA's CPU compiler copies the transpose for the gradient of every kernel: 3 to 4 % of
    a ViT's step. On TPUs a reshape that merges tokens is the copy, unless eight divides their number. In bfloat16 the
    gradients have a form of their own on CPUs: see `narrow_gradients`.

    Where x [... d] ends with the axes that the kernel [d ...] begins with, it cannot be differentiated forwards
    (`jax.jvp`).
    """
    (ends, begins), (batch, _) = dimension_numbers
    k = len(ends)
    dense = not batch and tuple(ends) == tuple(range(x.ndim - k, x.ndim)) and tuple(begins) == tuple(range(k))
    plain: Product = partial(lax.dot_general, dimension_numbers=dimension_numbers, **options)
    if not dense:
        return plain(x, kernel)
    narrow = x.dtype == kernel.dtype == jnp.bfloat16 and platforms.multiplies_bfloat16() and not any(options.values())
    tuned = partial(narrow_gradients, k) if narrow else partial(gradients, partial(matrices, k, options))
    return _dense(plain, tuned, x, kernel)


def matrices(k: int, options: dict[str, Any], x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """The product over the last k axes of x, as one of two matrices."""
    d = math.prod(kernel.shape[:k])
    y = lax.dot_general(x.reshape(-1, d), kernel.reshape(d, -1), (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[: x.ndim - k], *kernel.shape[k:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense(plain: Product, tuned: Gradients, x: Array, kernel: Array) -> Array:
    return plain(x, kernel)


def _forward(plain: Product, tuned: Gradients, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain(x, kernel), (x, kernel)


def _backward(plain: Product, tuned: Gradients, inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(*inputs, dy, cpu=tuned, default=partial(gradients, plain))


_dense.defvjp(_forward, _backward)


def gradients(product: Product, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Of x and the kernel."""
    (dx,) = jax.linear_transpose(lambda x: product(x, kernel), x)(dy)
    return dx, jax.linear_transpose(partial(product, x), kernel)(dy)[0]


def narrow_gradients(k: int, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """The same in bfloat16, with float32 sums, as products that XLA leaves to a CPU's bfloat16 units (JAX 0.12).

    Intel with AMX: dy w^T at 1,140 instead of 230 GFLOP/s by the sums' type, x^T dy at 410 to 745 instead of 150 to 200
    because x is transposed before; ViT-Ti/16's step 1.3 times as fast. A core of an AMD EPYC with AVX-512's units does
    x^T dy at up to 180 so, and at 80 to 100 without the transpose or in float32.
    """
    d = math.prod(kernel.shape[:k])
    rows, matrix, of_rows = x.reshape(-1, d), kernel.reshape(d, -1), dy.reshape(-1, kernel.size // d)
    product = partial(lax.dot_general, preferred_element_type=jnp.float32)
    dx = product(of_rows, matrix, (((1,), (1,)), ((), ())))
    if rows.shape[1] <= of_rows.shape[1]:
        dkernel = product(turned(rows), of_rows, (((1,), (0,)), ((), ())))
    else:  # the narrower factor is turned; a transpose right after the product would become a part of it
        dkernel = lax.optimization_barrier(product(turned(of_rows), rows, (((1,), (0,)), ((), ())))).T
    return dx.astype(x.dtype).reshape(x.shape), dkernel.astype(kernel.dtype).reshape(kernel.shape)


def turned(x: Float[Array, "n d"]) -> Float[Array, "d n"]:
    """The transpose, in memory: one of two axes XLA would make a part of the product that reads it."""
    n, d = x.shape
    group = math.gcd(d, 16)
    return lax.optimization_barrier(x.reshape(n, d // group, group).transpose(1, 2, 0)).reshape(d, n)


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """y [... d] plus a bias [d], whose gradient CPUs sum in float32 where y is narrower.

    XLA's CPU code takes 20 to 30 times as long to add up numbers of bfloat16 (8.8 instead of 0.4 ms for [8, 197, 768]),
    15 % of ViT-Ti/16's step, and loses what is small. Of such y it cannot be differentiated forwards (`jax.jvp`).
    """
    return _add(y, bias) if y.dtype.itemsize < 4 else _plain_add(y, bias)


def _plain_add(y: Array, bias: Array) -> Array:
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


_add = jax.custom_vjp(_plain_add)


def _add_forward(y: Array, bias: Array) -> tuple[Array, Array]:
    return _plain_add(y, bias), bias


def _add_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    def plain(dy: Array) -> Array:
        return jax.linear_transpose(lambda bias: _plain_add(jnp.zeros_like(dy), bias), bias)(dy)[0]

    def in_float32(dy: Array) -> Array:
        rows = dy.reshape(math.prod(dy.shape[: dy.ndim - bias.ndim]), bias.size)
        rows = lax.optimization_barrier(rows)  # else XLA sums over the axes one by one
        return rows.astype(jnp.float32).sum(axis=0).astype(bias.dtype).reshape(bias.shape)

    return dy, lax.platform_dependent(dy, cpu=in_float32, default=plain)


_add.defvjp(_add_forward, _add_backward)
