"""A backbone with the projection that self-distillation compares, of whole crops and of hidden patches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vit_jax import models
from vit_jax.models.layers import PatchEmbedding
from vit_jax.models.projection import Projection
from vit_jax.models.vit import ViT
from vit_jax.tasks import masking


class Projected(nn.Module):
    """A backbone, whose parameters keep their own names, and its projection; the centre is a teacher's alone."""

    backbone: ViT
    hidden_width: int
    bottleneck: int
    outputs: int
    of_patches: bool = False  # whether hidden patches are told, too: it then has a token for them, and another centre

    def setup(self) -> None:
        nn.share_scope(self, self.backbone)

    @property
    def NAMING(self) -> models.Naming:  # noqa: N802 - as classes declare it
        """Layers and rules of the backbone; the projection's layers come last, and go by the common rules."""
        return models.naming_of(self.backbone)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], hidden: Bool[Array, "n l"] | None = None, *, train: bool
    ) -> tuple[Float[Array, "n d"], Float[Array, "n k"], Float[Array, "n l k"] | None]:
        """The backbone's features, what they are projected to, and, where patches may be `hidden`, each patch is."""
        project = Projection(
            self.hidden_width, self.bottleneck, self.outputs, dtype=self.backbone.dtype, name="projection"
        )
        self.variable("batch_stats", "center", jnp.zeros, (self.outputs,))
        if self.of_patches:
            normal = nn.initializers.normal(masking.MASK_TOKEN)
            token = self.param("mask_token", normal, (1, 1, 1, self.backbone.width))
            self.variable("batch_stats", "patch_center", jnp.zeros, (self.outputs,))
        if hidden is None:
            features = self.backbone(images, train=train)
            assert isinstance(features, jax.Array)
            return features.astype(jnp.float32), project(features), None
        with nn.intercept_methods(partial(_hide, hidden, token)):
            found = self.backbone.features(images, train=train)
        features = found.prefix[:, 0] if self.backbone.pooling == "token" else found.patches.mean(axis=1)
        n, l, d = found.patches.shape
        told = project(found.patches.reshape(n * l, d)).reshape(n, l, -1)
        return features.astype(jnp.float32), project(features), told


def _hide(
    hidden: Bool[Array, "n l"], token: Float[Array, "1 1 1 d"], call: Any, args: Any, kwargs: Any, context: Any
) -> Any:
    """Puts the token in the place of hidden patches, once they are embedded: positions come later."""
    found = call(*args, **kwargs)
    if not isinstance(context.module, PatchEmbedding):
        return found
    return jnp.where(hidden.reshape(*found.shape[:3], 1), token.astype(found.dtype), found)
