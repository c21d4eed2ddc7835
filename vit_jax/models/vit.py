"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and the sizes published for it."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.checks import check_vit
from vit_jax.models.features import Features
from vit_jax.models.layers import (
    Activation,
    AddPositions,
    DepthSchedule,
    Dtype,
    LayerScale,
    MAPHead,
    MlpBlock,
    PatchEmbedding,
    Pooling,
    PosEmbed,
    Remat,
    activate,
    square,
)
from vit_jax.models.naming import Naming
from vit_jax.ops.dropout import drop_path, dropout
from vit_jax.ops.fused_attention import Kernel
from vit_jax.ops.remat import recompute
from vit_jax.sharding import split_batch

Layer = Callable[..., Any]  # a Linen module with its options filled in

# width, depth, MLP width, heads, the patch sizes it was published with.
SIZES: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "mu": (32, 1, 128, 2, (16, 32)),  # for tests; big_vision, github.com/google-research/big_vision
    "Ti": (192, 12, 768, 3, (16,)),  # Touvron et al. 2021, arXiv:2012.12877, table 1
    "S": (384, 12, 1536, 6, (8, 14, 16, 32)),  # the same; 32: Steiner et al. 2022, arXiv:2106.10270, table 2
    "M": (512, 12, 2048, 8, (16, 32)),  # big_vision
    "B": (768, 12, 3072, 12, (8, 14, 16, 32)),  # Dosovitskiy et al. 2021, table 1
    "L": (1024, 24, 4096, 16, (14, 16, 32)),  # the same
    "H": (1280, 32, 5120, 16, (14, 16)),  # the same
    "g": (1408, 40, 6144, 16, (14, 16)),  # Zhai et al. 2022, arXiv:2106.04560, table 2
    "G": (1664, 48, 8192, 16, (14,)),  # the same
    "e": (1792, 56, 15360, 16, (14,)),  # Chen et al. 2023, arXiv:2209.06794, table 1
}


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published size: `S16` is size S with 16-pixel patches."""
    return {
        f"{size}{patch}": {
            "patch_size": (patch,),
            "width": width,
            "depth": depth,
            "mlp_dim": mlp_dim,
            "num_heads": heads,
        }
        for size, (width, depth, mlp_dim, heads, patches) in SIZES.items()
        for patch in patches
    }


class EncoderBlock(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each with a residual connection."""

    attention: Layer
    mlp: Layer
    norm: Layer
    projection_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float = 0.0
    residual_norm: bool = False  # the MLP's residual connection carries the normalised tokens
    queries: int = 0  # how many tokens, the first ones, are computed; 0: all

    @nn.compact
    def __call__(
        self, x: Float[Array, "n m d"], rng: Key[Array, ""], drop_rate: Float[Array, ""], *, train: bool
    ) -> Float[Array, "n l d"]:
        """`drop_rate` is this layer's rate of stochastic depth: an array, because it differs between scanned layers."""
        rngs = jax.random.split(rng, 5)
        l, tokens = (self.queries, x.shape[1]) if self.queries else (x.shape[1], 0)

        def residual(y: Float[Array, "n l d"], rng: Key[Array, ""], name: str) -> Float[Array, "n l d"]:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=name)(y)
            return drop_path(y, drop_rate, rng) if train and self.stochastic_depth else y

        y = self.norm(name="LayerNorm_0")(x)
        y = self.attention(tokens=tokens, name="MultiHeadDotProductAttention_1")(y[:, :l], y, rngs[0], train=train)
        y = dropout(y, self.projection_dropout, rngs[1], train=train, tokens=tokens)
        x = x[:, :l] + residual(y, rngs[2], "LayerScale_0")

        y = self.norm(name="LayerNorm_2")(x)
        x = y if self.residual_norm else x
        y = self.mlp(tokens=tokens, name="MlpBlock_3")(y, rngs[3], train=train)
        x = x + residual(y, rngs[4], "LayerScale_1")
        self.sow("intermediates", "tokens", x)
        return self.perturb("tokens", x)


