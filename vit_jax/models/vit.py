"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and the sizes published for it."""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.checks import check_vit
from vit_jax.models.features import Features, TokenBackbone
from vit_jax.models.head import vit_head, vit_logits
from vit_jax.models.layers import Activation, Dtype, LayerScale, MlpBlock, PatchEmbedding, square
from vit_jax.models.naming import Naming
from vit_jax.models.pooling import Pooling, pool
from vit_jax.models.positions import IN_LOGITS, AddPositions, PosEmbed
from vit_jax.models.sequence import prepend, random_patches, select_patches
from vit_jax.models.stack import Layer, Remat, apply_blocks, tokens_read
from vit_jax.ops.dropout import drop_path, dropout
from vit_jax.ops.fused_attention import Kernel
from vit_jax.setting import setting

DepthSchedule = Literal["linear", "uniform"]


class EncoderBlock(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each with a residual connection."""

    attention: Layer
    mlp: Layer
    norm: Layer
    projection_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float = 0.0
    residual_norm: bool = False  # the MLP's residual connection carries the normalised tokens
    num_queries: int | None = None  # how many tokens, the first ones, are computed; None: all

    @nn.compact
    def __call__(
        self, x: Float[Array, "n m d"], rng: Key[Array, ""], drop_rate: Float[Array, ""], *, train: bool
    ) -> Float[Array, "n l d"]:
        """`drop_rate` is this layer's rate of stochastic depth: an array, because it differs between scanned layers."""
        rngs = jax.random.split(rng, 5)
        m = x.shape[1]
        l = self.num_queries or m

        def residual(y: Float[Array, "n l d"], rng: Key[Array, ""], name: str) -> Float[Array, "n l d"]:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=name)(y)
            return drop_path(y, drop_rate, rng) if train and self.stochastic_depth else y

        y = self.norm(name="LayerNorm_0")(x)
        y = self.attention(name="MultiHeadDotProductAttention_1")(y[:, :l], y, rngs[0], train=train)
        y = dropout(y, self.projection_dropout, rngs[1], train=train, num_tokens=m)
        x = x[:, :l] + residual(y, rngs[2], "LayerScale_0")

        y = self.norm(name="LayerNorm_2")(x)
        x = y if self.residual_norm else x
        y = self.mlp(name="MlpBlock_3")(y, rngs[3], train=train, num_tokens=m)
        x = x + residual(y, rngs[4], "LayerScale_1")
        self.sow("intermediates", "tokens", x)
        return self.perturb("tokens", x)


class Encoder(nn.Module):
    """Positions, registers, `depth` blocks, final layer norm."""

    block: Layer
    norm: Layer | None
    depth: int
    pos_embed: str
    grid: tuple[int, int]
    registers: int = 0
    embedding_dropout: float = 0.0
    stochastic_depth: float = 0.0
    stochastic_depth_schedule: DepthSchedule = "linear"
    scan: bool = False
    remat: Remat = "none"
    # How many tokens, the first ones, the last block computes; None, or if it is scanned: all.
    num_queries: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool, keep: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n m d"]:
        """In: class tokens and all patches. Out: class tokens, registers, the patches that `keep` names (None: all).

        With `num_queries`, only so many of these, the first ones.
        """
        x = dropout(self._embed(x, keep), self.embedding_dropout, jax.random.fold_in(rng, self.depth), train=train)
        rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(self.depth))
        rate = self.stochastic_depth
        drop_rates = jnp.linspace(0.0 if self.stochastic_depth_schedule == "linear" else rate, rate, self.depth)
        x = apply_blocks(self.block, x, (rngs, drop_rates), self.scan, self.remat, self.num_queries, train=train)
        return self.norm(name="encoder_norm")(x) if self.norm else x

    def _embed(self, x: Float[Array, "n l d"], keep: Int[Array, "n k"] | None) -> Float[Array, "n m d"]:
        """Adds positions, leaves out patches, and inserts registers (Darcet et al. 2024, arXiv:2309.16588)."""
        if keep is not None and self.pos_embed in IN_LOGITS:
            raise UserError(
                f"keep= leaves out patches, but model.pos_embed={self.pos_embed!r} needs all; choose 'learned'"
            )
        if self.pos_embed not in (*IN_LOGITS, "none"):
            x = AddPositions(self.pos_embed, self.grid, name="posembed_input")(x)
        shape, normal = (1, self.registers, x.shape[2]), nn.initializers.normal(stddev=0.02)
        registers = self.param("registers", normal, shape) if self.registers else None
        return select_patches(x, self.grid[0] * self.grid[1], keep, registers)


