"""Attention's products, and the values' means weighted by a softmax.

Shapes: `n` images, `a` heads, `l` queries, `m` keys and values, `e` size per head.
"""

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

    Where `matmul` has its own form it cannot be differentiated forwards (`jax.jvp`).
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
    result = checkpoint_name(matmul(attention.astype(values.dtype), values), KEPT)
    return result, (attention, values, result)


def _narrow_backward(kept: tuple[Array, Array, Array], d_result: Array) -> tuple[Array, Array]:
    attention, values, result = kept
    d_weights, d_values = jax.vjp(matmul, attention.astype(values.dtype), values)[1](d_result)
    of_sum = (d_result.astype(attention.dtype) * result.astype(attention.dtype)).sum(axis=-1, keepdims=True)
    return attention * (d_weights.astype(attention.dtype) - of_sum), d_values


_narrow_attend.defvjp(_narrow_forward, _narrow_backward)


def softmax(logits: Float[Array, "n a l m"]) -> Float[Array, "n a l m"]:
    """`nn.softmax`, to the bit, whose largest logits and sums have a name: two numbers for each query."""
    largest = checkpoint_name(lax.stop_gradient(logits.max(axis=-1, keepdims=True)), KEPT)
    powers = jnp.exp(logits - largest)
    return powers / checkpoint_name(powers.sum(axis=-1, keepdims=True), KEPT)


def matmul(x: Float[Array, "n a l k"], y: Float[Array, "n a k m"]) -> Float[Array, "n a l m"]:
    """`jnp.matmul` of what attention multiplies; in bfloat16 with the factors in memory as a CPU's units want them.

    XLA leaves a product to these units only if both factors lie in the order in which they are written. Heads do not,
    beside which those of the same token lie, nor does a factor that the gradient transposes. XLA widens such factors to
    float32, and so all six products of attention and its gradient. ViT-Ti/16 with 16 images needs 43 ms for the
    attention of one block and its gradient so, 28 ms in float32, and 21 ms with factors that are copied first (a core
    of an AMD EPYC with AVX-512's units, JAX 0.12).

    Such products cannot be differentiated forwards (`jax.jvp`).
    """
    return _matmul(x, y) if _narrow(x, y) else jnp.matmul(x, y)


def _narrow(*factors: Array) -> bool:
    return all(factor.dtype == jnp.bfloat16 for factor in factors) and platforms.multiplies_bfloat16()


@jax.custom_vjp
def _matmul(x: Array, y: Array) -> Array:
    return lax.platform_dependent(x, y, cpu=_of_copies, default=jnp.matmul)


def _matmul_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, y), (x, y)


def _matmul_backward(factors: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    def plain(x: Array, y: Array, dz: Array) -> tuple[Array, Array]:
        dx, dy = jax.vjp(jnp.matmul, x, y)[1](dz)
        return dx, dy

    def tuned(x: Array, y: Array, dz: Array) -> tuple[Array, Array]:
        dx = _of_copies(dz, y.swapaxes(2, 3))
        if x.shape[3] <= dz.shape[3]:
            return dx, jnp.matmul(_transposed(x), dz)
        return dx, lax.optimization_barrier(jnp.matmul(_transposed(dz), x)).swapaxes(2, 3)

    return lax.platform_dependent(*factors, dz, cpu=tuned, default=plain)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _of_copies(x: Array, y: Array) -> Array:
    """The product; the wider factor, logits or a softmax, was just computed and lies well."""
    return jnp.matmul(x if x.shape[3] > y.shape[3] else _copied(x), _copied(y))


def _copied(x: Float[Array, "n a l k"]) -> Float[Array, "n a l k"]:
    """The same in the order of its axes. Of four axes XLA would keep the old order."""
    n, a, l, k = x.shape
    return lax.optimization_barrier(x.reshape(n * a, l, k)).reshape(x.shape)


def _transposed(x: Float[Array, "n a l k"]) -> Float[Array, "n a k l"]:
    """The transpose of each head, in memory, from where those of a token lie beside each other."""
    n, a, l, k = x.shape
    columns = x.swapaxes(1, 2).reshape(n, l, a * k).swapaxes(1, 2)
    return lax.optimization_barrier(columns).reshape(n, a, k, l)
