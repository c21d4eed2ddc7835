"""Big Transfer (Kolesnikov et al. 2020, arXiv:1912.11370): wide pre-activation ResNets without batch norm.

Group norm, and convolutions whose kernels are standardised (Qiao et al. 2019, arXiv:1903.10520), make an image's output
independent of the rest of its batch. Modules are named as in the authors' JAX code, `block1/unit01/conv1` ...
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError
from vit_jax.models.checks import check_positive
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Dtype
from vit_jax.models.naming import Naming
from vit_jax.models.resnet import GROUPS, check_stages
from vit_jax.models.resnet import SIZES as RESNETS
from vit_jax.ops.convolution import conv_general_dilated
from vit_jax.ops.pooling import max_pool

NAMES = ("50x1", "101x1", "50x3", "101x3", "152x2", "152x4")  # layers x width factor; s. 3.1 and table 1


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published size: `152x4` is ResNet-152 with four times the channels."""
    rows = (name.split("x") for name in NAMES)
    return {
        f"{layers}x{factor}": {"stage_sizes": RESNETS[layers][0], "width": 64 * int(factor)} for layers, factor in rows
    }


class StdConv(nn.Module):
    """A convolution without bias whose kernel is scaled to mean 0 and variance 1 for each output channel.

    The two epsilons say how: (kernel - mean) / (sqrt(variance + variance_epsilon) + deviation_epsilon).
    """

    features: int
    size: int
    stride: int = 1
    padding: str = "symmetric"  # size // 2 on each side; or SAME
    variance_epsilon: float = 1e-10
    deviation_epsilon: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        variance, mean = jnp.var(kernel, axis=(0, 1, 2)), jnp.mean(kernel, axis=(0, 1, 2))
        deviation = jnp.sqrt(variance + self.variance_epsilon) + self.deviation_epsilon
        kernel = (kernel - mean[None, None, None]) / deviation[None, None, None]
        pad = self.size // 2
        return conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME" if self.padding == "SAME" else ((pad, pad), (pad, pad)),
        )


def group_norm(dtype: str, name: str) -> nn.GroupNorm:
    """Group norm with the variance as the mean of squared differences: what the published weights were trained with."""
    return nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)


class RootBlock(nn.Module):
    """7x7 convolution and 3x3 max-pooling, both with stride 2."""

    width: int
    zero_padded_pool: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w c2"]:
        x = StdConv(self.width, 7, 2, dtype=self.dtype, name="conv_root")(x)
        outside = 0.0 if self.zero_padded_pool else -jnp.inf
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=outside)
        return max_pool(x, (3, 3), strides=(2, 2))


class ResidualUnit(nn.Module):
    """Group norm and ReLU before each of 1x1, 3x3 and 1x1 convolutions; a projected shortcut reads the first ReLU."""

    channels: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        c = self.channels
        y = nn.relu(group_norm(self.dtype, "gn1")(x))
        if x.shape[-1] != 4 * c or self.stride != 1:
            x = StdConv(4 * c, 1, self.stride, dtype=self.dtype, name="conv_proj")(y)
        y = StdConv(c, 1, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(group_norm(self.dtype, "gn2")(y))
        y = StdConv(c, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(group_norm(self.dtype, "gn3")(y))
        return x + StdConv(4 * c, 1, dtype=self.dtype, name="conv3")(y)


class ResidualStage(nn.Module):
    """Units of one class, the first of which strides; they are numbered from 1."""

    unit: Callable[..., nn.Module]
    units: int
    channels: int
    stride: int
    dtype: str
    naming: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        for i in range(self.units):
            x = self.unit(self.channels, 1 if i else self.stride, self.dtype, name=self.naming.format(i + 1))(x)
        return x


class BiT(MapBackbone):
    """A BiT network: images [n H W c] to logits [n k]; its fields are the config group `model`.

    Departure from the authors' checkpoints: scales and biases of the norms have the shape [c], theirs [1 1 1 c].
    """

    NAMING: ClassVar[Naming] = Naming(layers=("root_block/", r"block(\d+)/unit(\d+)/"))

    stage_sizes: tuple[int, ...]  # units of each stage; the channels double and the map halves from stage to stage
    width: int  # channels of the stem and of the first stage's 3x3 convolutions
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    zero_padded_pool: bool = True  # the stem's pooling: big_transfer pads with zeros, big_vision with -infinity
    dtype: Dtype = "float32"  # of convolutions and matrix products; parameters and statistics stay float32

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other; images of any shape do."""
        check_stages(self.stage_sizes)
        check_positive(self, "width")
        if self.width % GROUPS:
            raise UserError(f"model.width={self.width} must be divisible by group norm's {GROUPS} groups, e.g. 64")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        x = RootBlock(self.width, self.zero_padded_pool, self.dtype, name="root_block")(images)
        for i, units in enumerate(self.stage_sizes):
            channels, stride = self.width * 2**i, 2 if i else 1
            x = ResidualStage(ResidualUnit, units, channels, stride, self.dtype, "unit{:02}", name=f"block{i + 1}")(x)
        x = nn.relu(group_norm(self.dtype, "norm-pre-head")(x))
        if return_features:
            return of_map(x)
        x = x.mean(axis=(1, 2))
        return linear_head(x, self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype)
