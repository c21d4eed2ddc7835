"""Compact Transformers for small data sets (Hassani et al. 2021, arXiv:2104.05704): ViT-Lite, CVT and CCT."""

from typing import Any, ClassVar, Literal

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.command import UserError
from vit_jax.models.checks import check_patches, check_positive, check_rates
from vit_jax.models.features import Features, TokenBackbone
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Activation, Dtype, PatchEmbedding, square
from vit_jax.models.naming import Naming
from vit_jax.models.pooling import SequencePooling
from vit_jax.models.sequence import prepend
from vit_jax.models.stack import Remat, tokens_read
from vit_jax.models.vit import ViT, make_encoder
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.fused_attention import Kernel
from vit_jax.ops.pooling import max_pool

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
            x = max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class Compact(TokenBackbone):
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

    # The other options of a ViT's encoder are off.
    head_dim = registers = 0
    qk_norm = mlp_output_activation = norm_after_pooling = False
    layer_scale = 0.0
    stochastic_depth_schedule = "linear"

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
            x = prepend([self.param("cls", nn.initializers.zeros, (1, 1, d))], x)
        first = 1 if self.pooling == "token" else 0
        num_queries = tokens_read(self, first) if first and not return_features else None
        x = make_encoder(self, (h, w), num_queries, residual_norm=True)(x, rng, train=train, keep=keep)
        if return_features:
            return Features(x[:, :first], x[:, first:], (h, w))
        x = x[:, 0] if self.pooling == "token" else SequencePooling(self.dtype, name="pool")(x)
        normal = nn.initializers.truncated_normal(stddev=0.02)
        return linear_head(x, self.num_classes, kernel_init=normal, dtype=self.dtype)

    def _tokenizer(self) -> nn.Module:
        if self.patch_size:
            return PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="embedding")
        sizes = self.width, self.convolutions, self.kernel_size, self.stride, self.channels
        return ConvTokenizer(*sizes, dtype=self.dtype, name="tokenizer")
