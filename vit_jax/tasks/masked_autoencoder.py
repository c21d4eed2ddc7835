"""Masked autoencoding: an encoder sees few of the patches, a decoder paints the others (He et al. 2022).

Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8
from PIL import Image

from vit_jax import augment, models
from vit_jax.command import UserError
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.models.layers import MlpBlock, square
from vit_jax.models.vit import Encoder, EncoderBlock, ViT
from vit_jax.tasks import masking
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs, Section, Task, TaskSettings
from vit_jax.tasks.means import Means
from vit_jax.trees import PyTree

PICTURE = "reconstructions.png"
SHOWN = 12  # images on the picture
HEIGHT = 96  # of each, in pixels


class Autoencoder(nn.Module):
    """An encoder of visible patches, and a light decoder of all; the encoder's parameters keep their own names."""

    encoder: ViT
    mask_ratio: float
    width: int  # of the decoder, as the next two
    depth: int
    num_heads: int

    def setup(self) -> None:
        nn.share_scope(self, self.encoder)

    @property
    def NAMING(self) -> models.Naming:  # noqa: N802 - as classes declare it
        """Of the encoder. For layer-wise rates the decoder is the last layer; the rules of any model shard it."""
        return models.naming_of(self.encoder)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], noise: Float[Array, "n l"] | None = None, *, train: bool
    ) -> tuple[Float[Array, "n l q"], Float[Array, "n l"]]:
        """The q pixel values of every patch, as `patches` orders them, and the mask: 1 where a patch was hidden.

        The patches with the least noise are seen; without noise, the first ones.
        """
        rng = self.make_rng("dropout") if train else jax.random.key(0)
        h, w = grid = self.encoder.grid(images.shape)
        n, c = images.shape[0], images.shape[-1]
        noise = jnp.broadcast_to(jnp.arange(h * w, dtype=jnp.float32), (n, h * w)) if noise is None else noise
        order = jnp.argsort(noise, axis=1)
        place = jnp.argsort(order, axis=1)  # of each patch in that order
        visible = min(h * w - 1, max(1, round(h * w * (1 - self.mask_ratio))))

        seen = self.encoder.features(images, train=train, keep=order[:, :visible])
        embed = nn.Dense(self.width, dtype=self.encoder.dtype, name="decoder_embedding")
        token = self.param("mask_token", nn.initializers.normal(masking.MASK_TOKEN), (1, 1, self.width))
        hidden = jnp.broadcast_to(token.astype(seen.patches.dtype), (n, h * w - visible, self.width))
        patches = jnp.concatenate([embed(seen.patches), hidden], axis=1)
        patches = jnp.take_along_axis(patches, place[..., None], axis=1)
        x = jnp.concatenate([embed(seen.prefix), patches], axis=1)
        x = self._decoder(grid)(x, rng, train=train)[:, x.shape[1] - h * w :]
        p, q = square(self.encoder.patch_size)
        pixels = nn.Dense(p * q * c, dtype=self.encoder.dtype, name="decoder_pixels")(x)
        return pixels.astype(jnp.float32), (place >= visible).astype(jnp.float32)

    def _decoder(self, grid: tuple[int, int]) -> Encoder:
        """Transformer blocks with fixed positions and a final norm."""
        dtype = self.encoder.dtype
        norm = partial(nn.LayerNorm, epsilon=self.encoder.norm_epsilon, dtype=dtype)
        attention = partial(MultiHeadDotProductAttention, self.num_heads, self.width // self.num_heads, dtype=dtype)
        block = partial(EncoderBlock, attention, partial(MlpBlock, 4 * self.width, dtype=dtype), norm)
        scan, remat = self.encoder.scan, self.encoder.remat
        return Encoder(block, norm, self.depth, "sincos2d", grid, scan=scan, remat=remat, name="decoder")


def patches(images: Float[Array, "n H W c"], size: tuple[int, int]) -> Float[Array, "n l q"]:
    """The pixels of each patch, rows of the grid one after another; within a patch y, x, channel."""
    n, height, width, c = images.shape
    p, q = size
    x = images.reshape(n, height // p, p, width // q, q, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, p * q * c)


def whole(x: Float[Array, "n l q"], size: tuple[int, int], shape: tuple[int, int, int]) -> Float[Array, "n H W c"]:
    """The images of this shape [H W c] that `patches` took apart."""
    (height, width, c), (p, q) = shape, size
    grid = x.reshape(x.shape[0], height // p, width // q, p, q, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], height, width, c)


class MaskedAutoencoder(Task):
    """The mean squared error of the hidden patches' pixels, each patch normalised (s. 3, "reconstruction target")."""

    shown = dict.fromkeys(("picture", "masked", "painted"), SHOWN)

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaskSettings):
        """The fields of `task`; the defaults are the paper's."""

        mask_ratio: float = 0.75  # of the patches, that are hidden
        decoder_width: int = 512
        decoder_depth: int = 8
        decoder_heads: int = 16
        normalize_patches: bool = True  # the target of a patch has mean 0 and deviation 1

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            if not 0 < self.mask_ratio < 1:
                raise UserError(f"task.mask_ratio={self.mask_ratio} is not between 0 and 1; the paper's is 0.75")
            if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1:
                raise UserError("task.decoder_width, task.decoder_depth and task.decoder_heads must be positive")
            if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
                raise UserError(
                    f"task.decoder_width={self.decoder_width} must be a multiple of 4 and of "
                    f"task.decoder_heads={self.decoder_heads}"
                )

    def __init__(self, settings: "MaskedAutoencoder.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        assert isinstance(parts.model, ViT)
        sizes = settings.mask_ratio, settings.decoder_width, settings.decoder_depth, settings.decoder_heads
        self.module = Autoencoder(parts.model, *sizes)
        self.patch_size = square(parts.model.patch_size)
        if parts.model.grid(parts.image_shape) == (1, 1):
            raise UserError(
                f"model.patch_size={parts.model.patch_size} leaves one patch, so that none can be hidden; halve it"
            )

        if settings.normalize_patches and math.prod(self.patch_size) * parts.image_shape[2] == 1:
            raise UserError(
                "task.normalize_patches=True divides by the deviation of a patch, and a patch of one pixel and one "
                "channel has none; choose a larger model.patch_size"
            )

    @classmethod
    def check(cls, settings: "MaskedAutoencoder.Settings", model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` for a model that cannot leave out patches, or whose head would not train."""
        cls.check_patches("masked_autoencoder", model)
        if model["patch_dropout"]:
            raise UserError(
                "task 'masked_autoencoder' hides task.mask_ratio of the patches; leave model.patch_dropout at 0"
            )
        head = {name: model[name] for name in ("pre_logits", "head_widths", "norm_after_pooling") if model[name]}
        if head or model["pooling"] == "map":
            raise UserError(
                f"task 'masked_autoencoder' trains no head: leave model.{next(iter(head), 'pooling')} at its default, "
                "and set it in fine-tuning"
            )

    @staticmethod
    def check_patches(task: str, model: Mapping[str, Any]) -> None:
        """Raises `UserError` for a model that cannot leave out patches."""
        if models.module_class(model["name"]) is not ViT or model["pos_embed"] in ("relative", "relative_bias"):
            raise UserError(
                f"task {task!r} hides patches of a plain ViT whose positions are added to them, not of "
                f"model {model['name']!r} with pos_embed={model.get('pos_embed', 'none')!r}"
            )

    @classmethod
    def sections(cls, folder: Path) -> list[Section]:
        """The reconstructions that the evaluator saved."""
        text = "Images of the test split as the encoder sees them, as the decoder paints them, and as they are."
        picture = folder / PICTURE
        return [Section("Reconstructions", text, picture)] if picture.is_file() else []

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        state: PyTree,
        batch: Examples,
        rngs: Rngs,
        constants: Mapping[str, PyTree],
    ) -> tuple[Float[Array, ""], Aux]:
        images = self.augmented(batch, rngs)
        noise = self.noise(rngs.task, images.shape)
        predicted, mask = self.predict({"params": params}, images, noise, train=True, rngs={"dropout": rngs.dropout})
        loss = self.per_example(predicted, self.target(images)[0], mask).mean()
        return loss, Aux({}, {"loss": loss})

    def noise(self, keys: Array, shape: tuple[int, ...]) -> Float[Array, "n l"]:
        """A number for each patch, by the image's key alone: the patches of the smallest numbers are shown."""
        return masking.noise(keys, self.parts.model.grid(shape))

    def predict(self, variables: PyTree, *inputs: Array, **options: Any) -> tuple[Array, Array]:
        """The values of every patch [n l q], and the mask [n l]."""
        found: Any = self.module.apply(variables, *inputs, **options)
        return found

    def target(
        self, images: Float[Array, "n H W c"]
    ) -> tuple[Float[Array, "n l q"], Float[Array, "n l 1"], Float[Array, "n l 1"]]:
        """The values to predict, and the mean and the deviation that turn them into pixels again."""
        pixels = patches(images, self.patch_size)
        mean = pixels.mean(axis=-1, keepdims=True)
        std = jnp.sqrt(pixels.var(axis=-1, keepdims=True, ddof=1) + 1e-6)  # as the authors' code has it
        if not self.settings.normalize_patches:
            mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
        return (pixels - mean) / std, mean, std

    def per_example(
        self, predicted: Float[Array, "n l q"], target: Float[Array, "n l q"], mask: Float[Array, "n l"]
    ) -> Float[Array, " n"]:
        """The mean over the hidden patches, of which each image has equally many."""
        return (jnp.square(predicted - target).mean(axis=-1) * mask).sum(axis=1) / mask.sum(axis=1)

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        """The loss; three uint8 pictures: the image, with hidden patches in the colour `augment.mean`, and as painted.

        Which patches are hidden is a function of the image's number in its split.
        """
        images = augment.eval_view(self.parts.augment, batch["image"])
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(batch["number"])
        variables = {"params": variables["params"]}
        predicted, mask = self.predict(variables, images, self.noise(keys, images.shape), train=False)
        target, mean, std = self.target(images)
        pixels, hidden = patches(images, self.patch_size), mask[..., None] > 0
        painted = jnp.where(hidden, predicted * std + mean, pixels)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        pictures = {"picture": pixels, "masked": jnp.where(hidden, 0.0, pixels), "painted": painted}
        return {"loss": self.per_example(predicted, target, mask)} | {
            name: self._displayed(whole(x, self.patch_size, shape)) for name, x in pictures.items()
        }

    def _displayed(self, images: Float[Array, "n H W c"]) -> UInt8[Array, "n H W c"]:
        settings = self.parts.augment
        mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (settings.mean, settings.std))
        return jnp.round(255 * jnp.clip(images * std + mean, 0, 1)).astype(jnp.uint8)

    def evaluator(self, size: int) -> "ReconstructionEvaluator":
        return ReconstructionEvaluator()

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        loss = scalars["loss"]
        values = math.prod(self.patch_size) * self.parts.image_shape[2]
        guessed = (values - 1) / values  # by the deviation that `target` divides by
        if self.settings.normalize_patches and 0.98 * guessed < loss < math.inf:
            return [
                f"the training loss {loss:.3f} is not below {guessed:.3f}, that of painting each patch in its mean "
                "colour. Likely: the learning rate is much too low or too high, or it has had too few steps yet."
            ]
        return super().warnings(scalars)


class ReconstructionEvaluator(Means):
    """The mean loss of a split, and a picture of its first images: hidden, painted, true."""

    def __init__(self) -> None:
        super().__init__()
        self._pictures: dict[str, list[np.ndarray]] = {"masked": [], "painted": [], "picture": []}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        room = max(0, SHOWN - self.size)
        super().add({name: rows[name] for name in ("index", "loss")})
        for name, found in self._pictures.items() if room else ():
            found.append(rows[name][:room].copy())  # a view would keep the whole batch

    def picture(self) -> Image.Image:
        """A row of images as the encoder sees them, one as they are painted, one as they are."""
        titles = {"masked": "seen", "painted": "painted", "picture": "true"}
        rows = {titles[name]: np.concatenate(found) for name, found in self._pictures.items()}
        return augment.contact_sheet(rows, HEIGHT)

    def save(self, folder: Path) -> None:
        self.picture().save(folder / PICTURE)
