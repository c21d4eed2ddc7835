"""What every model gives beside logits: one vector for each place of the image."""

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from vit_jax.command import UserError
from vit_jax.trees import PyTree


class Features(struct.PyTreeNode):
    """The last layer's tokens: patches are places of the image, in rows; prefix tokens are none."""

    prefix: PyTree  # [n p d]: class, distillation and register tokens, in this order; p is 0 without any
    patches: PyTree  # [n l d]: l is h * w, or as many as `keep` named
    grid: tuple[int, int] = struct.field(pytree_node=False)  # h and w, of all patches
    stages: tuple[PyTree, ...] = ()  # of a CNN the last map [n h w c] of each stage, the finest first


def of_map(x: Float[Array, "n h w d"]) -> Features:
    """The places of a map as patches."""
    n, h, w, d = x.shape
    return Features(jnp.zeros((n, 0, d), x.dtype), x.reshape(n, h * w, d), (h, w))


class TokenBackbone(nn.Module):
    """A model that computes one token for each patch."""

    def features(
        self, images: Float[Array, "n H W c"], *, train: bool, keep: Int[Array, "n k"] | None = None
    ) -> Features:
        """The encoder's tokens; of the patches only those that `keep` names are computed, all without it.

        They are normalised unless `norm_after_pooling`. With positions in the logits, `keep` raises `UserError`.
        """
        return self(images, train=train, keep=keep, return_features=True)


class MapBackbone(nn.Module):
    """A model that computes every place of an image."""

    def features(self, images: Float[Array, "n H W c"], *, train: bool, keep: Array | None = None) -> Features:
        """The last map; no part of it can be left out by `keep`."""
        if keep is not None:
            raise UserError(f"{type(self).__name__} computes all places of an image; keep= needs a ViT")
        return self(images, train=train, return_features=True)
