"""A backbone and the decoder that stands on it."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.models.naming import Naming, naming_of


class Segmenter(nn.Module):
    """Images [n H W c] to logits [n h w k] on the decoder's grid; the backbone's parameters keep their own names.

    `decoder`: a module without a parent, `(features, rng, train) -> logits`.
    """

    backbone: nn.Module  # without a head, with the method `features`
    decoder: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.backbone)

    @property
    def NAMING(self) -> Naming:  # noqa: N802 - as classes declare it
        """Layers and rules of the backbone; the decoder's come last, and go by the common rules."""
        return naming_of(self.backbone)

    @nn.compact
    def __call__(self, images: Float[Array, "n H W c"], *, train: bool) -> Float[Array, "n h w k"]:
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        features = self.backbone.features(images, train=train)
        return self.decoder(features, rng, train=train).astype(jnp.float32)