def make_encoder(
    model: Any,
    grid: tuple[int, int],
    num_queries: int | None,
    *,
    residual_norm: bool = False,
    attention: Layer = MultiHeadDotProductAttention,
    mlp: Layer = MlpBlock,
) -> Encoder:
    """The encoder that the fields of a ViT, or of a model with the same, describe; the module `Transformer`."""
    norm = partial(nn.LayerNorm, epsilon=model.norm_epsilon, dtype=model.dtype)
    attention = partial(
        attention,
        model.num_heads,
        model.head_dim or model.width // model.num_heads,
        model.qkv_bias,
        model.qk_norm,
        model.norm_epsilon,
        model.attention_dropout,
        model.pos_embed,
        grid,
        model.attention,
        model.dtype,
    )
    activations = model.activation, model.mlp_output_activation
    mlp = partial(mlp, model.mlp_dim, *activations, model.dropout, dtype=model.dtype)
    rates = model.projection_dropout, model.stochastic_depth
    block = partial(EncoderBlock, attention, mlp, norm, *rates, model.layer_scale, residual_norm)
    return Encoder(
        block,
        None if model.norm_after_pooling else norm,
        model.depth,
        model.pos_embed,
        grid,
        model.registers,
        model.embedding_dropout,
        model.stochastic_depth,
        model.stochastic_depth_schedule,
        model.scan,
        model.remat,
        num_queries,
        name="Transformer",
    )