class Encoder(nn.Module):
    """PosEmbed, registers, `depth` blocks (looped, or scanned over stacked parameters), final layer norm."""

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
    queries: int = 0  # how many tokens, the first ones, the last block computes; 0, or if it is scanned: all

    @nn.compact
    def __call__(
        self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool, keep: Int[Array, "n k"] | None = None
    ) -> Float[Array, "n m d"]:
        """Class tokens and patches become class tokens, registers and patches, those that `keep` names."""
        x = dropout(self._embed(x, keep), self.embedding_dropout, jax.random.fold_in(rng, self.depth), train=train)

        def layer(block: EncoderBlock, x: Float[Array, "n l d"], inputs: tuple[Any, Any]) -> tuple[Any, None]:
            return split_batch(block(split_batch(x), *inputs, train=train)), None

        layer = recompute(layer, self.remat, scan=self.scan)
        rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(self.depth))
        rate = self.stochastic_depth
        drop_rates = jnp.linspace(0.0 if self.stochastic_depth_schedule == "linear" else rate, rate, self.depth)
        if self.scan:
            axes: dict[Any, int] = {"params": 0, "intermediates": 0, "perturbations": 0}
            stack = nn.scan(layer, variable_axes=axes, split_rngs={"params": True}, length=self.depth)
            x, _ = stack(self.block(name="encoderblock"), x, (rngs, drop_rates))
        else:
            for i in range(self.depth):
                block = self.block(queries=self.queries if i == self.depth - 1 else 0, name=f"encoderblock_{i}")
                x, _ = layer(block, x, (rngs[i], drop_rates[i]))
        return self.norm(name="encoder_norm")(x) if self.norm else x

    def _embed(self, x: Float[Array, "n l d"], keep: Int[Array, "n k"] | None) -> Float[Array, "n m d"]:
        """Adds positions, leaves out patches, and inserts registers (Darcet et al. 2024, arXiv:2309.16588)."""
        if keep is not None and self.pos_embed in ("relative", "relative_bias"):
            raise UserError(
                f"keep= leaves out patches, but model.pos_embed={self.pos_embed!r} needs all; choose 'learned'"
            )
        if self.pos_embed in ("learned", "learned_2d", "sincos2d"):
            x = AddPositions(self.pos_embed, self.grid, name="posembed_input")(x)
        if keep is None and not self.registers:
            return x
        p = x.shape[1] - self.grid[0] * self.grid[1]
        first, patches = x[:, :p], x[:, p:]
        if keep is not None:
            patches = jnp.take_along_axis(patches, keep[..., None], axis=1)
        parts = [first, patches]
        if self.registers:
            n, _, d = x.shape
            registers = self.param("registers", nn.initializers.normal(stddev=0.02), (1, self.registers, d))
            parts.insert(1, jnp.broadcast_to(registers.astype(x.dtype), (n, self.registers, d)))
        return jnp.concatenate(parts, axis=1)


def tokens_read(model: nn.Module, tokens: int) -> int:
    """`tokens`, the first ones, if the head reads no others; 0, all, if somebody looks inside the model.

    The last block then computes these alone, to the same result: 10 % of ViT-Ti/16's step on a CPU, 7 % of ViT-B/16's
    operations.
    """
    looked_at = any(model.is_mutable_collection(name) for name in ("intermediates", "perturbations"))
    return 0 if looked_at or model.is_initializing() or model.variables.get("perturbations") else tokens


