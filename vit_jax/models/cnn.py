"""Plain convolutional networks, as textbooks and class projects build them: the baselines a small ViT must beat."""

from typing import Any, ClassVar, Literal

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError
from vit_jax.models.checks import check_rates, check_widths
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head
from vit_jax.models.layers import Dtype
from vit_jax.models.linear import Conv, Dense
from vit_jax.models.naming import Naming
from vit_jax.ops.dropout import dropout
from vit_jax.ops.pooling import max_pool


def table() -> dict[str, dict[str, Any]]:
    """The two networks: three convolutions for 28-pixel grey images, six for 32-pixel colour ones."""
    return {
        "conv3": {"stages": ((32,), (64,), (64,)), "dense_widths": (64,), "pool_last": False, "norm": "none"},
        "conv6": {"stages": ((32, 64), (128, 128), (256, 256)), "dense_widths": (1024, 512)},
    }


class CNN(MapBackbone):
    """Stages of 3x3 convolutions with ReLU, each closed by 2x2 max-pooling and a norm; then dense layers.

    Images [n H W c] to logits [n k]; batch norm keeps running statistics in the collection `batch_stats`.
    """

    NAMING: ClassVar[Naming] = Naming(layers=(r"stage(\d+)_",), tied="^dense0/")

    stages: tuple[tuple[int, ...], ...]  # channels of the convolutions of each stage
    dense_widths: tuple[int, ...]
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    pool_last: bool = True  # whether the last stage pools
    norm: Literal["batch", "layer", "none"] = "batch"
    dropout: float = 0.0  # after each dense layer
    dtype: Dtype = "float32"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit images of this shape (height, width, channels)."""
        if not self.stages or not all(self.stages) or min(map(min, self.stages)) < 1:
            raise UserError(f"model.stages={self.stages} must be tuples of positive channel counts, e.g. ((32, 64),)")
        pools = len(self.stages) - (not self.pool_last)
        if min(image_shape[:2]) < 2**pools:
            raise UserError(
                f"model.stages={self.stages} halves the image {pools} times, too often for "
                f"{image_shape[0]}x{image_shape[1]} pixels; drop a stage or set augment.resize"
            )
        check_widths(self, "dense_widths")
        check_rates(self, "dropout")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        x = images.astype(self.dtype)
        for i, stage in enumerate(self.stages):
            for j, channels in enumerate(stage):
                x = nn.relu(Conv(channels, (3, 3), dtype=self.dtype, name=f"stage{i}_conv{j}")(x))
            if self.pool_last or i + 1 < len(self.stages):
                x = max_pool(x, (2, 2), strides=(2, 2))
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name=f"stage{i}_norm")(x)
            elif self.norm == "layer":
                x = nn.LayerNorm(dtype=self.dtype, name=f"stage{i}_norm")(x)
        if return_features:
            return of_map(x)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.dense_widths):
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
            x = dropout(x, self.dropout, jax.random.fold_in(rng, i), train=train)
        return linear_head(x, self.num_classes, dtype=self.dtype)