class ViT(TokenBackbone):
    """A Vision Transformer: images [n H W c] to logits [n k]; its fields are the config group `model`.

    With `pooling="none"` each token has logits, [n l k]; without classes the output is the pooled features, [n d]. A
    command calls `check` first, which explains sizes that do not fit: the model itself does not.

    Parameters are named as in the authors' checkpoints. Tokens after each block and attention probabilities are sown in
    the collection `intermediates`. If nobody asks for them, the last block computes only what the head reads.

    With `distillation_token` a second token and a second head, `head_dist`, learn from a teacher (Touvron et al. 2021,
    arXiv:2012.12877, s. 3). In evaluation the output is the mean of both heads' logits. In training it is the class
    head's logits alone; those of `head_dist` are sown as `logits` in the collection `distillation`. Without a loss on
    them `head_dist` stays untrained, but evaluation still averages it.
    """

    NAMING: ClassVar[Naming] = Naming(
        layers=(
            r"(?:embedding|cls|dist|Transformer/posembed_input|Transformer/registers)(?:/|$)",
            r"Transformer/encoderblock_(\d+)/",
        ),
        sharding=(  # heads and MLP width over `tensor`
            (r"(query|key|value)/kernel$", P("fsdp", "tensor", None)),
            (r"(query|key|value)/bias$", P("tensor", None)),
            (r"out/kernel$", P("tensor", None, "fsdp")),
            (r"MlpBlock_\d+/(Dense_0|gate)/kernel$", P("fsdp", "tensor")),
            (r"MlpBlock_\d+/(Dense_0|gate)/bias$", P("tensor")),
            (r"MlpBlock_\d+/Dense_1/kernel$", P("tensor", "fsdp")),
            (r"pos_embedding$", P(None, None, "fsdp")),
        ),
        head="head|head_dist",
        head_hidden=r"head_hidden_\d+",
        head_input="pre_logits",
        tokens={"cls": "class_token", "dist": "distillation_token"},
        modules={"head_dist": "distillation_token", "pre_logits": "pre_logits"},
        tied=r"relative_embedding$",
    )

    patch_size: tuple[int, ...]  # pixels: height and width, or one number for both
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    head_dim: int = 0  # size per head; 0: width / heads
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    class_token: bool = True
    distillation_token: bool = False  # DeiT's, after the class token
    registers: int = 0  # extra tokens that no pooling reads
    pos_embed: PosEmbed = "learned"
    # What the head reads. token: the class token; gap, map, sequence: the mean, attention over, the weighted mean of
    # patches; token_gap: the class token beside the mean; flatten: all patches in a row; none: each patch for itself.
    pooling: Pooling = "token"
    norm_after_pooling: bool = False  # the last layer norm sees the pooled token, not each one before (timm's fc_norm)
    activation: Activation = "gelu"
    mlp_output_activation: bool = False  # the activation once more, after the MLP's second layer
    norm_epsilon: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float = 0.0  # initial value; 0: off
    dropout: float = 0.0  # after both layers of each MLP
    projection_dropout: float = 0.0  # after each attention's output projection
    attention_dropout: float = 0.0  # on attention probabilities
    embedding_dropout: float = 0.0  # on patch embeddings plus positions
    patch_dropout: float = 0.0  # share of the patches that training leaves out (Liu et al. 2022, arXiv:2208.07220)
    stochastic_depth: float = 0.0  # of the last block
    # From 0 at the first block; or uniform: in all the same.
    stochastic_depth_schedule: DepthSchedule = setting("linear", active_if="model.stochastic_depth")
    pre_logits: int = 0  # width of a tanh layer before the head; 0: none
    head_widths: tuple[int, ...] = ()  # hidden layers of the head
    head_dropout: float = 0.0  # before each layer of the head
    zero_head: bool = True  # the last layer's kernel starts at zero
    head_bias: float = 0.0  # the last layer's initial bias
    dtype: Dtype = "float32"  # of matrix products; parameters and softmax stay float32
    attention: Kernel = "plain"  # cudnn, pallas: fused kernels of GPUs and TPUs; auto: the fastest in training, timed
    scan: bool = False  # one compiled block for all layers: compile time does not grow with depth
    # Recompute in the backward pass: all but matrix products (dots), everything (full), as much as memory asks (auto).
    remat: Remat = "none"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other or images of this shape (height, width, channels)."""
        check_vit(self, image_shape)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches for images [... H W c]."""
        p, q = square(self.patch_size)
        return image_shape[-3] // p, image_shape[-2] // q

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n H W c"],
        *,
        train: bool,
        keep: Int[Array, "n k"] | None = None,
        return_features: bool = False,
    ) -> Float[Array, "n ..."] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        encoder_rng, pool_rng, head_rng = jax.random.split(rng, 3)
        x = self.embed(images, train=train)
        n, h, w, d = x.shape
        if train and self.patch_dropout and keep is None:
            keep = random_patches(jax.random.fold_in(encoder_rng, self.depth + 1), n, h * w, self.patch_dropout)
        first = [self.param("cls", nn.initializers.zeros, (1, 1, d))] if self.class_token else []
        if self.distillation_token:
            first.append(self.param("dist", nn.initializers.normal(stddev=0.02), (1, 1, d)))
        x = prepend(first, x.reshape(n, h * w, d))
        reads_first = self.pooling == "token" and not return_features
        num_queries = tokens_read(self, len(first)) if reads_first else None
        x = self.encoder((h, w), num_queries)(x, encoder_rng, train=train, keep=keep)
        p = len(first) + self.registers
        prefix, patches = x[:, :p], x[:, p:]
        if return_features:
            return Features(prefix, patches, (h, w))
        pooled = pool(self, prefix, patches, pool_rng, train=train)
        if self.norm_after_pooling:
            pooled = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pooled_norm")(pooled)
        logits = vit_head(self, pooled, head_rng, train=train)
        if not self.distillation_token:
            return logits
        distilled = vit_logits(self, x[:, 1], jax.random.fold_in(head_rng, 1), train=train, name="head_dist")
        if train:
            self.sow("distillation", "logits", distilled)
        return logits if train else (logits + distilled) / 2

    def embed(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w d"]:
        """The patches, embedded."""
        return PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="embedding")(images)

    def encoder(self, grid: tuple[int, int], num_queries: int | None) -> Encoder:
        """The blocks behind the embedding."""
        return make_encoder(self, grid, num_queries)
