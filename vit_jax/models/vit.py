"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and the sizes published for it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention, dropout
from vit_jax.models.checks import check_patches, check_positive, check_rates, check_widths
from vit_jax.models.fused import Kernel
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
    Positions,
    Remat,
    activate,
    drop_path,
    recompute,
    square,
)
from vit_jax.models.naming import Naming
from vit_jax.sharding import split_batch

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
            "mlp_width": mlp_width,
            "heads": heads,
        }
        for size, (width, depth, mlp_width, heads, patches) in SIZES.items()
        for patch in patches
    }


class EncoderBlock(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each with a residual connection."""

    heads: int
    head_width: int
    mlp_width: int
    grid: tuple[int, int]
    positions: str
    dropout: float
    projection_dropout: float
    attention_dropout: float
    stochastic_depth: float
    layer_scale: float
    qk_norm: bool
    qkv_bias: bool
    activation: str
    mlp_output_activation: bool
    norm_epsilon: float
    dtype: str
    attention: str = "plain"
    residual_norm: bool = False  # the MLP's residual connection carries the normalised tokens
    read: int = 0  # how many tokens, the first ones, are read afterwards; 0: all

    @nn.compact
    def __call__(
        self, x: Float[Array, "n m d"], rng: Key[Array, ""], drop_rate: Float[Array, ""], *, train: bool
    ) -> Float[Array, "n l d"]:
        """The tokens that are `read`; all of them where somebody looks inside.

        `drop_rate` is this layer's rate of stochastic depth: an array, because it differs between scanned layers.
        """
        rngs = jax.random.split(rng, 5)
        n, m, d = x.shape
        l = self._computed(m)

        def residual(y: Float[Array, "n l d"], rng: Key[Array, ""], name: str) -> Float[Array, "n l d"]:
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=name)(y)
            return drop_path(y, drop_rate, rng) if train and self.stochastic_depth else y

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="LayerNorm_0")(x)
        y = MultiHeadDotProductAttention(
            self.heads,
            self.head_width,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_epsilon=self.norm_epsilon,
            dropout=self.attention_dropout,
            positions=self.positions,
            grid=self.grid,
            kernel=self.attention if l == m else "plain",  # fused kernels pad a few queries to many
            dtype=self.dtype,
            name="MultiHeadDotProductAttention_1",
        )(y if l == m else y[:, :l], y, rngs[0], train=train, of=m)
        y = dropout(y, self.projection_dropout, rngs[1], train=train, of=(n, m, d))
        x = x[:, :l] + residual(y, rngs[2], "LayerScale_0")

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="LayerNorm_2")(x)
        x = y if self.residual_norm else x
        y = MlpBlock(
            self.mlp_width,
            activation=self.activation,
            output_activation=self.mlp_output_activation,
            dropout=self.dropout,
            dtype=self.dtype,
            name="MlpBlock_3",
        )(y, rngs[3], train=train, of=m)
        x = x + residual(y, rngs[4], "LayerScale_1")
        self.sow("intermediates", "tokens", x)
        return self.perturb("tokens", x)

    def _computed(self, m: int) -> int:
        """How many of the m tokens are computed."""
        looked_at = any(self.is_mutable_collection(name) for name in ("intermediates", "perturbations"))
        if looked_at or self.is_initializing() or self.variables.get("perturbations"):
            return m
        return self.read or m


class Encoder(nn.Module):
    """Positions, `depth` blocks (looped, or scanned over stacked parameters), final layer norm."""

    depth: int
    registers: int
    embedding_dropout: float
    scan: bool
    remat: str
    block: dict[str, Any]
    norm: bool = True  # of the tokens that it returns
    read: int = 0  # how many tokens, the first ones, are read afterwards; 0: all
    stochastic_depth_schedule: DepthSchedule = "linear"

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n l2 d"]:
        """Where few tokens are read, the last block need not compute the others; a scanned one does."""
        positions, dtype = self.block["positions"], self.block["dtype"]
        if positions in ("learned", "learned_2d", "sincos2d"):
            x = AddPositions(positions, self.block["grid"], name="posembed_input")(x)
        x = self._add_registers(x)
        x = dropout(x, self.embedding_dropout, jax.random.fold_in(rng, self.depth), train=train)

        def layer(block: EncoderBlock, x: Float[Array, "n l d"], inputs: tuple[Any, Any]) -> tuple[Any, None]:
            return split_batch(block(split_batch(x), *inputs, train=train)), None

        layer = recompute(layer, self.remat, scan=self.scan)
        rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(self.depth))
        rate = self.block["stochastic_depth"]
        drop_rates = jnp.linspace(0.0 if self.stochastic_depth_schedule == "linear" else rate, rate, self.depth)
        if self.scan:
            axes: dict[Any, int] = {"params": 0, "intermediates": 0, "perturbations": 0}
            stack = nn.scan(layer, variable_axes=axes, split_rngs={"params": True}, length=self.depth)
            x, _ = stack(EncoderBlock(**self.block, name="encoderblock"), x, (rngs, drop_rates))
        else:
            for i in range(self.depth):
                block = EncoderBlock(
                    **self.block, read=self.read if i == self.depth - 1 else 0, name=f"encoderblock_{i}"
                )
                x, _ = layer(block, x, (rngs[i], drop_rates[i]))
        if not self.norm:
            return x
        return nn.LayerNorm(epsilon=self.block["norm_epsilon"], dtype=dtype, name="encoder_norm")(x)

    def _add_registers(self, x: Float[Array, "n l d"]) -> Float[Array, "n l2 d"]:
        """Inserts registers before the patches, after the class token (Darcet et al. 2024, arXiv:2309.16588)."""
        if not self.registers:
            return x
        n, l, d = x.shape
        h, w = self.block["grid"]
        registers = self.param("registers", nn.initializers.normal(stddev=0.02), (1, self.registers, d))
        registers = jnp.broadcast_to(registers.astype(x.dtype), (n, self.registers, d))
        return jnp.concatenate([x[:, : l - h * w], registers, x[:, l - h * w :]], axis=1)


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
    mlp_width: int
    heads: int
    head_width: int = 0  # size per head; 0: width / heads
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    class_token: bool = True
    distillation_token: bool = False  # DeiT's, after the class token
    registers: int = 0  # extra tokens that no pooling reads
    positions: Positions = "learned"
    pooling: Pooling = "token"  # token, mean (gap) or attention (map) over tokens, flatten; none: logits per patch
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
        check_positive(self, "width", "depth", "mlp_width", "heads")
        check_patches(self.patch_size, image_shape)
        for field in ("head_width", "registers", "pre_logits"):
            if getattr(self, field) < 0:
                raise UserError(f"model.{field}={getattr(self, field)} is negative; 0 means off")
        check_widths(self, "head_widths")
        if not self.head_width and self.width % self.heads:
            raise UserError(
                f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor, or set "
                "model.head_width"
            )
        if self.pooling == "map" and self.width % self.heads:
            raise UserError(f"model.pooling='map' needs heads={self.heads} to divide width={self.width}")
        if self.pooling in ("token", "token_gap") and not self.class_token:
            raise UserError(f"model.pooling={self.pooling!r} needs model.class_token=True; or choose pooling='gap'")
        if self.norm_after_pooling and (self.distillation_token or self.pooling in ("flatten", "none")):
            raise UserError(
                f"model.norm_after_pooling=True normalises one pooled token, not those of pooling={self.pooling!r}, "
                f"distillation_token={self.distillation_token}; set it to False"
            )
        parts = {"learned_2d": 2, "sincos2d": 4}.get(self.positions, 1)
        if self.width % parts:
            raise UserError(f"model.positions={self.positions!r} needs a width divisible by {parts}, not {self.width}")
        check_rates(self, "dropout", "projection_dropout", "attention_dropout", "embedding_dropout", "head_dropout")
        check_rates(self, "stochastic_depth")
        if self.distillation_token and (self.pooling != "token" or self.pre_logits or self.head_widths):
            raise UserError(
                "model.distillation_token=True needs pooling='token', pre_logits=0 and head_widths=(), not "
                f"{self.pooling!r}, {self.pre_logits} and {self.head_widths}: each of both tokens has one linear head"
            )

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches for images [... H W c]."""
        p, q = square(self.patch_size)
        return image_shape[-3] // p, image_shape[-2] // q

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n ..."]:
        grid = self.grid(images.shape)
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        encoder_rng, pool_rng, head_rng = jax.random.split(rng, 3)

        x = self.embed(images)
        n, h, w, d = x.shape
        x = x.reshape(n, h * w, d)
        first = [self.param("cls", nn.initializers.zeros, (1, 1, d))] if self.class_token else []
        if self.distillation_token:
            first.append(self.param("dist", nn.initializers.normal(stddev=0.02), (1, 1, d)))
        x = jnp.concatenate([*(jnp.broadcast_to(token.astype(x.dtype), (n, 1, d)) for token in first), x], axis=1)
        x = self._encoder(grid)(x, encoder_rng, train=train)
        pooled = self._pool(x, grid, pool_rng, train=train)
        if self.norm_after_pooling:
            pooled = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pooled_norm")(pooled)
        logits = self._head(pooled, head_rng, train=train)
        if not self.distillation_token:
            return logits
        distilled = self._logits(x[:, 1], jax.random.fold_in(head_rng, 1), train=train, name="head_dist")
        if train:
            self.sow("distillation", "logits", distilled)
        return logits if train else (logits + distilled) / 2

    def embed(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        """The patches, embedded."""
        return PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="embedding")(images)

    def _encoder(self, grid: tuple[int, int]) -> Encoder:
        shared = [f for f in EncoderBlock.__dataclass_fields__ if f in ViT.__dataclass_fields__]
        block = {f: getattr(self, f) for f in shared if f not in ("parent", "name")}
        block |= {"grid": grid, "head_width": self.head_width or self.width // self.heads}
        return Encoder(
            self.depth,
            self.registers,
            self.embedding_dropout,
            self.scan,
            self.remat,
            block,
            not self.norm_after_pooling,
            1 + self.distillation_token if self.pooling == "token" else 0,
            self.stochastic_depth_schedule,
            name="Transformer",
        )

    def _pool(self, x: Float[Array, "n l d"], grid: tuple[int, int], rng: Key[Array, ""], *, train: bool):
        patches = x[:, x.shape[1] - grid[0] * grid[1] :]
        match self.pooling:
            case "token":
                return x[:, 0]
            case "token_gap":
                return jnp.concatenate([x[:, 0], patches.mean(axis=1)], axis=-1)
            case "gap":
                return patches.mean(axis=1)
            case "map":
                return MAPHead(
                    self.heads, self.mlp_width, self.activation, self.norm_epsilon, self.dtype, name="MAPHead_0"
                )(patches, rng, train=train)
            case "flatten":
                return patches.reshape(len(x), -1)
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
