"""MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): MLPs across patches and channels, not attention."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.checks import check_patches, check_positive, check_rates
from vit_jax.models.features import Features, MapBackbone, of_map
from vit_jax.models.head import linear_head, new_head
from vit_jax.models.layers import Activation, Dtype, MlpBlock, PatchEmbedding, square
from vit_jax.models.naming import Naming
from vit_jax.models.sizes import with_patches
from vit_jax.models.stack import Remat
from vit_jax.ops.dropout import drop_path
from vit_jax.ops.remat import recompute

# width, depth, token-mixing width, channel-mixing width, patch sizes: table 1.
SIZES: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    "S": (512, 8, 256, 2048, (32, 16)),
    "B": (768, 12, 384, 3072, (32, 16)),
    "L": (1024, 24, 512, 4096, (32, 16)),
    "H": (1280, 32, 640, 5120, (14,)),
}


def table() -> dict[str, dict[str, Any]]:
    """The fields of each published size: `B16` is size B with 16-pixel patches."""
    return with_patches(SIZES, "width", "depth", "token_mlp_dim", "channel_mlp_dim")


class MixerBlock(nn.Module):
    """An MLP across tokens, then one across channels, each with a pre-norm and a residual connection (eq. 1)."""

    token_mlp_dim: int
    channel_mlp_dim: int
    activation: str
    norm_epsilon: float
    dropout: float
    stochastic_depth: float  # this block's rate
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n l d"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n l d"]:
        rngs = jax.random.split(rng, 4)

        mlp = partial(
            MlpBlock,
            activation=self.activation,
            dropout=self.dropout,
            dtype=self.dtype,
            kernel_init=nn.initializers.lecun_normal(),  # as the authors, unlike in a ViT
            bias_init=nn.initializers.zeros,
        )

        def residual(y: Float[Array, "n l d"], rng: Key[Array, ""]) -> Float[Array, "n l d"]:
            return drop_path(y, jnp.float32(self.stochastic_depth), rng) if train and self.stochastic_depth else y

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="LayerNorm_0")(x)
        y = jnp.swapaxes(y, 1, 2)  # n d l
        y = mlp(self.token_mlp_dim, name="token_mixing")(y, rngs[0], train=train)
        x = x + residual(jnp.swapaxes(y, 1, 2), rngs[1])

        y = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="LayerNorm_1")(x)
        y = mlp(self.channel_mlp_dim, name="channel_mixing")(y, rngs[2], train=train)
        x = x + residual(y, rngs[3])
        self.sow("intermediates", "tokens", x)
        return self.perturb("tokens", x)


class Mixer(MapBackbone):
    """An MLP-Mixer: images [n H W c] to logits [n k]; its fields are the config group `model`.

    The kernels across tokens fix the number of patches, thus the image size. Parameters are named as in the authors'
    checkpoints. Stochastic depth grows linearly from 0 at the first block; the branches that it keeps are scaled by
    1 / (1 - rate) in training, which the authors' big_vision does not. Tokens after each block are sown in the
    collection `intermediates`.
    """

    NAMING: ClassVar[Naming] = Naming(layers=("stem/", r"MixerBlock_(\d+)/"), tied="token_mixing")

    patch_size: tuple[int, ...]  # pixels: height and width, or one number for both
    width: int
    depth: int
    token_mlp_dim: int
    channel_mlp_dim: int
    num_classes: int = 0  # 0: those of the data set; created with 0, the model returns features before the head
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-6
    dropout: float = 0.0  # after both layers of each MLP
    stochastic_depth: float = 0.0  # of the last block
    zero_head: bool = True  # the head's kernel starts at zero
    head_bias: float = 0.0  # the head's initial bias
    dtype: Dtype = "float32"  # of matrix products; parameters stay float32
    # Recompute in the backward pass: all but matrix products (dots), everything (full), as much as memory asks (auto).
    remat: Remat = "none"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit images of this shape (height, width, channels)."""
        check_positive(self, "width", "depth", "token_mlp_dim", "channel_mlp_dim")
        check_patches(self.patch_size, image_shape)
        check_rates(self, "dropout", "stochastic_depth")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool, return_features: bool = False
    ) -> Float[Array, "n k"] | Features:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        x = PatchEmbedding(square(self.patch_size), self.width, dtype=self.dtype, name="stem")(images)
        n, h, w, d = x.shape
        x = x.reshape(n, h * w, d)

        def layer(block: MixerBlock, x: Float[Array, "n l d"], rng: Key[Array, ""]) -> Float[Array, "n l d"]:
            return block(x, rng, train=train)

        layer = recompute(layer, self.remat)
        for i in range(self.depth):
            block = MixerBlock(
                self.token_mlp_dim,
                self.channel_mlp_dim,
                self.activation,
                self.norm_epsilon,
                self.dropout,
                self.stochastic_depth * i / max(self.depth - 1, 1),
                self.dtype,
                name=f"MixerBlock_{i}",
            )
            x = layer(block, x, jax.random.fold_in(rng, i))

        x = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="pre_head_layer_norm")(x)
        if return_features:
            return of_map(x.reshape(n, h, w, d))
        options = new_head(zero=self.zero_head, bias=self.head_bias)
        return linear_head(x.mean(axis=1), self.num_classes, dtype=self.dtype, **options)
