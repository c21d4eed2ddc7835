"""Attention's products, and the values' means weighted by a softmax.

Shapes: `n` images, `a` heads, `l` queries, `m` keys and values, `e` size per head.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vit_jax import platforms
from vit_jax.ops.remat import KEPT


def attend(logits: Float[Array, "n a l m"], values: Float[Array, "n a m e"]) -> Float[Array, "n a l e"]:
    """softmax(logits) values.

    Its gradient takes the sums that softmax's needs from the result, as FlashAttention does (Dao et al. 2022,
    arXiv:2205.14135, appendix B.2), e numbers for each query instead of m: 3 % of ViT-Ti/16's step on a CPU and 15 % of
    its memory, 2 % of ViT-B/16's modelled step on a TPU.

    In bfloat16 `attend` cannot be differentiated forwards where `weighted` cannot.
    """
    return (_narrow_attend if _narrow(values) else _attend)(logits, values)


@jax.custom_jvp
def _attend(logits: Array, values: Array) -> Array:
    return checkpoint_name(jnp.matmul(softmax(logits).astype(values.dtype), values), KEPT)


@_attend.defjvp
def _attend_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (logits, values), (d_logits, d_values) = primals, tangents
    attention = softmax(logits)
    weights = attention.astype(values.dtype)
    result = checkpoint_name(jnp.matmul(weights, values), KEPT)
    change = attention * d_logits
    of_sum = change.sum(axis=-1, keepdims=True) * result.astype(change.dtype)
    d_result = jnp.matmul(change.astype(values.dtype), values) - of_sum.astype(values.dtype)
    return result, d_result + jnp.matmul(weights, d_values)


@jax.custom_vjp
def _narrow_attend(logits: Array, values: Array) -> Array:
    return _narrow_forward(logits, values)[0]


def _narrow_forward(logits: Array, values: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    attention = softmax(logits)
    result = checkpoint_name(weighted(attention.astype(values.dtype), values), KEPT)
    return result, (attention, values, result)


def _narrow_backward(kept: tuple[Array, Array, Array], d_result: Array) -> tuple[Array, Array]:
    attention, values, result = kept
    d_weights, d_values = jax.vjp(weighted, attention.astype(values.dtype), values)[1](d_result)
    of_sum = (d_result.astype(attention.dtype) * result.astype(attention.dtype)).sum(axis=-1, keepdims=True)
    return attention * (d_weights.astype(attention.dtype) - of_sum), d_values


_narrow_attend.defvjp(_narrow_forward, _narrow_backward)


def softmax(logits: Float[Array, "n a l m"]) -> Float[Array, "n a l m"]:
    """`nn.softmax`, to the bit, whose largest logits and sums have a name: two numbers for each query."""
    largest = checkpoint_name(lax.stop_gradient(logits.max(axis=-1, keepdims=True)), KEPT)
    powers = jnp.exp(logits - largest)
    return powers / checkpoint_name(powers.sum(axis=-1, keepdims=True), KEPT)


def attention_logits(queries: Float[Array, "n a l e"], keys: Float[Array, "n a m e"]) -> Float[Array, "n a l m"]:
    """queries keys^T, in float32; the queries are scaled already. See `weighted` for bfloat16."""
    return (_narrow_logits if _narrow(queries, keys) else _plain_logits)(queries, keys)


def weighted(weights: Float[Array, "n a l m"], values: Float[Array, "n a m e"]) -> Float[Array, "n a l e"]:
    """The sums of the values, weighted.

    XLA leaves a product of bfloat16 numbers to a CPU's units only if both factors lie in memory in the order of their
    axes. Heads do not: those of a token lie side by side. Transposed factors do not either. So XLA widened all six
    products of attention and its gradient to float32. For 16 images of ViT-Ti/16, those of one block took 43 ms, and
    28 ms in float32. With factors that are copied first they take 22 ms (a core of an AMD EPYC with AVX-512's units,
    JAX 0.12). A softmax's weights were just computed, and lie in order: the smaller factor is copied or transposed.

    Such products cannot be differentiated forwards (`jax.jvp`). Heads that a mesh divides among CPUs are gathered.
    """
    return _narrow_weighted(weights, values) if _narrow(weights, values) else jnp.matmul(weights, values)


def _narrow(*factors: Array) -> bool:
    return all(factor.dtype == jnp.bfloat16 for factor in factors) and platforms.multiplies_bfloat16()


@jax.custom_vjp
def _narrow_logits(queries: Array, keys: Array) -> Array:
    def tuned(queries: Array, keys: Array) -> Array:
        product = partial(jnp.matmul, preferred_element_type=jnp.float32)
        return product(_copied(queries), _copied(keys.swapaxes(2, 3)))

    return lax.platform_dependent(queries, keys, cpu=tuned, default=_plain_logits)


def _plain_logits(queries: Array, keys: Array) -> Array:
    return jnp.matmul(queries, keys.swapaxes(2, 3)).astype(jnp.float32)


def _logits_backward(factors: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    def tuned(queries: Array, keys: Array, change: Array) -> tuple[Array, Array]:
        change = change.astype(keys.dtype)
        of_keys = lax.optimization_barrier(jnp.matmul(_transposed(queries), change)).swapaxes(2, 3)
        return jnp.matmul(change, _copied(keys)), of_keys

    return lax.platform_dependent(*factors, change, cpu=tuned, default=partial(_of_plain, _plain_logits))


_narrow_logits.defvjp(lambda *factors: (_narrow_logits(*factors), factors), _logits_backward)


@jax.custom_vjp
def _narrow_weighted(weights: Array, values: Array) -> Array:
    def tuned(weights: Array, values: Array) -> Array:
        return jnp.matmul(weights, _copied(values))

    return lax.platform_dependent(weights, values, cpu=tuned, default=jnp.matmul)


def _weighted_backward(factors: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    def tuned(weights: Array, values: Array, change: Array) -> tuple[Array, Array]:
        of_values = lax.optimization_barrier(jnp.matmul(_transposed(change), weights)).swapaxes(2, 3)
        return jnp.matmul(_copied(change), _copied(values.swapaxes(2, 3))), of_values

    return lax.platform_dependent(*factors, change, cpu=tuned, default=partial(_of_plain, jnp.matmul))


_narrow_weighted.defvjp(lambda *factors: (_narrow_weighted(*factors), factors), _weighted_backward)


def _of_plain(product: Callable[..., Array], x: Array, y: Array, change: Array) -> tuple[Array, Array]:
    """The gradients of the plain product."""
    of_x, of_y = jax.vjp(product, x, y)[1](change)
    return of_x, of_y


def _copied(x: Float[Array, "n a l k"]) -> Float[Array, "n a l k"]:
    """The same in the order of its axes. A copy with four axes would keep the old order."""
    n, a, l, k = x.shape
    return lax.optimization_barrier(x.reshape(n * a, l, k)).reshape(x.shape)


def _transposed(x: Float[Array, "n a l k"]) -> Float[Array, "n a k l"]:
    """The transpose of each head, in memory, from where those of a token lie side by side."""
    n, a, l, k = x.shape
    columns = x.swapaxes(1, 2).reshape(n, l, a * k).swapaxes(1, 2)
    return lax.optimization_barrier(columns).reshape(n, a, k, l)
