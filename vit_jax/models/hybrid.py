"""Hybrids: a ResNet's map, not the image, is cut into patches (Dosovitskiy et al. 2021, arXiv:2010.11929, s. 3.1).

The ResNet has group norm and standardised kernels, and adds before its ReLU. Modules are named as in the authors'
checkpoints, `block1/unit1/conv1` ...
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError
from vit_jax.models import sizes
from vit_jax.models.bit import ResidualStage, StdConv
from vit_jax.models.layers import square
from vit_jax.models.naming import Naming
from vit_jax.models.resnet import GROUPS
from vit_jax.models.vit import ViT
from vit_jax.ops.pooling import max_pool

# Units of each stage, size of the ViT, side of a patch of the map; a name ends with the side of a patch in pixels.
# Steiner et al. 2022, arXiv:2106.10270, table 2; R50+B16: Dosovitskiy et al. 2021, s. 4.1.
HYBRIDS: dict[str, tuple[tuple[int, ...], str, int]] = {
    "R+Ti16": ((), "Ti", 8),  # named after the stride of its convolution; with the max-pooling a patch has 32 pixels
    "R26+S32": ((2, 2, 2, 2), "S", 1),
    "R50+B16": ((3, 4, 9), "B", 1),  # the fourth stage's units moved to the third
    "R50+L32": ((3, 4, 6, 3), "L", 1),
}


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published hybrid: `R26+S32` is a ResNet-26 below a ViT of size S, patches of 32 pixels."""
    vits = sizes.vit_table()
    return {
        name: {**vits[f"{size}16"], "patch_size": (patch,), "stage_sizes": stage_sizes}
        for name, (stage_sizes, size, patch) in HYBRIDS.items()
    }


def std_conv(features: int, size: int, stride: int, dtype: str, name: str) -> StdConv:
    """As the authors' code has it: padding SAME, 1e-5 added to the kernel's deviation."""
    return StdConv(features, size, stride, "SAME", 0.0, 1e-5, dtype, name=name)


class ResidualUnit(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each followed by group norm; the last norm starts at zero."""

    channels: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        c, y = self.channels, x
        for i, (channels, size, stride) in enumerate([(c, 1, 1), (c, 3, self.stride), (4 * c, 1, 1)], 1):
            scale_init = nn.initializers.zeros if i == 3 else nn.initializers.ones
            y = std_conv(channels, size, stride, self.dtype, f"conv{i}")(y)
            y = nn.GroupNorm(GROUPS, scale_init=scale_init, dtype=self.dtype, name=f"gn{i}")(y)
            y = nn.relu(y) if i < 3 else y
        if x.shape[-1] != 4 * c or self.stride != 1:
            x = std_conv(4 * c, 1, self.stride, self.dtype, "conv_proj")(x)
            x = nn.GroupNorm(GROUPS, dtype=self.dtype, name="gn_proj")(x)
        return nn.relu(x + y)


class Hybrid(ViT):
    """A ViT on a ResNet's map: images [n H W c] to logits [n k]; its fields are the config group `model`.

    `patch_size` counts positions of the map, of which one is 4 pixels wide after the stem and twice as much after each
    stage but the first.
    """

    NAMING: ClassVar[Naming] = dataclasses.replace(
        ViT.NAMING, layers=(r"(?:conv_root|gn_root)/", r"block(\d+)/unit(\d+)/", *ViT.NAMING.layers)
    )

    stage_sizes: tuple[int, ...] = ()  # units of each stage; (): the stem alone
    resnet_width: int = 64  # channels of the stem and of the first stage's 3x3 convolutions

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other or images of this shape (height, width, channels)."""
        if self.resnet_width < 1 or self.resnet_width % GROUPS:
            raise UserError(
                f"model.resnet_width={self.resnet_width} must be divisible by group norm's {GROUPS} groups, e.g. 64"
            )
        if self.stage_sizes and min(self.stage_sizes) < 1:
            raise UserError(f"model.stage_sizes={self.stage_sizes} must be positive numbers of units, e.g. (2, 2, 2)")
        h, w = self._map(image_shape)
        if len(self.patch_size) in (1, 2) and min(self.patch_size) > 0:
            p, q = square(self.patch_size)
            if h % p or w % q:
                raise UserError(
                    f"model.patch_size={self.patch_size} does not divide the ResNet's {h}x{w} map of "
                    f"{image_shape[0]}x{image_shape[1]} pixels; set augment.resize to a multiple of {self.stride * p}"
                )
        super().check((h, w, image_shape[2]))

    @property
    def stride(self) -> int:
        """Pixels from one position of the map to the next."""
        return 4 * 2 ** max(len(self.stage_sizes) - 1, 0)

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches for images [... H W c]."""
        return super().grid((*self._map(image_shape), image_shape[-1]))

    def embed(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w d"]:
        """The map's patches, embedded."""
        x = std_conv(self.resnet_width, 7, 2, self.dtype, "conv_root")(images)
        x = nn.relu(nn.GroupNorm(GROUPS, dtype=self.dtype, name="gn_root")(x))
        x = max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, units in enumerate(self.stage_sizes):
            channels, stride = self.resnet_width * 2**i, 2 if i else 1
            x = ResidualStage(ResidualUnit, units, channels, stride, self.dtype, "unit{}", name=f"block{i + 1}")(x)
        return super().embed(x, train=train)

    def _map(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the ResNet's last map: each halving rounds up."""
        return -(-image_shape[-3] // self.stride), -(-image_shape[-2] // self.stride)
