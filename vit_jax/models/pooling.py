"""One vector of many tokens.

Shapes: `n` images, `p` tokens before the patches, `l` patches or tokens, `d` width.
"""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.layers import MlpBlock

Pooling = Literal["token", "gap", "token_gap", "map", "flatten", "none", "sequence"]


def pool(
    model: Any, prefix: Float[Array, "n p d"], patches: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool
) -> Float[Array, "n ..."]:
    """What the head of a ViT reads: the class token, or as its field `pooling` says."""
    match model.pooling:
        case "token":
            return prefix[:, 0]
        case "token_gap":
            return jnp.concatenate([prefix[:, 0], patches.mean(axis=1)], axis=-1)
        case "gap":
            return patches.mean(axis=1)
        case "map":
            return MAPHead(
                model.num_heads, model.mlp_dim, model.activation, model.norm_epsilon, model.dtype, name="MAPHead_0"
            )(patches, rng, train=train)
        case "sequence":
            return SequencePooling(model.dtype, name="pool")(patches)
        case "flatten":
            return patches.reshape(patches.shape[0], -1)
    return patches


class MAPHead(nn.Module):
    """Multi-head attention pooling by one learned query, then an MLP (Zhai et al. 2022, arXiv:2106.04560, s. 3.2)."""

    num_heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n d"]:
        n, _, d = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (n, 1, d))
        attention = MultiHeadDotProductAttention(
            self.num_heads, d // self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0"
        )
        x = attention(probe, x, rng, train=train)
        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="LayerNorm_0")(x)
        mlp = MlpBlock(self.mlp_dim, activation=self.activation, dtype=self.dtype, name="MlpBlock_0")
        return (x + mlp(y, rng, train=train))[:, 0]


class SequencePooling(nn.Module):
    """The tokens' mean, weighted by a softmax over a learned linear score (Hassani et al. 2021, arXiv:2104.05704)."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n d"]:
        normal = nn.initializers.truncated_normal(stddev=0.02)
        score = nn.Dense(1, kernel_init=normal, dtype=self.dtype, name="score")(x)[..., 0]
        weight = nn.softmax(score.astype(jnp.float32)).astype(x.dtype)
        return jnp.einsum("nl,nld->nd", weight, x)
