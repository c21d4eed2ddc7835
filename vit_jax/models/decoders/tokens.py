"""Decoders of a ViT's patches, all on one grid (Strudel et al. 2021, Segmenter, arXiv:2105.05633)."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.features import Features
from vit_jax.models.layers import MlpBlock
from vit_jax.models.vit import Encoder, EncoderBlock


class LinearDecoder(nn.Module):
    """Each patch's classes from its own vector (s. 3.2, "linear")."""

    num_classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Features, rng: Key[Array, ""], *, train: bool) -> Float[Array, "n h w k"]:
        h, w = features.grid
        n, _, d = features.patches.shape
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(features.patches.reshape(n, h, w, d))


class MaskTransformer(nn.Module):
    """Patches and a token for each class attend to one another; a patch's logits are its products with the classes.

    S. 3.2 and eq. 3: both sides are projected and scaled to length 1; a layer norm over the classes gives the products
    their range, as in the authors' code. Blocks are as wide as `width`; 0: as the patches.
    """

    num_classes: int
    width: int
    depth: int
    num_heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Features, rng: Key[Array, ""], *, train: bool) -> Float[Array, "n h w k"]:
        n, l, d = features.patches.shape
        width, k = self.width or d, self.num_classes
        tokens = self.param("class_tokens", nn.initializers.normal(stddev=0.02), (1, k, width))
        patches = nn.Dense(width, dtype=self.dtype, name="embedding")(features.patches)
        x = jnp.concatenate([patches, jnp.broadcast_to(tokens.astype(patches.dtype), (n, k, width))], axis=1)
        norm = partial(nn.LayerNorm, dtype=self.dtype)
        attention = partial(MultiHeadDotProductAttention, self.num_heads, width // self.num_heads, dtype=self.dtype)
        block = partial(EncoderBlock, attention, partial(MlpBlock, 4 * width, dtype=self.dtype), norm)
        x = Encoder(block, norm, self.depth, "none", features.grid, name="encoder")(x, rng, train=train)
        patches, classes = (
            nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(part)
            for name, part in (("patch_projection", x[:, :l]), ("class_projection", x[:, l:]))
        )
        products = jnp.einsum("nld,nkd->nlk", unit_length(patches), unit_length(classes))
        return nn.LayerNorm(name="mask_norm")(products).reshape(n, *features.grid, k)


def unit_length(x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
    """The vectors, divided by their lengths, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-12)
