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
    a ViT's step. On TPUs a reshape that merges tokens is the copy, unless eight divides their number. CPUs with units
    for bfloat16 multiply such numbers by `narrow`.

    Where x [... d] ends with the axes that the kernel [d ...] begins with, it cannot be differentiated forwards
    (`jax.jvp`).
    """
    (ends, begins), (batch, _) = dimension_numbers
    k = len(ends)
    dense = not batch and tuple(ends) == tuple(range(x.ndim - k, x.ndim)) and tuple(begins) == tuple(range(k))
    plain: Product = partial(lax.dot_general, dimension_numbers=dimension_numbers, **options)
    if not dense:
        return plain(x, kernel)
    if x.dtype == kernel.dtype == jnp.bfloat16 and platforms.multiplies_bfloat16():
        return _dense(plain, partial(narrow, k), partial(narrow_gradients, k), x, kernel)
    return _dense(plain, plain, partial(gradients, partial(matrices, k, options)), x, kernel)


def matrices(k: int, options: dict[str, Any], x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Array:
    """The product over the last k axes of x, as one of two matrices."""
    d = math.prod(kernel.shape[:k])
    y = lax.dot_general(x.reshape(-1, d), kernel.reshape(d, -1), (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[: x.ndim - k], *kernel.shape[k:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dense(plain: Product, tuned: Product, tuned_gradients: Gradients, x: Array, kernel: Array) -> Array:
    return plain(x, kernel) if tuned is plain else lax.platform_dependent(x, kernel, cpu=tuned, default=plain)


def _forward(
    plain: Product, tuned: Product, tuned_gradients: Gradients, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _dense(plain, tuned, tuned_gradients, x, kernel), (x, kernel)


def _backward(
    plain: Product, tuned: Product, tuned_gradients: Gradients, inputs: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    return lax.platform_dependent(*inputs, dy, cpu=tuned_gradients, default=partial(gradients, plain))


_dense.defvjp(_forward, _backward)


def gradients(product: Product, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Of x and the kernel."""
    (dx,) = jax.linear_transpose(lambda x: product(x, kernel), x)(dy)
    return dx, jax.linear_transpose(partial(product, x), kernel)(dy)[0]


def narrow(k: int, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """`matrices` in bfloat16, with float32 sums: so XLA leaves the product to a CPU's bfloat16 units, in all releases.

    AMD EPYC with AVX-512, GFLOP/s of a core: 95 in float32; 95 in bfloat16 under JAX 0.10, 190 with these sums.
    """
    return matrices(k, {"preferred_element_type": jnp.float32}, x, kernel).astype(x.dtype)


def narrow_gradients(k: int, x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Its gradients, as such products.

    GFLOP/s, for dy w^T and x^T dy: 1,140 and 410 to 745 instead of 230 and 150 to 200 (Intel with AMX, JAX 0.12); 190
    and 170 instead of 95 and 80 to 95 (a core of an AMD EPYC with AVX-512, JAX 0.10).
    """
    d = math.prod(kernel.shape[:k])
    rows, matrix, of_rows = x.reshape(-1, d), kernel.reshape(d, -1), dy.reshape(-1, kernel.size // d)
    product = partial(lax.dot_general, preferred_element_type=jnp.float32)
    dx = product(of_rows, matrix, (((1,), (1,)), ((), ())))
    dkernel = product(turned(rows), of_rows, (((1,), (0,)), ((), ())))
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
        return dy.astype(jnp.float32).sum(range(dy.ndim - bias.ndim)).astype(bias.dtype)

    return dy, lax.platform_dependent(dy, cpu=in_float32, default=plain)


_add.defvjp(_add_forward, _add_backward)
