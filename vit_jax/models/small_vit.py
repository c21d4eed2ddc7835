"""A ViT with what small data sets want: locality, which the plain one would have to learn from more images.

Each option is off by default; with all of them off the model is `vit`, parameter names included.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.layers import MlpBlock, square
from vit_jax.models.vit import Encoder, ViT, make_encoder
from vit_jax.ops.depthwise import depthwise

MASKED = -1e9  # a logit that no softmax sees; finite, for a token that is alone


class LocalSelfAttention(MultiHeadDotProductAttention):
    """Locality self-attention (Lee et al. 2021, arXiv:2112.13492, s. 3.2): a learned temperature, no look at oneself.

    Both sharpen attention. `scale` [a] is 1 / temperature of each head, as in the authors' code.
    """

    learned_temperature: bool = False
    mask_self: bool = False

    def scaled(self, q: Float[Array, "n l a e"]) -> Float[Array, "n l a e"]:
        """The queries over the temperature."""
        if not self.learned_temperature:
            return super().scaled(q)
        scale = self.param("scale", nn.initializers.constant(self.head_dim**-0.5), (self.num_heads,))
        return q * scale.astype(q.dtype)[None, None, :, None]

    def masked(self, logits: Float[Array, "n a l m"]) -> Float[Array, "n a l m"]:
        """The logits, those of a token and itself far below all others."""
        if not self.mask_self:
            return logits
        oneself = jnp.eye(logits.shape[2], logits.shape[3], dtype=bool)
        return jnp.where(oneself[None, None], MASKED, logits)


class ConvMlpBlock(MlpBlock):
    """An MLP with a depthwise convolution of the patches before its activation (Wang et al. 2022, arXiv:2106.13797).

    It has a shortcut, as in DHVT (Lu et al. 2022, arXiv:2210.05958, s. 3.3), and starts at zero: as an MLP without it.
    Tokens before the patches pass.
    """

    kernel_size: int = 3
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0  # tokens before the patches

    def mixed(self, y: Float[Array, "n l f"], num_tokens: int) -> Float[Array, "n l f"]:
        """The hidden layer and its convolution; alone where y has no patches, which the last block may leave out."""
        n, l, f = y.shape
        h, w = self.grid
        if (num_tokens or l) != self.prefix + h * w:
            raise UserError("model.mlp_conv needs all patches of an image, and some are left out; set it to 0")
        if l != self.prefix + h * w:
            return y
        patches = y[:, self.prefix :]
        around = DepthwiseConv(self.kernel_size, name="depthwise")(patches.reshape(n, h, w, f))
        return jnp.concatenate([y[:, : self.prefix], patches + around.reshape(n, h * w, f)], axis=1)


class DepthwiseConv(nn.Module):
    """A depthwise convolution that starts at zero, without bias."""

    kernel_size: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        return depthwise(x, self.param("kernel", nn.initializers.zeros, shape))


class ShiftedPatchEmbedding(nn.Module):
    """Patches of the image and of four copies, shifted by half a patch to each corner, normalised, then embedded.

    Shifted patch tokenization (Lee et al. 2021, arXiv:2112.13492, s. 3.1): a patch knows what surrounds it.
    """

    patch_size: tuple[int, int]
    width: int
    norm_epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"]) -> Float[Array, "n h w d"]:
        n, height, width, c = images.shape
        p, q = self.patch_size
        y, x = p // 2, q // 2
        around = jnp.pad(images, ((0, 0), (y, y), (x, x), (0, 0)))
        corners = [around[:, i : i + height, j : j + width] for i in (0, 2 * y) for j in (0, 2 * x)]
        seen = jnp.concatenate([images, *corners], axis=-1)
        patches = seen.reshape(n, height // p, p, width // q, q, 5 * c).swapaxes(2, 3)
        patches = patches.reshape(n, height // p, width // q, p * q * 5 * c)
        normed = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")(patches)
        return nn.Dense(self.width, dtype=self.dtype, name="projection")(normed)


class SmallViT(ViT):
    """A ViT for small data sets: images [n H W c] to logits [n k]; its fields are the config group `model`."""

    shifted_patches: bool = False  # patches with four copies, shifted by half a patch (Lee et al. 2021, s. 3.1)
    learned_temperature: bool = False  # of each head's attention (the same, s. 3.2)
    mask_self: bool = False  # no token attends to itself (the same)
    mlp_conv: int = 0  # side of a depthwise convolution in each MLP, an odd number; 0: off
    logit_scale: float = 1.0  # the logits are multiplied by it

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other or images of this shape (height, width, channels)."""
        super().check(image_shape)
        if self.shifted_patches and min(square(self.patch_size)) < 2:
            raise UserError(
                f"model.shifted_patches=True shifts by half a patch, and patch_size={self.patch_size} has no half; "
                "set it to False, or the patches to 2 and more"
            )
        if (self.learned_temperature or self.mask_self) and self.attention != "plain":
            raise UserError(
                f"model.attention={self.attention!r} has no learned_temperature and no mask_self; set it to 'plain'"
            )
        if self.mlp_conv < 0 or (self.mlp_conv and self.mlp_conv % 2 == 0):
            raise UserError(f"model.mlp_conv={self.mlp_conv} is not 0 (off) or an odd number, e.g. 3")
        if self.mlp_conv and self.patch_dropout:
            raise UserError(
                f"model.mlp_conv={self.mlp_conv} needs the patches that model.patch_dropout={self.patch_dropout} "
                "leaves out; set one of them to 0"
            )
        if self.logit_scale <= 0:
            raise UserError(f"model.logit_scale={self.logit_scale} is not positive; 1 means off")

    def encoder(self, grid: tuple[int, int], num_queries: int | None) -> Encoder:
        """The blocks, with the attention and the MLP that the fields ask for."""
        layers: dict[str, Any] = {}
        if self.learned_temperature or self.mask_self:
            layers["attention"] = partial(
                LocalSelfAttention, learned_temperature=self.learned_temperature, mask_self=self.mask_self
            )
        if self.mlp_conv:
            prefix = self.class_token + self.distillation_token + self.registers
            layers["mlp"] = partial(ConvMlpBlock, kernel_size=self.mlp_conv, grid=grid, prefix=prefix)
        return make_encoder(self, grid, num_queries, **layers)

    def embed(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w d"]:
        """The patches, embedded."""
        if not self.shifted_patches:
            return super().embed(images, train=train)
        sizes = square(self.patch_size), self.width, self.norm_epsilon, self.dtype
        return ShiftedPatchEmbedding(*sizes, name="embedding")(images)


def table() -> dict[str, dict[str, Any]]:
    """SL-ViT of Lee et al. 2021 for images of 32 pixels (github.com/aanna0701/SPT_LSA_ViT): depth and width."""
    return {
        "9-192": {
            "patch_size": (4,),
            "width": 192,
            "depth": 9,
            "mlp_dim": 384,
            "num_heads": 12,
            "qkv_bias": False,
            "shifted_patches": True,
            "learned_temperature": True,
            "mask_self": True,
        }
    }
