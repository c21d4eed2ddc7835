"""Pre-activation residual networks (He et al. 2016, arXiv:1603.05027) as Keras builds them: its ResNet101V2.

Where Keras departs from the paper: the *last* block of a stage strides, with a 1x1 max-pooling as its shortcut; no
norm follows the stem, whose max-pooling pads with zeros; the stem, the shortcut and a block's last convolution have
biases.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.checks import check_positive, check_rates, check_widths
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Dtype
from vit_jax.models.naming import Naming
from vit_jax.models.resnet import Layer, check_stages
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.pooling import max_pool


def table() -> dict[str, dict[str, Any]]:
    """Keras's ResNet101V2 under a head of two hidden layers, as a class project on CIFAR-100 used it."""
    return {"keras101": {"stage_sizes": (3, 4, 23, 3), "head_widths": (512, 1024), "gaussian_dropout": 0.25}}


def gaussian_dropout(x: Float[Array, "..."], rate: float, rng: Key[Array, ""], *, train: bool) -> Float[Array, "..."]:
    """Multiplies by noise of mean 1 and variance rate / (1 - rate), dropout's own (Srivastava et al. 2014, s. 10)."""
    if not train or rate == 0.0:
        return x
    deviation = (rate / (1.0 - rate)) ** 0.5
    return x * (1.0 + deviation * jax.random.normal(rng, x.shape)).astype(x.dtype)


class PreactivationBlock(nn.Module):
    """Norm and ReLU before each of 1x1, 3x3 and 1x1 convolutions; the first block of a stage projects its shortcut."""

    channels: int
    stride: int
    projects: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        c, strides = self.channels, (self.stride, self.stride)
        y = nn.relu(self.norm(name="norm1")(x))
        if self.projects:
            x = self.conv(4 * c, (1, 1), strides=strides, name="conv_proj")(y)
        else:
            x = nn.max_pool(x, (1, 1), strides=strides)
        y = self.conv(c, (1, 1), use_bias=False, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(c, (3, 3), strides=strides, padding=1, use_bias=False, name="conv2")(y)
        y = nn.relu(self.norm(name="norm3")(y))
        return x + self.conv(4 * c, (1, 1), name="conv3")(y)


class ResNetV2(MapBackbone):
    """Keras's ResNetV2 and dense layers: images [n H W c] to logits [n k]; its fields are the config group `model`.

    Batch norm keeps running statistics in the collection `batch_stats`.
    """

    NAMING: ClassVar[Naming] = Naming(layers=("conv_root/", r"stage(\d+)_block(\d+)/"), head_hidden=r"head_hidden_\d+")

    stage_sizes: tuple[int, ...]  # blocks of each stage; the channels double from stage to stage
    width: int = 64  # channels of the stem and of the first stage's 3x3 convolutions
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    norm_epsilon: float = 1.001e-5
    norm_momentum: float = 0.99  # what running statistics keep of themselves at a step
    pooling: Literal["flatten", "gap"] = "flatten"  # of the last map, whose sides are 1/32 of the image's; or its mean
    head_widths: tuple[int, ...] = ()  # hidden layers of the head, with ReLU
    gaussian_dropout: float = 0.0  # after each hidden layer of the head
    dtype: Dtype = "float32"  # of convolutions and matrix products; parameters and statistics stay float32

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other; images of any shape do."""
        check_stages(self.stage_sizes)
        check_positive(self, "width")
        check_rates(self, "gaussian_dropout")
        check_widths(self, "head_widths")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        x = self._backbone(images.astype(self.dtype), train=train)
        if return_features:
            return of_map(x)
        x = x.reshape(x.shape[0], -1) if self.pooling == "flatten" else x.mean(axis=(1, 2))
        options: dict[str, Any] = {"kernel_init": nn.initializers.xavier_uniform(), "dtype": self.dtype}
        for i, width in enumerate(self.head_widths):
            x = nn.relu(nn.Dense(width, name=f"head_hidden_{i}", **options)(x))
            x = gaussian_dropout(x, self.gaussian_dropout, jax.random.fold_in(rng, i), train=train)
        return linear_head(x, self.num_classes, **options)

    def _backbone(self, x: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w c2"]:
        conv = partial(
            nn.Conv,
            padding=0,
            kernel_init=nn.initializers.xavier_uniform(),
            conv_general_dilated=conv_general_dilated,
            dtype=self.dtype,
        )
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
        )
        x = conv(self.width, (7, 7), strides=2, padding=3, name="conv_root")(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = max_pool(x, (3, 3), strides=(2, 2))
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                strides = j == blocks - 1 and i < len(self.stage_sizes) - 1
                name = f"stage{i + 1}_block{j + 1}"
                x = PreactivationBlock(self.width * 2**i, 1 + strides, j == 0, conv, norm, name=name)(x)
        return nn.relu(norm(name="norm_head")(x))
