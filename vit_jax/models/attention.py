"""Multi-head attention with separate query, key and value parameters.

Shapes: `n` images, `l` query tokens, `m` key tokens, `d` width, `a` heads, `e` size per head.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.ops.attend import attend
from vit_jax.ops.dense import dot_general
from vit_jax.ops.dropout import dropout
from vit_jax.ops.fused_attention import check, fused_attention


class MultiHeadDotProductAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, s. 3.2); softmax in float32.

    `head_dim` is free: heads x head_dim need not be the width. `pos_embed` adds to the logits:
    `relative`: q_i . r_(i-j), one learned vector for each 1-D offset, shared by the heads (Shaw et al. 2018,
    arXiv:1803.02155, eq. 3); `relative_bias`: a learned scalar for each head and 2-D offset in the grid (as Swin,
    Liu et al. 2021, arXiv:2103.14030, eq. 4), none where a token outside the grid (class token, register) takes part.
    With either the queries are the first of the tokens.
    `qk_norm` normalises queries and keys per head (Dehghani et al. 2023, arXiv:2302.05442, s. 2).

    Sows the probabilities [n a l m] as `attention`, and lets gradients be taken with respect to them (`perturb`);
    where either is asked for, `kernel` is plain.
    """

    num_heads: int
    head_dim: int
    qkv_bias: bool = True
    qk_norm: bool = False
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    pos_embed: str = "none"
    grid: tuple[int, int] = (0, 0)
    kernel: str = "plain"
    dtype: str = "float32"
    tokens: int = 0  # if the queries are the first of so many, dropout draws as for all

    @nn.compact
    def __call__(
        self, queries: Float[Array, "n l d"], tokens: Float[Array, "n m d"], rng: Key[Array, ""], *, train: bool
    ) -> Float[Array, "n l d"]:
        dense = partial(
            nn.DenseGeneral, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, dot_general=dot_general
        )
        project = partial(dense, (self.num_heads, self.head_dim), use_bias=self.qkv_bias)
        q, k, v = project(name="query")(queries), project(name="key")(tokens), project(name="value")(tokens)
        if self.qk_norm:
            q = nn.LayerNorm(epsilon=self.norm_epsilon, use_bias=False, dtype=self.dtype, name="query_norm")(q)
            k = nn.LayerNorm(epsilon=self.norm_epsilon, use_bias=False, dtype=self.dtype, name="key_norm")(k)
        kernel = self._kernel(train)
        x = self._plain(q, k, v, rng, train) if kernel == "plain" else fused_attention(kernel, q, k, v)
        return dense(queries.shape[-1], axis=(-2, -1), name="out")(x)

    def _kernel(self, train: bool) -> str:
        """plain if nothing else was chosen, the probabilities are wanted, or the queries are few: others pad them."""
        if self.kernel in ("plain", "auto") or self.tokens or self._looked_at():
            return "plain"
        rate = self.dropout if train else 0.0
        check(self.kernel, dtype=self.dtype, pos_embed=self.pos_embed, dropout=rate, head_dim=self.head_dim)
        return self.kernel

    def _looked_at(self) -> bool:
        """Whether somebody wants the probabilities, or gradients with respect to them."""
        wanted = self.is_mutable_collection("intermediates") or self.has_variable("perturbations", "attention")
        return wanted or self.is_initializing()

    def _plain(self, q: Array, k: Array, v: Array, rng: Key[Array, ""], train: bool) -> Float[Array, "n l a e"]:
        q = q * self.head_dim**-0.5  # fewer numbers than the logits
        queries, keys, values = (x.swapaxes(1, 2) for x in (q, k, v))  # [n a l e]: else CPUs transpose the results
        logits = jnp.matmul(queries, keys.swapaxes(2, 3)).astype(jnp.float32)
        if self.pos_embed == "relative":
            logits += self._relative_logits(q, k.shape[1])
        if self.pos_embed == "relative_bias":
            logits += self._bias(k.shape[1])[None, :, : q.shape[1]]
        if not (self._looked_at() or train and self.dropout):
            return attend(logits, values).swapaxes(1, 2)
        attention = nn.softmax(logits)
        self.sow("intermediates", "attention", attention)
        attention = self.perturb("attention", attention)
        attention = dropout(attention, self.dropout, rng, train=train, tokens=self.tokens).astype(self.dtype)
        return jnp.matmul(attention, values).swapaxes(1, 2)

    def _relative_logits(self, q: Float[Array, "n l a e"], m: int) -> Float[Array, "n a l m"]:
        l, e = q.shape[1], q.shape[-1]
        table = self.param("relative_embedding", nn.initializers.normal(stddev=0.02), (2 * m - 1, e))
        offset = jnp.arange(l)[:, None] - jnp.arange(m)[None, :] + m - 1
        return jnp.einsum("nlae,lme->nalm", q, table[offset].astype(q.dtype)).astype(jnp.float32)

    def _bias(self, m: int) -> Float[Array, "a m m"]:
        h, w = self.grid
        table = self.param("relative_bias", nn.initializers.normal(stddev=0.02), (2 * h - 1, 2 * w - 1, self.num_heads))
        y, x = jnp.divmod(jnp.arange(h * w), w)
        bias = table[y[:, None] - y[None, :] + h - 1, x[:, None] - x[None, :] + w - 1]  # [h*w h*w a]
        outside = m - h * w
        return jnp.pad(jnp.moveaxis(bias, -1, 0), ((0, 0), (outside, 0), (outside, 0)))
