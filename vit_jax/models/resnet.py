"""Residual networks (He et al. 2015, arXiv:1512.03385), version 1.5: a bottleneck strides in its 3x3 convolution.

Shapes: `n` images, `h w` map, `c` channels, `k` classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.models.checks import check_positive, check_rates
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Dtype
from vit_jax.models.naming import Naming
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.dropout import drop_path, dropout
from vit_jax.ops.pooling import max_pool

Norm = Literal["batch", "layer", "group"]
Stem = Literal["imagenet", "small"]
Layer = Callable[..., Any]  # a Linen module with its options filled in
GROUPS = 32  # of group norm (Wu and He 2018, arXiv:1803.08494)

# Blocks of each stage; whether they are bottlenecks. He et al. 2015, table 1.
SIZES: dict[str, tuple[tuple[int, ...], bool]] = {
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
    "152": ((3, 8, 36, 3), True),
}


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published size."""
    return {name: {"stage_sizes": sizes, "bottleneck": bottleneck} for name, (sizes, bottleneck) in SIZES.items()}


def convolution(features: int, size: int, stride: int = 1, *, dtype: str, name: str) -> nn.Conv:
    """A convolution without bias that pads both sides alike, as PyTorch does: `SAME` pads one side more at stride 2."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def normalization(kind: str, epsilon: float, momentum: float, dtype: str, *, train: bool) -> Layer:
    """The norm by name: `batch` keeps running statistics, `layer` looks at one position, `group` at one image's map."""
    match kind:
        case "batch":
            average = not train
            return partial(nn.BatchNorm, use_running_average=average, momentum=momentum, epsilon=epsilon, dtype=dtype)
        case "layer":
            return partial(nn.LayerNorm, epsilon=epsilon, dtype=dtype)
        case "group":
            return partial(nn.GroupNorm, num_groups=GROUPS, epsilon=epsilon, dtype=dtype)
    raise UserError(f"model.norm={kind!r} is unknown; choose batch, layer or group")


def check_stages(stage_sizes: tuple[int, ...]) -> None:
    """Raises `UserError` if these are not numbers of blocks."""
    if not stage_sizes or min(stage_sizes) < 1:
        raise UserError(f"model.stage_sizes={stage_sizes} must be positive numbers of blocks, e.g. (2, 2, 2, 2)")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; or a bottleneck of 1x1, 3x3, and 1x1 to four times the channels (s. 3.3 and fig. 5)."""

    channels: int
    stride: int
    bottleneck: bool
    zero_init_last_norm: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], rng: Key[Array, ""], drop_rate: float, *, train: bool
    ) -> Float[Array, "n h2 w2 c2"]:
        c, s = self.channels, self.stride
        layers = [(c, 1, 1), (c, 3, s), (4 * c, 1, 1)] if self.bottleneck else [(c, 3, s), (c, 3, 1)]
        y = x
        for i, (channels, size, stride) in enumerate(layers, 1):
            zero = self.zero_init_last_norm and i == len(layers)
            y = self.conv(channels, size, stride, name=f"conv{i}")(y)
            y = self.norm(scale_init=nn.initializers.zeros if zero else nn.initializers.ones, name=f"norm{i}")(y)
            y = nn.relu(y) if i < len(layers) else y
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(self.conv(y.shape[-1], 1, s, name="conv_proj")(x))
        if train and drop_rate:
            n, h, w, _ = y.shape
            y = drop_path(y.reshape(n, h * w, -1), jnp.float32(drop_rate), rng).reshape(y.shape)
        return nn.relu(x + y)


class ResNet(MapBackbone):
    """A residual network: images [n H W c] to logits [n k]; its fields are the config group `model`.

    Batch norm keeps running statistics in the collection `batch_stats`; their variance is that of the batch, where
    PyTorch's is multiplied by size / (size - 1).
    """

    NAMING: ClassVar[Naming] = Naming(layers=(r"(?:conv_root|norm_root)/", r"stage(\d+)_block(\d+)/"))

    stage_sizes: tuple[int, ...]  # blocks of each stage; the channels double and the map halves from stage to stage
    bottleneck: bool
    width: int = 64  # channels of the stem and of the first stage's 3x3 convolutions
    stem: Stem = "imagenet"  # 7x7 with stride 2, 3x3 max-pooling with stride 2; small, for 32 pixels: 3x3 alone
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    norm: Norm = "batch"
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9  # what running statistics keep of themselves at a step
    zero_init_last_norm: bool = True  # blocks start as the identity (Goyal et al. 2017, arXiv:1706.02677, s. 5.1)
    stochastic_depth: float = 0.0  # of the last block; grows linearly from 0 at the first
    dropout: float = 0.0  # before the head
    dtype: Dtype = "float32"  # of convolutions and matrix products; parameters and statistics stay float32

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other; images of any shape do."""
        check_stages(self.stage_sizes)
        check_positive(self, "width")
        check_rates(self, "stochastic_depth", "dropout")
        if self.norm == "group" and self.width % GROUPS:
            raise UserError(f"model.norm='group' needs a width divisible by its {GROUPS} groups, not {self.width}")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        trunk_rng, summary_rng, head_rng = jax.random.split(rng, 3)
        stages = self._trunk(images.astype(self.dtype), trunk_rng, train=train)
        x = stages[-1]
        if return_features:
            return self.last_features(x, summary_rng, train=train).replace(stages=tuple(stages))
        x = self.summarise(x, summary_rng, train=train)
        x = dropout(x, self.dropout, head_rng, train=train)
        return linear_head(x, self.num_classes, dtype=self.dtype)

    def _trunk(self, x: Float[Array, "n H W c"], rng: Key[Array, ""], *, train: bool) -> list[Array]:
        """Stem and stages: the last map of each stage."""
        conv = partial(convolution, dtype=self.dtype)
        norm = normalization(self.norm, self.norm_epsilon, self.norm_momentum, self.dtype, train=train)
        size, stride = (3, 1) if self.stem == "small" else (7, 2)
        x = nn.relu(norm(name="norm_root")(conv(self.width, size, stride, name="conv_root")(x)))
        if self.stem == "imagenet":
            x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        blocks = [(i, j) for i, size in enumerate(self.stage_sizes) for j in range(size)]
        stages = []
        for number, (i, j) in enumerate(blocks):
            block = ResidualBlock(
                self.width * 2**i,
                2 if i and not j else 1,
                self.bottleneck,
                self.zero_init_last_norm,
                conv,
                norm,
                name=f"stage{i + 1}_block{j + 1}",
            )
            x = block(x, jax.random.fold_in(rng, number), self.drop_rate(number), train=train)
            if j == self.stage_sizes[i] - 1:
                stages.append(x)
        return stages

    @property
    def depth(self) -> int:
        """How many blocks stochastic depth counts."""
        return sum(self.stage_sizes)

    def drop_rate(self, number: int) -> float:
        """The rate of stochastic depth of a block, counted from 0."""
        return self.stochastic_depth * number / max(self.depth - 1, 1)

    def last_features(self, x: Float[Array, "n h w c"], rng: Key[Array, ""], *, train: bool) -> Features:
        """Those of the last map."""
        return of_map(x)

    def summarise(self, x: Float[Array, "n h w c"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n c"]:
        """What the head reads of the last map."""
        return x.mean(axis=(1, 2))
