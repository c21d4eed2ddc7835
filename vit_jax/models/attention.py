"""Multi-head attention with separate query, key and value parameters.

Shapes: `n` images, `l` query tokens, `m` key tokens, `d` width, `a` heads, `e` size per head.
"""

from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.linear import Dense
from vit_jax.models.positions import relative_bias, relative_logits
from vit_jax.ops.attend import attend, attention_logits, weighted
from vit_jax.ops.dropout import dropout
from vit_jax.ops.fused_attention import check, fused_attention


class MultiHeadDotProductAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, s. 3.2); softmax in float32.

    `head_dim` is free: heads x head_dim need not be the width. `qk_norm` normalises queries and keys per head (Dehghani
    et al. 2023, arXiv:2302.05442, s. 2). `pos_embed` `relative` and `relative_bias` add to the logits. With either, and
    with dropout, the query tokens are the first of the key tokens.

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

    @nn.compact
    def __call__(
        self, inputs_q: Float[Array, "n l d"], inputs_kv: Float[Array, "n m d"], rng: Key[Array, ""], *, train: bool
    ) -> Float[Array, "n l d"]:
        dense = partial(Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        project = partial(dense, (self.num_heads, self.head_dim), bias=self.qkv_bias)
        q, k, v = project(name="query")(inputs_q), project(name="key")(inputs_kv), project(name="value")(inputs_kv)
        if self.qk_norm:
            norm = partial(nn.LayerNorm, epsilon=self.norm_epsilon, use_bias=False, dtype=self.dtype)
            q, k = norm(name="query_norm")(q), norm(name="key_norm")(k)
        # Fused kernels would pad a few queries to as many as the keys.
        if self.kernel in ("plain", "auto") or q.shape[1] != k.shape[1] or self._looked_at():
            x = self._plain(q, k, v, rng, train)
        else:
            rate = self.dropout if train else 0.0
            check(self.kernel, dtype=self.dtype, pos_embed=self.pos_embed, dropout=rate, head_dim=self.head_dim)
            x = fused_attention(self.kernel, q, k, v)
        return dense(inputs_q.shape[-1], axis=(-2, -1), name="out")(x)

    def _looked_at(self) -> bool:
        """Whether somebody wants the probabilities, or gradients with respect to them."""
        wanted = self.is_mutable_collection("intermediates") or self.has_variable("perturbations", "attention")
        return wanted or self.is_initializing()

    def _plain(self, q: Array, k: Array, v: Array, rng: Key[Array, ""], train: bool) -> Float[Array, "n l a e"]:
        l, m = q.shape[1], k.shape[1]
        q = self.scaled(q)  # fewer numbers than the logits
        heads_q, heads_k, heads_v = (x.swapaxes(1, 2) for x in (q, k, v))  # [n a l e]: else CPUs transpose the results
        logits = attention_logits(heads_q, heads_k)
        normal, (h, w) = nn.initializers.normal(stddev=0.02), self.grid
        if self.pos_embed == "relative":
            logits += relative_logits(q, self.param("relative_embedding", normal, (2 * m - 1, self.head_dim)))
        if self.pos_embed == "relative_bias":
            table = self.param("relative_bias", normal, (2 * h - 1, 2 * w - 1, self.num_heads))
            logits += relative_bias(table, m)[None, :, :l]
        logits = self.masked(logits)
        if not (self._looked_at() or train and self.dropout):
            return attend(logits, heads_v).swapaxes(1, 2)
        attention = nn.softmax(logits)
        self.sow("intermediates", "attention", attention)
        attention = self.perturb("attention", attention)
        attention = dropout(attention, self.dropout, rng, train=train, num_tokens=m).astype(self.dtype)
        return weighted(attention, heads_v).swapaxes(1, 2)

    def scaled(self, q: Float[Array, "n l a e"]) -> Float[Array, "n l a e"]:
        """The queries over the square root of their size."""
        return q * self.head_dim**-0.5

    def masked(self, logits: Float[Array, "n a l m"]) -> Float[Array, "n a l m"]:
        """The logits as softmax sees them: here all of them."""
        return logits
