"""Small networks for small images and little compute: whitened patches, pairs of convolutions, and a head or a ViT.

The parts are those of airbench (Jordan 2024, arXiv:2404.00498): a first layer that whitens patches of the training
images, convolutions that start as the identity, batch norm without a scale.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.command import UserError
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Dtype, square
from vit_jax.models.linear import Conv
from vit_jax.models.naming import Naming
from vit_jax.models.small_vit import SmallViT
from vit_jax.models.vit import ViT
from vit_jax.ops.pooling import max_pool

LAYERS = (r"whitening/", r"stage(\d+)/")


def dirac(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "p q c d"]:
    """A kernel whose first outputs are the inputs themselves, and the others uniform, as PyTorch starts them."""
    p, q, c, d = shape
    same = min(c, d)
    bound = (p * q * c) ** -0.5
    kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
    return kernel.at[..., :same].set(0).at[p // 2, q // 2, jnp.arange(same), jnp.arange(same)].set(1)


class Whitening(nn.Module):
    """Patches of `size` pixels, one a pixel, seen along their principal axes: each axis twice, with both signs.

    The kernel is random at first. `init.whitening` fills it from the training images (see `whiten`); with
    `optim.freeze` it stays so.
    """

    size: int
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        features = 2 * self.size**2 * images.shape[-1]
        conv = Conv(features, (self.size, self.size), padding="VALID", dtype=self.dtype, name="conv")
        return nn.gelu(conv(images.astype(self.dtype)))


class ConvPair(nn.Module):
    """A 3x3 convolution, 2x2 max-pooling, and another convolution; batch norm and GELU behind each."""

    channels: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h2 w2 d"]:
        for i in range(2):
            x = Conv(self.channels, (3, 3), bias=False, kernel_init=dirac, dtype=self.dtype, name=f"conv{i}")(x)
            if i == 0:
                x = max_pool(x, (2, 2), strides=(2, 2))
            x = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, use_scale=False, dtype=self.dtype, name=f"norm{i}"
            )(x)
            x = nn.gelu(x)
        return x


def whitened_map(
    images: Float[Array, "n H W c"], size: int, widths: tuple[int, ...], dtype: str, *, train: bool
) -> Float[Array, "n h w d"]:
    """The map behind the whitening layer (`size` 0: none) and a pair of convolutions for each of the widths."""
    x = Whitening(size, dtype, name="whitening")(images) if size else images.astype(dtype)
    for i, channels in enumerate(widths):
        x = ConvPair(channels, dtype, name=f"stage{i}")(x, train=train)
    return x


def map_size(image_shape: tuple[int, ...], size: int, stages: int) -> tuple[int, int]:
    """Height and width of that map."""
    height, width = (side - max(size - 1, 0) for side in image_shape[-3:-1])
    return height // 2**stages, width // 2**stages


def check_map(model: Any, image_shape: tuple[int, int, int]) -> None:
    """Raises `UserError` unless whitening and convolutions leave something of an image of this shape."""
    if not model.widths or min(model.widths) < 1:
        raise UserError(f"model.widths={model.widths} must be positive channel counts, e.g. (64, 256, 256)")
    if model.whitening < 0:
        raise UserError(f"model.whitening={model.whitening} is negative; 0 means no whitening layer, 2 is usual")
    if min(map_size(image_shape, model.whitening, len(model.widths))) < 1:
        raise UserError(
            f"model.widths={model.widths} halves the image {len(model.widths)} times, too often for "
            f"{image_shape[0]}x{image_shape[1]} pixels; drop a stage or set augment.resize"
        )


class WhitenedCNN(MapBackbone):
    """airbench's network: images [n H W c] to logits [n k]; its fields are the config group `model`.

    The largest value of each channel over the map is classified by a layer without bias.
    """

    NAMING: ClassVar[Naming] = Naming(layers=LAYERS)

    widths: tuple[int, ...]  # channels of each pair of convolutions
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    whitening: int = 2  # side of the patches that the first layer whitens; 0: no such layer
    logit_scale: float = 1.0  # the logits are multiplied by it
    dtype: Dtype = "float32"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit images of this shape (height, width, channels)."""
        check_map(self, image_shape)
        if self.logit_scale <= 0:
            raise UserError(f"model.logit_scale={self.logit_scale} is not positive; 1 means off")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        x = whitened_map(images, self.whitening, self.widths, self.dtype, train=train)
        if return_features:
            return of_map(x)
        x = x.max(axis=(1, 2))
        if not self.num_classes:
            return x
        return self.logit_scale * linear_head(x, self.num_classes, use_bias=False, dtype=self.dtype)


class ConvStemViT(SmallViT):
    """A ViT on the map of a small convolutional network ("early convolutions", Xiao et al. 2021, arXiv:2106.14881).

    `patch_size` counts positions of the map, of which one is 2 pixels wide after the first stage and twice as much
    after each other. The stem is airbench's, not the paper's: batch norm, max-pooling, whitened patches.
    """

    NAMING: ClassVar[Naming] = dataclasses.replace(ViT.NAMING, layers=(*LAYERS, *ViT.NAMING.layers))

    widths: tuple[int, ...] = (64, 128)  # channels of each pair of convolutions
    whitening: int = 2  # side of the patches that the first layer whitens; 0: no such layer

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other or images of this shape (height, width, channels)."""
        check_map(self, image_shape)
        h, w = map_size(image_shape, self.whitening, len(self.widths))
        p, q = square(self.patch_size) if len(self.patch_size) in (1, 2) else (0, 0)
        if min(p, q) < 1 or h % p or w % q:
            raise UserError(
                f"model.patch_size={self.patch_size} does not divide the {h}x{w} map of {image_shape[0]}x"
                f"{image_shape[1]} pixels behind the convolutions; set it to (1,)"
            )
        super().check((h, w, image_shape[2]))

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of patches for images [... H W c]."""
        return super().grid((*map_size(image_shape, self.whitening, len(self.widths)), image_shape[-1]))

    def embed(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w d"]:
        """The map's patches, embedded."""
        return super().embed(whitened_map(images, self.whitening, self.widths, self.dtype, train=train), train=train)


def cnn_table() -> dict[str, dict[str, Any]]:
    """airbench94's widths: 1.97 million parameters for ten classes, the whitening layer's included."""
    return {"airbench94": {"widths": (64, 256, 256), "logit_scale": 1 / 9}}


def vit_table() -> dict[str, dict[str, Any]]:
    """Ours: a name holds depth and width of the transformer."""
    rows = {"4-128": ((32, 64), 128, 4), "6-192": ((64, 128), 192, 6), "8-256": ((64, 128), 256, 8)}
    return {
        name: {
            "patch_size": (1,),
            "widths": widths,
            "width": width,
            "depth": depth,
            "mlp_dim": 2 * width,
            "num_heads": width // 32,
            "class_token": False,
            "pooling": "gap",
        }
        for name, (widths, width, depth) in rows.items()
    }


def whiten(images: Float[np.ndarray, "n h w c"], size: int, epsilon: float = 5e-4) -> Float[np.ndarray, "p q c d"]:
    """The kernel of `Whitening` for normalised images: principal axes over their deviations, with both signs."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))  # [n h2 w2 c p q]
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * images.shape[-1]).astype(np.float64)
    variance, axes = np.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (axes / np.sqrt(variance + epsilon)).reshape(size, size, images.shape[-1], -1)
    return np.concatenate([kernel, -kernel], axis=-1).astype(np.float32)
