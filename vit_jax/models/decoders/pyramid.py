"""Decoders of several maps, the finest first, each half as large as the one before.

`FeaturePyramid` is the semantic branch of Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446, s. 3.1), `TokenPyramid`
the VT-FPN that replaces its convolutions by visual tokens (Wu et al. 2020, arXiv:2006.03677, s. 3.3 and 5.3), and
`SimplePyramid` makes the maps of a plain ViT's last one (Li et al. 2022, ViTDet, arXiv:2203.16527, s. 3).

Shapes: `n` images, `h w` map, `c` channels, `l` tokens, `k` classes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.features import Features
from vit_jax.models.visual_transformer import FilterTokenizer, Projector, TokenTransformer, linear
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.pooling import max_pool

GROUPS = 32  # of group norm, at most
Map = Float[Array, "_ _ _ _"]  # n h w c, each of its own size


def convolution(channels: int, size: int, dtype: str, name: str, *, bias: bool = False) -> nn.Conv:
    """A convolution that keeps the map's size."""
    return nn.Conv(
        channels,
        (size, size),
        use_bias=bias,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def group_norm(channels: int, dtype: str, name: str) -> nn.GroupNorm:
    """Group norm of `GROUPS` groups, or of as many as divide the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), dtype=dtype, name=name)


def resized(x: Map, like: Map) -> Map:
    """The map at the size of another one, bilinear."""
    return jax.image.resize(x, (*like.shape[:3], x.shape[3]), "linear", antialias=False).astype(x.dtype)


class SemanticBranch(nn.Module):
    """The sum of all maps at the size of the finest, and of that the classes of each place.

    A map comes there by steps of a 3x3 convolution, group norm, ReLU and a bilinear doubling; the finest has one
    convolution. With `size` 1 the convolutions are 1x1, and there is one for each map.
    """

    num_classes: int
    width: int
    size: int = 3
    dtype: str = "float32"

    @nn.compact
    def __call__(self, maps: Sequence[Map]) -> Float[Array, "n h w k"]:
        parts = []
        for i, x in enumerate(maps):
            for j, target in enumerate(reversed(maps[: max(i, 1)] if self.size > 1 else maps[:1])):
                x = convolution(self.width, self.size, self.dtype, f"conv{i + 1}_{j + 1}")(x)
                x = nn.relu(group_norm(self.width, self.dtype, f"norm{i + 1}_{j + 1}")(x))
                x = resized(x, target)
            parts.append(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(sum(parts))


class FeaturePyramid(nn.Module):
    """FPN: 1x1 convolutions bring all maps to one width, coarse ones are added to finer ones, a 3x3 one smooths each.

    As wide as `width`, the semantic branch half as wide: 256 and 128 in the paper.
    """

    num_classes: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Features, rng: Key[Array, ""], *, train: bool) -> Float[Array, "n h w k"]:
        maps = laterals(features.stages, self.width, self.dtype)
        for i in reversed(range(len(maps) - 1)):
            maps[i] = maps[i] + resized(maps[i + 1], maps[i])
        maps = [convolution(self.width, 3, self.dtype, f"smooth{i + 1}", bias=True)(x) for i, x in enumerate(maps)]
        return SemanticBranch(self.num_classes, self.width // 2, dtype=self.dtype, name="semantic")(maps)


def laterals(stages: Sequence[Map], width: int, dtype: str) -> list[Map]:
    """The maps of all stages at one width; called inside a compact method."""
    return [convolution(width, 1, dtype, f"lateral{i + 1}", bias=True)(x) for i, x in enumerate(stages)]


class TokenPyramid(nn.Module):
    """VT-FPN: `tokens` visual tokens of each map, one transformer over all of them, and a projector back to each map.

    The paper has 8 tokens of 1024 channels for each map; it leaves open how wide the maps are, and how their sum is
    formed. Here a 1x1 convolution brings them to `width` as in FPN, and the semantic branch has 1x1 convolutions, so
    that no convolution looks beyond its place: that is left to the tokens. `token_width` 0: as the maps.
    """

    num_classes: int
    width: int
    tokens: int = 8
    token_width: int = 1024
    key_width: int = 256
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Features, rng: Key[Array, ""], *, train: bool) -> Float[Array, "n h w k"]:
        maps, wide = laterals(features.stages, self.width, self.dtype), self.token_width or self.width
        found = []
        for i, x in enumerate(maps):
            tokens = FilterTokenizer(self.tokens, self.dtype, name=f"tokenizer{i + 1}")(x)
            found.append(linear(wide, self.dtype, f"widen{i + 1}")(tokens))
        transformer = TokenTransformer(self.key_width, 2 * wide, self.dtype, name="transformer")
        tokens = transformer(jnp.concatenate(found, axis=1), rng, 0.0, train=train)
        tokens = nn.LayerNorm(dtype=self.dtype, name="norm_tokens")(tokens)
        for i, x in enumerate(maps):
            narrow = linear(self.width, self.dtype, f"narrow{i + 1}")(tokens)
            maps[i] = Projector(self.key_width, self.dtype, name=f"projector{i + 1}")(x, narrow)
        return SemanticBranch(self.num_classes, self.width // 2, 1, self.dtype, name="semantic")(maps)


class SimplePyramid(nn.Module):
    """Maps at 4, 2, 1 and 1/2 times the scale of the patches' grid, each made of it alone, and the semantic branch.

    By transposed 2x2 convolutions and max-pooling, then a 1x1 and a 3x3 convolution with norms (ViTDet, appendix A.2).
    With patches of 16 pixels the finest map has a stride of 4.
    """

    num_classes: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features: Features, rng: Key[Array, ""], *, train: bool) -> Float[Array, "n h w k"]:
        n, _, d = features.patches.shape
        last, maps = features.patches.reshape(n, *features.grid, d), []
        for i, doublings in enumerate((2, 1, 0, -1)):
            x = last
            for j in range(doublings):
                x = nn.ConvTranspose(d // 2 ** (j + 1), (2, 2), (2, 2), dtype=self.dtype, name=f"up{i + 1}_{j + 1}")(x)
                x = nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"up{i + 1}_norm")(x)) if j < doublings - 1 else x
            x = max_pool(x, (2, 2), strides=(2, 2), padding="SAME") if doublings < 0 else x
            for size in (1, 3):
                x = convolution(self.width, size, self.dtype, f"conv{i + 1}_{size}x{size}")(x)
                x = nn.LayerNorm(dtype=self.dtype, name=f"norm{i + 1}_{size}x{size}")(x)
            maps.append(x)
        return SemanticBranch(self.num_classes, self.width // 2, dtype=self.dtype, name="semantic")(maps)
