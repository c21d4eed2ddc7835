"""Compact Transformers for small data sets (Hassani et al. 2021, arXiv:2104.05704): ViT-Lite, CVT and CCT."""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.checks import check_patches, check_positive, check_rates
from vit_jax.models.features import Features
from vit_jax.models.layers import Activation, Dtype, MlpBlock, PatchEmbedding, Remat, square
from vit_jax.models.naming import Naming
from vit_jax.models.vit import Encoder, EncoderBlock, ViT, tokens_read
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.fused_attention import Kernel

# Layers, as the names count them: width, MLP width, heads.
SIZES: dict[int, tuple[int, int, int]] = {
    2: (128, 128, 2),
    4: (128, 128, 2),
    6: (256, 512, 4),
    7: (256, 512, 4),
    14: (384, 1152, 6),
}
PATCHES = {"ViT-Lite": ((6, 4), (7, 4), (7, 8), (7, 16)), "CVT": ((6, 4), (7, 4), (7, 8))}  # layers, patch size
# Layers, kernel size, number of convolutions.
CONVOLUTIONS = ((2, 3, 2), (4, 3, 2), (6, 3, 1), (6, 3, 2), (7, 3, 1), (7, 3, 2), (7, 7, 2), (14, 7, 2))


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published model: `CVT-7/4` has 7 layers and patches of 4 pixels, `CCT-7/3x2` 2 convolutions.

    PosEmbed are learned, but fixed in `CCT-6/3x1`, as its published 3.17 M parameters have it.
    """
    rows = {
        f"{kind}-{depth}/{patch}": _size(depth)
        | {"patch_size": (patch,), "pooling": "token" if kind == "ViT-Lite" else "sequence"}
        for kind, models in PATCHES.items()
        for depth, patch in models
    }
    rows |= {
        f"CCT-{depth}/{kernel}x{convolutions}": _size(depth)
        | {"convolutions": convolutions, "kernel_size": kernel, "stride": max(1, kernel // 2 - 1)}
        for depth, kernel, convolutions in CONVOLUTIONS
    }
    rows["CCT-6/3x1"]["pos_embed"] = "sincos1d"
    return rows


def _size(depth: int) -> dict[str, Any]:
    width, mlp_dim, num_heads = SIZES[depth]
    return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads}


def sincos1d(length: int, width: int) -> Float[Array, "l d"]:
    """Fixed positions, sine and cosine in turn (Vaswani et al. 2017, arXiv:1706.03762, s. 3.5)."""
    channel = jnp.arange(width)
    angle = jnp.arange(length)[:, None] / 10_000.0 ** (channel // 2 * 2 / width)[None]
    return jnp.where(channel[None] % 2 == 0, jnp.sin(angle), jnp.cos(angle))


class ConvTokenizer(nn.Module):
    """Convolutions without bias, each followed by ReLU and 3x3 max-pooling with stride 2."""

    width: int  # channels of the last convolution
    convolutions: int
    kernel_size: int
    stride: int
    channels: int  # of the others
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        x, pad = images.astype(self.dtype), self.kernel_size // 2
        for i in range(self.convolutions):
            x = nn.Conv(
                self.width if i == self.convolutions - 1 else self.channels,
                (self.kernel_size, self.kernel_size),
                strides=self.stride,
                padding=pad,
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                conv_general_dilated=conv_general_dilated,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class SequencePooling(nn.Module):
    """The tokens' mean, weighted by a softmax over a learned linear score of each."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n d"]:
        normal = nn.initializers.truncated_normal(stddev=0.02)
        score = nn.Dense(1, kernel_init=normal, dtype=self.dtype, name="score")(x)[..., 0]
        weight = nn.softmax(score.astype(jnp.float32)).astype(x.dtype)
        return jnp.einsum("nl,nld->nd", weight, x)


