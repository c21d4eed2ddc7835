"""Classification and masked autoencoding at once, by one encoder: a self-supervised auxiliary task, SSAT.

Das et al. 2024, Limited Data, Unlimited Potential: A Study on ViTs Augmented by Masked Autoencoders, arXiv:2310.20704.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs
from vit_jax.tasks.classification import Classification, accuracy
from vit_jax.tasks.masked_autoencoder import Autoencoder, MaskedAutoencoder
from vit_jax.trees import PyTree


class Both(nn.Module):
    """The logits of whole images, and the autoencoder of the same ones with patches hidden."""

    autoencoder: Autoencoder

    def setup(self) -> None:
        nn.share_scope(self, self.autoencoder)

    @property
    def NAMING(self) -> models.Naming:  # noqa: N802 - as classes declare it
        """Layers and rules of the autoencoder."""
        return self.autoencoder.NAMING

    def __call__(
        self, images: Float[Array, "n H W c"], noise: Float[Array, "n l"] | None = None, *, train: bool
    ) -> tuple[Float[Array, "n k"], Float[Array, "n l q"], Float[Array, "n l"]]:
        """Logits, the values of every patch, and the mask: see `Autoencoder`."""
        painted, mask = self.autoencoder(images, noise, train=train)  # first: it gives the encoder its scope
        logits = self.autoencoder.encoder(images, train=train)
        assert isinstance(logits, jax.Array)
        return logits, painted, mask


class AuxiliaryAutoencoder(Classification):
    """Classification whose encoder also paints hidden patches of the images that the head sees (s. 3.2).

    Evaluation and later commands see the classifier alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Classification.Settings, MaskedAutoencoder.Settings):
        """The fields of `task`; the defaults of the decoder are those of the authors' code for ViT-Ti and ViT-S."""

        weight: float = 0.1  # of the classification in the loss, the painting has the rest
        label_smoothing: float = 0.1
        decoder_width: int = 128
        decoder_depth: int = 2
        normalize_patches: bool = False

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            Classification.Settings.check(self)
            MaskedAutoencoder.Settings.check(self)
            if not 0 < self.weight < 1:
                raise UserError(f"task.weight={self.weight} is not between 0 and 1; the paper's is 0.1")

    def __init__(self, settings: "AuxiliaryAutoencoder.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        self.painting = MaskedAutoencoder(settings, replace(parts, tta="none"))
        assert isinstance(self.painting.module, Autoencoder)
        self.module = Both(self.painting.module)

    @classmethod
    def check(cls, settings: Classification.Settings, model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` for a model that does not give logits for an image, or cannot leave out patches."""
        Classification.check(settings, model, distill)
        MaskedAutoencoder.check_patches("auxiliary_autoencoder", model)

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        state: PyTree,
        batch: Examples,
        rngs: Rngs,
        constants: Mapping[str, PyTree],
    ) -> tuple[Float[Array, ""], Aux]:
        images, targets = self.mixed(batch, rngs)
        noise, dropout = self.painting.noise(rngs.task, images.shape), {"dropout": rngs.dropout}
        found: Any = self.module.apply({"params": params}, images, noise, train=True, rngs=dropout)
        logits, painted, mask = found
        told = self.mean_loss(logits, targets, images, {}, constants)
        painting = self.painting.per_example(painted, self.painting.target(images)[0], mask).mean()
        loss = self.settings.weight * told + (1 - self.settings.weight) * painting
        metrics = {"accuracy": accuracy(logits, targets), "classification_loss": told, "painting_loss": painting}
        return loss, Aux({}, {"loss": loss, **metrics})

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Those of the classification."""
        return super().warnings({**scalars, "loss": scalars["classification_loss"]})
