"""Multi-head attention with separate query, key and value parameters.

Shapes: `n` images, `l` query tokens, `m` key tokens, `d` width, `a` heads, `e` size per head.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from vit_jax import sharding
from vit_jax.models.bits import bernoulli
from vit_jax.models.fused import check, fused_attention
from vit_jax.models.products import dot_general

KEPT = "attention"  # the name of what a backward pass had better keep than compute again: see `layers.kept`


def dropout(
    x: Float[Array, "..."], rate: float, rng: Key[Array, ""], *, train: bool, of: tuple[int, ...] = ()
) -> Float[Array, "..."]:
    """Zeroes entries with probability `rate` and scales the others by 1 / (1 - rate); the identity outside training.

    The key is an argument, not a Linen RNG, so that a scanned and a looped stack of layers draw the same. Where x is
    the beginning, along each axis, of an array of shape `of`, it draws what that array would.
    """
    if not train or rate == 0.0:
        return x
    keep = bernoulli(rng, 1.0 - rate, of or x.shape)
    return jnp.where(keep[tuple(slice(size) for size in x.shape)], x / (1.0 - rate), 0)


@jax.custom_jvp
def attend(logits: Float[Array, "n a l m"], values: Float[Array, "n a m e"]) -> Float[Array, "n a l e"]:
    """The values' means, weighted by the softmax of the logits.

    Its gradient takes the sums that softmax's needs from the result, as FlashAttention does (Dao et al. 2022,
    arXiv:2205.14135, appendix B.2), e numbers for each query instead of m: 3 % of ViT-Ti/16's step on a CPU and 15 % of
    its memory, 2 % of ViT-B/16's modelled step on a TPU.
    """
    return checkpoint_name(jnp.matmul(softmax(logits).astype(values.dtype), values), KEPT)


@attend.defjvp
def _attend_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (logits, values), (d_logits, d_values) = primals, tangents
    attention = softmax(logits)
    weights = attention.astype(values.dtype)
    result = checkpoint_name(jnp.matmul(weights, values), KEPT)
    change = attention * d_logits
    of_sum = change.sum(axis=-1, keepdims=True) * result.astype(change.dtype)
    d_result = jnp.matmul(change.astype(values.dtype), values) - of_sum.astype(values.dtype)
    return result, d_result + jnp.matmul(weights, d_values)


def softmax(logits: Float[Array, "n a l m"]) -> Float[Array, "n a l m"]:
    """`nn.softmax`, to the bit, whose largest logits and sums have a name: two numbers for each query."""
    largest = checkpoint_name(jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)), KEPT)
    powers = jnp.exp(logits - largest)
    return powers / checkpoint_name(powers.sum(axis=-1, keepdims=True), KEPT)


class HeadProjection(nn.Module):
    """The parameters of a projection from width d to heads: kernel [d a e] and bias [a e] (zeros without one)."""

    heads: int
    head_width: int
    bias: bool = True

    @nn.compact
    def __call__(self, d: int) -> tuple[Float[Array, "d a e"], Float[Array, "a e"]]:
        a, e = self.heads, self.head_width

        def flat_init(key, shape, dtype=jnp.float32):  # fan-in and fan-out of the matrix [d, a e]
            return nn.initializers.xavier_uniform()(key, (d, a * e), dtype).reshape(shape)

        kernel = self.param("kernel", flat_init, (d, a, e))
        return kernel, self.param("bias", nn.initializers.zeros, (a, e)) if self.bias else jnp.zeros((a, e))


class MultiHeadDotProductAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, s. 3.2); softmax in float32.

    `head_width` is free: heads x head_width need not be the width. `positions` adds to the logits:
    `relative`: q_i . r_(i-j), one learned vector for each 1-D offset, shared by the heads (Shaw et al. 2018,
    arXiv:1803.02155, eq. 3); `relative_bias`: a learned scalar for each head and 2-D offset in the grid (as Swin,
    Liu et al. 2021, arXiv:2103.14030, eq. 4), none where a token outside the grid (class token, register) takes part.
    `qk_norm` normalises queries and keys per head (Dehghani et al. 2023, arXiv:2302.05442, s. 2).

    Sows the probabilities [n a l m] as `attention`, and lets gradients be taken with respect to them (`perturb`);
    where either is asked for, `kernel` is plain.
    """

    heads: int
    head_width: int
    qkv_bias: bool = True
    qk_norm: bool = False
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    positions: str = "none"
    grid: tuple[int, int] = (0, 0)
    kernel: str = "plain"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "n l d"],
        tokens: Float[Array, "n m d"],
        rng: Key[Array, ""],
        *,
        train: bool,
        of: int = 0,
    ) -> Float[Array, "n l d"]:
        """`of`: how many queries there are, where these are the first of them; dropout draws as for all.

        With `positions` the queries are the first of the tokens.
        """
        d = queries.shape[-1]
        q, k, v = self._projections(queries, tokens)
        if self.qk_norm:
            q = nn.LayerNorm(epsilon=self.norm_epsilon, use_bias=False, dtype=self.dtype, name="query_norm")(q)
            k = nn.LayerNorm(epsilon=self.norm_epsilon, use_bias=False, dtype=self.dtype, name="key_norm")(k)

        kernel = self._kernel(train)
        x = self._plain(q, k, v, rng, train, of) if kernel == "plain" else fused_attention(kernel, q, k, v)
        return nn.DenseGeneral(
            d,
            axis=(-2, -1),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=dot_general,
            name="out",
        )(x)

    def _kernel(self, train: bool) -> str:
        """plain, where the probabilities are wanted or nothing else was chosen."""
        if self.kernel in ("plain", "auto") or self._looked_at():
            return "plain"
        rate = self.dropout if train else 0.0
        check(self.kernel, dtype=self.dtype, positions=self.positions, dropout=rate, head_width=self.head_width)
        return self.kernel

    def _looked_at(self) -> bool:
        """Whether somebody wants the probabilities, or gradients with respect to them."""
        wanted = self.is_mutable_collection("intermediates") or self.has_variable("perturbations", "attention")
        return wanted or self.is_initializing()

    def _plain(
        self, q: Array, k: Array, v: Array, rng: Key[Array, ""], train: bool, of: int
    ) -> Float[Array, "n l a e"]:
        q = q * self.head_width**-0.5  # fewer numbers than the logits
        queries, keys, values = (x.swapaxes(1, 2) for x in (q, k, v))  # [n a l e]: else CPUs transpose the results
        logits = jnp.matmul(queries, keys.swapaxes(2, 3)).astype(jnp.float32)
        if self.positions == "relative":
            logits += self._relative_logits(q, k.shape[1])
        if self.positions == "relative_bias":
            logits += self._bias(k.shape[1])[None, :, : q.shape[1]]
        if not (self._looked_at() or train and self.dropout):
            return attend(logits, values).swapaxes(1, 2)
        attention = nn.softmax(logits)
        self.sow("intermediates", "attention", attention)
        attention = self.perturb("attention", attention)
        n, a, l, m = attention.shape
        attention = dropout(attention, self.dropout, rng, train=train, of=(n, a, of or l, m)).astype(self.dtype)
        return jnp.matmul(attention, values).swapaxes(1, 2)

    def _projections(self, queries: Float[Array, "n l d"], tokens: Float[Array, "n m d"]) -> list[Array]:
        """Queries [n l a e], keys and values [n m a e].

        Three products; where all are of the same tokens, on GPUs one of stacked kernels, whose gradient is one product
        instead of a sum of three. To take its result apart costs a TPU more than it saves (benchmarks/README.md), and a
        CPU as much; on GPUs the bias, and padding for a fused kernel, are added in the same pass.
        """
        of = {"query": queries, "key": tokens, "value": tokens}
        heads = {
            name: HeadProjection(self.heads, self.head_width, self.qkv_bias, name=name)(x.shape[-1])
            for name, x in of.items()
        }
        kernels = [kernel.astype(self.dtype) for kernel, _ in heads.values()]
        biases = [bias.astype(self.dtype)[None, None] for _, bias in heads.values()]
        last = (((2,), (0,)), ((), ()))
        if queries is tokens and sharding.devices_of_activations()[0] == "gpu":
            stacked = dot_general(tokens, jnp.stack(kernels, axis=1), last)
            return [stacked[:, :, i] + bias for i, bias in enumerate(biases)]
        products = (dot_general(x, kernel, last) for x, kernel in zip(of.values(), kernels, strict=True))
        return [product + bias for product, bias in zip(products, biases, strict=True)]

    def _relative_logits(self, q: Float[Array, "n l a e"], m: int) -> Float[Array, "n a l m"]:
        l, e = q.shape[1], q.shape[-1]
        table = self.param("relative_embedding", nn.initializers.normal(stddev=0.02), (2 * m - 1, e))
        offset = jnp.arange(l)[:, None] - jnp.arange(m)[None, :] + m - 1
        return jnp.einsum("nlae,lme->nalm", q, table[offset].astype(q.dtype)).astype(jnp.float32)

    def _bias(self, m: int) -> Float[Array, "a m m"]:
        h, w = self.grid
        table = self.param("relative_bias", nn.initializers.normal(stddev=0.02), (2 * h - 1, 2 * w - 1, self.heads))
        y, x = jnp.divmod(jnp.arange(h * w), w)
        bias = table[y[:, None] - y[None, :] + h - 1, x[:, None] - x[None, :] + w - 1]  # [h*w h*w a]
        outside = m - h * w
        return jnp.pad(jnp.moveaxis(bias, -1, 0), ((0, 0), (outside, 0), (outside, 0)))