class Compact(nn.Module):
    """A Compact Transformer: images [n H W c] to logits [n k]; its fields are the config group `model`.

    Tokens come from patches, or from convolutions with max-pooling (CCT); a class token (ViT-Lite) or a weighted mean
    of all tokens (CVT, CCT) is classified. As in the authors' code, the residual connection around each MLP carries
    the *normalised* tokens. Departures: projections start as Xavier, learned positions at 0.02 instead of 0.2.
    Tokens after each block and attention probabilities are sown in the collection `intermediates`.
    """

    NAMING: ClassVar[Naming] = Naming(
        layers=(
            r"(?:embedding|tokenizer|cls|Transformer/posembed_input)(?:/|$)",
            r"Transformer/encoderblock_(\d+)/",
        ),
        sharding=ViT.NAMING.sharding,
        tokens={"cls": "pooling=token"},
    )

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    patch_size: tuple[int, ...] = ()  # pixels: height and width, or one number for both; (): convolutions instead
    convolutions: int = 0  # how many; 0: patches instead
    kernel_size: int = 3  # of convolutions
    stride: int = 1  # the same
    channels: int = 64  # of all convolutions but the last, which has the width
    pooling: Literal["sequence", "token"] = "sequence"
    pos_embed: Literal["learned", "sincos1d", "none"] = "learned"
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False
    dropout: float = 0.0  # after both layers of each MLP
    projection_dropout: float = 0.0  # after each attention's output projection
    attention_dropout: float = 0.1  # on attention probabilities
    embedding_dropout: float = 0.0  # on embeddings plus positions
    stochastic_depth: float = 0.1  # of the last block; grows linearly from 0 at the first
    dtype: Dtype = "float32"  # of matrix products; parameters and softmax stay float32
    attention: Kernel = "plain"  # cudnn, pallas: fused kernels of GPUs and TPUs; auto: the fastest in training, timed
    scan: bool = False  # one compiled block for all layers: compile time does not grow with depth
    # Recompute in the backward pass: all but matrix products (dots), everything (full), as much as memory asks (auto).
    remat: Remat = "none"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other or images of this shape (height, width, channels)."""
        check_positive(self, "width", "depth", "mlp_dim", "num_heads", "stride", "channels")
        if bool(self.patch_size) == (self.convolutions > 0):
            raise UserError(
                f"model.patch_size={self.patch_size} and model.convolutions={self.convolutions} exclude each other; "
                "set patch_size=(4,) and convolutions=0, or patch_size=() and convolutions=1"
            )
        if self.patch_size:
            check_patches(self.patch_size, image_shape)
        elif self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"model.kernel_size={self.kernel_size} is not a positive odd number, e.g. 3")
        if self.width % self.num_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.width={self.width}; choose a divisor"
            )
        check_rates(self, "dropout", "projection_dropout", "attention_dropout", "embedding_dropout", "stochastic_depth")

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n H W c"],
        *,
        train: bool,
        keep: Int[Array, "n k"] | None = None,
        return_features: bool = False,
    ) -> Float[Array, "n k"] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        x = self._tokenizer()(images)
        n, h, w, d = x.shape
        x = x.reshape(n, h * w, d)
        if self.pooling == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, d)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (n, 1, d)), x], axis=1)
        if self.pos_embed == "sincos1d":
            x = x + sincos1d(x.shape[1], d)[None].astype(x.dtype)
        first = 1 if self.pooling == "token" else 0
        queries = 0 if return_features else tokens_read(self, first)
        x = self._encoder((h, w), queries)(x, rng, train=train, keep=keep)
        if return_features:
            return Features(x[:, :first], x[:, first:], (h, w))
        x = x[:, 0] if self.pooling == "token" else SequencePooling(self.dtype, name="pool")(x)
        if not self.num_classes:
            return x
        normal = nn.initializers.truncated_normal(stddev=0.02)
        head = nn.Dense(self.num_classes, kernel_init=normal, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32)

    def features(
        self, images: Float[Array, "n H W c"], *, train: bool, keep: Int[Array, "n k"] | None = None
    ) -> Features:
        """The encoder's tokens; of the patches only those that `keep` names are computed, all without it."""
        found = self(images, train=train, keep=keep, return_features=True)
        assert isinstance(found, Features)
        return found

    def _tokenizer(self) -> nn.Module:
        if self.patch_size:
            return PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="embedding")
        return ConvTokenizer(
            self.width,
            self.convolutions,
            self.kernel_size,
            self.stride,
            self.channels,
            dtype=self.dtype,
            name="tokenizer",
        )

    def _encoder(self, grid: tuple[int, int], queries: int) -> Encoder:
        norm = partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        attention = partial(
            MultiHeadDotProductAttention,
            self.num_heads,
            self.width // self.num_heads,
            qkv_bias=self.qkv_bias,
            dropout=self.attention_dropout,
            kernel=self.attention,
            dtype=self.dtype,
        )
        mlp = partial(MlpBlock, self.mlp_dim, self.activation, dropout=self.dropout, dtype=self.dtype)
        block = partial(
            EncoderBlock, attention, mlp, norm, self.projection_dropout, self.stochastic_depth, residual_norm=True
        )
        return Encoder(
            block,
            norm,
            self.depth,
            "none" if self.pos_embed == "sincos1d" else self.pos_embed,  # already added
            grid,
            embedding_dropout=self.embedding_dropout,
            stochastic_depth=self.stochastic_depth,
            scan=self.scan,
            remat=self.remat,
            queries=queries,
            name="Transformer",
        )
