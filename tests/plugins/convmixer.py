"""ConvMixer (Trockman & Kolter 2022, arXiv:2201.09792): patches, mixed by depthwise and pointwise convolutions."""

from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax import models
from vit_jax.command import UserError


class ConvMixer(nn.Module):
    # How its parameters' paths begin, in the order of the forward pass: for optim.layer_decay.
    NAMING: ClassVar[models.Naming] = models.Naming(layers=("stem", r"block(\d+)_"))

    width: int
    depth: int
    kernel_size: int
    patch_size: int
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns what its head would read

    def check(self, image_shape: tuple[int, int, int]) -> None:
        if min(image_shape[:2]) < self.patch_size:
            raise UserError(f"model.patch_size={self.patch_size} is larger than the image, {image_shape[:2]}")

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n k"]:
        def activated(x: Array, name: str) -> Array:
            return nn.BatchNorm(use_running_average=not train, name=f"{name}_norm")(nn.gelu(x))

        p, k, d = self.patch_size, self.kernel_size, self.width
        x = activated(nn.Conv(d, (p, p), strides=(p, p), padding="VALID", name="stem")(images), "stem")
        for i in range(self.depth):
            spatial = nn.Conv(d, (k, k), feature_group_count=d, name=f"block{i}_depthwise")(x)
            x = x + activated(spatial, f"block{i}_depthwise")
            x = activated(nn.Conv(d, (1, 1), name=f"block{i}_pointwise")(x), f"block{i}_pointwise")
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x) if self.num_classes else x


models.register("convmixer", ConvMixer, {"768/32": {"width": 768, "depth": 32, "kernel_size": 7, "patch_size": 7}})
