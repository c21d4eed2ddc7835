"""The plain Vision Transformer that a textbook would write in Flax Linen: the peer `flax`.

Structured as Google's code bases do it (big_vision's and vision_transformer's `vit.py`): a convolution cuts the
patches, `nn.MultiHeadDotProductAttention` attends, one module for each block, no scan. It computes what
`vit_jax.models.ViT` computes with the same sizes, and has as many parameters.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError


class MlpBlock(nn.Module):
    """Dense, exact GELU, dropout, dense, dropout."""

    mlp_width: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], *, train: bool) -> Float[Array, "n l d"]:
        d = x.shape[-1]
        init: dict[str, Any] = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(stddev=1e-6),
        }
        x = nn.gelu(nn.Dense(self.mlp_width, dtype=self.dtype, **init)(x), approximate=False)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(d, dtype=self.dtype, **init)(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    mlp_width: int
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], *, train: bool) -> Float[Array, "n l d"]:
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            deterministic=not train,
        )(y, y)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        return x + MlpBlock(self.mlp_width, self.dropout, self.dtype)(y, train=train)


class ViT(nn.Module):
    """Images [n H W c] to logits [n k], float32: class token, learned positions, `depth` blocks, norm, linear head.

    `dropout` acts on the embedded tokens, after each attention's output and after both layers of each MLP; in training
    it takes the RNG `dropout`.
    """

    patch_size: int
    width: int
    depth: int
    mlp_width: int
    heads: int
    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n k"]:
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", dtype=self.dtype, name="embedding")(images)
        n, h, w, d = x.shape
        x = x.reshape(n, h * w, d)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, d))
        x = jnp.concatenate([jnp.broadcast_to(cls, (n, 1, d)).astype(x.dtype), x], axis=1)
        positions = self.param("pos_embedding", nn.initializers.normal(stddev=0.02), (1, h * w + 1, d))
        x = x + positions.astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.depth):
            block = EncoderBlock(self.mlp_width, self.heads, self.dropout, self.dtype, name=f"encoderblock_{i}")
            x = block(x, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="encoder_norm")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x[:, 0]).astype(jnp.float32)


def fields(model: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The sizes of a plain ViT that a `model` group describes; `UserError` where it is more than that."""
    rates = {model.get(name) for name in ("dropout", "projection_dropout", "embedding_dropout")}
    name = model["name"]
    plain = name.partition("/")[0] == "vit" and len(rates) == 1 and model["class_token"] and not model["head_width"]
    if not plain:
        raise UserError(f"model {name!r} has no twin in the textbook: it writes plain ViTs with one dropout rate only")
    sizes = {field: model[field] for field in ("width", "depth", "mlp_width", "heads", "dropout")}
    return {"patch_size": model["patch_size"][0], "num_classes": num_classes, **sizes}