class ViT(nn.Module):
    """A Vision Transformer: images [n H W c] to logits [n k]; its fields are the config group `model`.

    Parameters are named as in the authors' checkpoints. Tokens after each block and attention probabilities are
    sown in the collection `intermediates`. Where that is not asked for, and `pooling` is `token`, the last block
    computes only what the head reads: 7 % less work for ViT-B/16, and the same result (not under `scan`).

    With `distillation_token` a second token and a second head, `head_dist`, learn from a teacher (Touvron et al. 2021,
    arXiv:2012.12877, s. 3). In evaluation the output is the mean of both heads' logits. In training it is the class
    head's alone, and the other's are sown as `logits` in the collection `distillation`: with
    `logits, seen = model.apply(..., train=True, mutable="distillation")` they are `seen["distillation"]["logits"][0]`.
    Without a loss on these, `head_dist` learns nothing, and evaluation averages it all the same.
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
    pooling: Pooling = "token"  # the class token; gap, map: mean, attention over patches; token_gap; flatten; none
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
    stochastic_depth: float = 0.0  # of the last block
    stochastic_depth_schedule: DepthSchedule = "linear"  # from 0 at the first block; or uniform: in all the same
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

        x = self.embed(images)
        n, h, w, d = x.shape
        first = self._class_tokens(d)
        x = jnp.concatenate(
            [*(jnp.broadcast_to(token.astype(x.dtype), (n, 1, d)) for token in first), x.reshape(n, h * w, d)], axis=1
        )
        queries = tokens_read(self, len(first)) if self.pooling == "token" and not return_features else 0
        x = self._encoder((h, w), queries)(x, encoder_rng, train=train, keep=keep)
        p = len(first) + self.registers
        prefix, patches = x[:, :p], x[:, p:]
        if return_features:
            return Features(prefix, patches, (h, w))
        pooled = self._pool(prefix, patches, pool_rng, train=train)
        if self.norm_after_pooling:
            pooled = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pooled_norm")(pooled)
        logits = self._head(pooled, head_rng, train=train)
        if not self.distillation_token:
            return logits
        distilled = self._logits(x[:, 1], jax.random.fold_in(head_rng, 1), train=train, name="head_dist")
        if train:
            self.sow("distillation", "logits", distilled)
        return logits if train else (logits + distilled) / 2

    def features(
        self, images: Float[Array, "n H W c"], *, train: bool, keep: Int[Array, "n k"] | None = None
    ) -> Features:
        """The encoder's tokens; of the patches only those that `keep` names are computed, all without it.

        They are normalised unless `norm_after_pooling`. With positions in the logits, `keep` raises `UserError`.
        """
        found = self(images, train=train, keep=keep, return_features=True)
        assert isinstance(found, Features)
        return found

    def _class_tokens(self, d: int) -> list[Float[Array, "1 1 d"]]:
        tokens = [self.param("cls", nn.initializers.zeros, (1, 1, d))] if self.class_token else []
        if self.distillation_token:
            tokens.append(self.param("dist", nn.initializers.normal(stddev=0.02), (1, 1, d)))
        return tokens

    def embed(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        """The patches, embedded."""
        return PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="embedding")(images)

    def _encoder(self, grid: tuple[int, int], queries: int) -> Encoder:
        norm = partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        attention = partial(
            MultiHeadDotProductAttention,
            self.num_heads,
            self.head_dim or self.width // self.num_heads,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_epsilon=self.norm_epsilon,
            dropout=self.attention_dropout,
            pos_embed=self.pos_embed,
            grid=grid,
            kernel=self.attention,
            dtype=self.dtype,
        )
        mlp = partial(
            MlpBlock, self.mlp_dim, self.activation, self.mlp_output_activation, self.dropout, dtype=self.dtype
        )
        block = partial(
            EncoderBlock, attention, mlp, norm, self.projection_dropout, self.stochastic_depth, self.layer_scale
        )
        return Encoder(
            block,
            None if self.norm_after_pooling else norm,
            self.depth,
            self.pos_embed,
            grid,
            self.registers,
            self.embedding_dropout,
            self.stochastic_depth,
            self.stochastic_depth_schedule,
            self.scan,
            self.remat,
            queries,
            name="Transformer",
        )

    def _pool(
        self, prefix: Float[Array, "n p d"], patches: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool
    ) -> Float[Array, "n ..."]:
        match self.pooling:
            case "token":
                return prefix[:, 0]
            case "token_gap":
                return jnp.concatenate([prefix[:, 0], patches.mean(axis=1)], axis=-1)
            case "gap":
                return patches.mean(axis=1)
            case "map":
                return MAPHead(
                    self.num_heads, self.mlp_dim, self.activation, self.norm_epsilon, self.dtype, name="MAPHead_0"
                )(patches, rng, train=train)
            case "flatten":
                return patches.reshape(patches.shape[0], -1)
        return patches

    def _head(self, x: Float[Array, "n ..."], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n ..."]:
        rngs = jax.random.split(rng, len(self.head_widths) + 1)
        if self.pre_logits:
            x = nn.tanh(nn.Dense(self.pre_logits, dtype=self.dtype, name="pre_logits")(x))
        for i, width in enumerate(self.head_widths):
            x = dropout(x, self.head_dropout, rngs[i], train=train)
            x = activate(nn.Dense(width, dtype=self.dtype, name=f"head_hidden_{i}")(x), self.activation)
        return self._logits(x, rngs[-1], train=train, name="head")

    def _logits(
        self, x: Float[Array, "n ..."], rng: Key[Array, ""], *, train: bool, name: str
    ) -> Float[Array, "n ..."]:
        """One linear head; without classes its input."""
        x = dropout(x, self.head_dropout, rng, train=train)
        if not self.num_classes:
            return x
        kernel_init = nn.initializers.zeros if self.zero_head else nn.initializers.xavier_uniform()
        bias_init = nn.initializers.constant(self.head_bias)
        head = nn.Dense(self.num_classes, kernel_init=kernel_init, bias_init=bias_init, dtype=self.dtype, name=name)
        return head(x).astype(jnp.float32)
