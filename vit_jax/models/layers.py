"""The parts that Vision Transformers share: patch embedding, positions, MLP, pooling.

Shapes: `n` images, `h w` grid, `c` channels, `l` tokens, `d` width, `f` MLP width.
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.ops.dense import dot_general
from vit_jax.ops.dropout import dropout
from vit_jax.ops.gelu import gelu

Activation = Literal["gelu", "gelu_tanh", "swiglu"]
Dtype = Literal["float32", "bfloat16", "float16"]
PosEmbed = Literal["learned", "learned_2d", "sincos2d", "relative", "relative_bias", "none"]
Pooling = Literal["token", "gap", "token_gap", "map", "flatten", "none"]
Remat = Literal["none", "dots", "full", "auto"]
DepthSchedule = Literal["linear", "uniform"]


def square(size: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of a size field, in which one number means a square."""
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


def activate(x: Float[Array, "..."], activation: str) -> Float[Array, "..."]:
    """The activation function; outside a gated MLP `swiglu` means its gate's swish."""
    if activation not in get_args(Activation):
        raise UserError(f"activation={activation!r} is unknown; choose from {', '.join(get_args(Activation))}")
    if activation == "gelu":
        return gelu(x)
    return nn.swish(x) if activation == "swiglu" else nn.gelu(x)


class PatchEmbedding(nn.Module):
    """Linear embedding of patches that do not overlap (Dosovitskiy et al. 2021, arXiv:2010.11929, s. 3.1).

    The kernel has a convolution's shape [height width c d], but patches are cut by a reshape: one matrix product.
    """

    patch_size: tuple[int, int]
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        n, height, width, c = images.shape
        p, q = self.patch_size
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), (p, q, c, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = images.reshape(n, height // p, p, width // q, q, c).astype(self.dtype)
        x = jnp.einsum("nhpwqc,pqcd->nhwd", patches, kernel.astype(self.dtype))
        return x + bias.astype(self.dtype)[None, None, None]


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Float[Array, "h w d"]:
    """Fixed positions: sine and cosine of x and of y, a quarter of the width each (MoCo v3, arXiv:2104.02057)."""
    h, w = grid
    frequency = temperature ** -jnp.linspace(0.0, 1.0, width // 4)[None, None]
    x = jnp.broadcast_to(jnp.arange(w)[None, :, None] * frequency, (h, w, width // 4))
    y = jnp.broadcast_to(jnp.arange(h)[:, None, None] * frequency, (h, w, width // 4))
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


class AddPositions(nn.Module):
    """Adds absolute positions to a class token (if there is one) followed by the patches of a grid.

    `learned`: one table for the whole sequence. `learned_2d`: a table for x and one for y, of half the width each,
    concatenated. `sincos2d`: fixed. The last two leave the class token, itself learned, without a position.
    """

    pos_embed: str
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        _, l, d = x.shape
        h, w = self.grid
        normal = nn.initializers.normal(stddev=0.02)
        if self.pos_embed == "learned":
            return x + self.param("pos_embedding", normal, (1, l, d)).astype(x.dtype)
        if self.pos_embed == "learned_2d":
            columns = self.param("x_embedding", normal, (w, d // 2))
            rows = self.param("y_embedding", normal, (h, d // 2))
            across = jnp.broadcast_to(columns[None, :, :], (h, w, d // 2))
            down = jnp.broadcast_to(rows[:, None, :], (h, w, d // 2))
            table = jnp.concatenate([across, down], axis=-1)
        else:
            table = sincos2d(self.grid, d)
        table = jnp.pad(table.reshape(h * w, d), ((l - h * w, 0), (0, 0)))
        return x + table[None].astype(x.dtype)


class MlpBlock(nn.Module):
    """Dense, activation, dropout, dense, dropout; with `swiglu` gated (Shazeer 2020, arXiv:2002.05202)."""

    mlp_dim: int
    activation: str = "gelu"
    output_activation: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(stddev=1e-6)
    tokens: int = 0  # if x holds the first of so many, dropout draws as for all

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n l d"]:
        inner_rng, outer_rng = jax.random.split(rng)
        dense = partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dot_general=dot_general,
        )
        drop = partial(dropout, rate=self.dropout, train=train, tokens=self.tokens)
        y = dense(self.mlp_dim, name="Dense_0")(x)
        if self.activation == "swiglu":
            y = y * nn.swish(dense(self.mlp_dim, name="gate")(x))
        else:
            y = activate(y, self.activation)
        y = dense(x.shape[-1], name="Dense_1")(drop(y, rng=inner_rng))
        if self.output_activation:
            y = activate(y, self.activation)
        return drop(y, rng=outer_rng)


class LayerScale(nn.Module):
    """Scales each channel by a learned factor (Touvron et al. 2021, arXiv:2103.17239, s. 2)."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        scale = self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * scale.astype(x.dtype)[None, None]


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
