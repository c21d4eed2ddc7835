"""Semantic segmentation as a task: backbone, decoder, losses, and how an image is evaluated at its stored size."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vit_jax import augment, models
from vit_jax.augment import VOID
from vit_jax.command import UserError
from vit_jax.data import Split
from vit_jax.metrics.segmentation import boundary_hits, confusion
from vit_jax.models import decoders
from vit_jax.setting import setting
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs, Section, Task, TaskSettings
from vit_jax.tasks.segmentation import losses
from vit_jax.tasks.segmentation.evaluation import DETAILS, PICTURE, SHOWN, MaskEvaluator
from vit_jax.trees import PyTree

STRIDE = 32  # pixels from place to place of a CNN's last map
SCALES = (0.75, 1.0, 1.25)  # of an image, with evaluate.tta=flip_scales
OF_STAGES = ("fpn", "vt_fpn")  # decoders that read the maps of a CNN's stages
_PYRAMID = "task.decoder=fpn or task.decoder=vt_fpn or task.decoder=simple_pyramid or task.decoder=mask_transformer"
_MASK_TRANSFORMER, _VT_FPN = "task.decoder=mask_transformer", "task.decoder=vt_fpn"


class Segmentation(Task):
    """A class for each pixel. The mean over images of cross-entropy and Dice; void pixels count nowhere."""

    targets = ("mask",)
    views = ("none", "flip", "flip_scales")
    monitor = "mean_iou"
    train_metrics = ("loss", "pixel_accuracy")
    shown = dict.fromkeys(("image", "predicted"), SHOWN)

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaskSettings):
        """The fields of `task`."""

        # fpn, vt_fpn: of a CNN's stages; the others of the last map, of any model: see `vit_jax.models.decoders`.
        decoder: Literal["linear", "mask_transformer", "simple_pyramid", "fpn", "vt_fpn"] = "linear"
        # Channels of a pyramid's maps, or of the mask transformer, whose 0 means: as the patches.
        width: int = setting(256, active_if=_PYRAMID)
        depth: int = setting(2, active_if=_MASK_TRANSFORMER)  # blocks
        num_heads: int = setting(4, active_if=_MASK_TRANSFORMER)
        tokens: int = setting(8, active_if=_VT_FPN)  # of each map
        token_width: int = setting(1024, active_if=_VT_FPN)  # 0: as the maps
        key_width: int = setting(256, active_if=_VT_FPN)  # of queries and keys
        cross_entropy: float = 1.0  # its share of the loss
        dice: float = 0.0  # likewise
        # Power of (median frequency / frequency) that weighs a class's pixels in the cross-entropy: 0 none, 1 the
        # median frequency balancing of Eigen & Fergus 2015 (arXiv:1411.4734, s. 6.3.2).
        balance: float = 0.0
        class_weights: tuple[float, ...] = ()  # of each class, instead of `balance`
        # The image at the size of training; as it is stored, at once; or in windows of the size of training, half of
        # each over the next. Always measured at the stored size.
        evaluation: Literal["resized", "whole", "windows"] = setting("resized", read_by="evaluate predict")
        # Boundaries may be apart by this share of the image's diagonal (Csurka et al. 2013).
        boundary: float = setting(0.0075, read_by="evaluate")

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            for name in ("depth", "num_heads", "tokens", "key_width"):
                if getattr(self, name) < 1:
                    raise UserError(f"task.{name}={getattr(self, name)} is not positive")
            if self.width < 0 or self.token_width < 0 or (self.width < 2 and self.decoder != "mask_transformer"):
                raise UserError(f"task.width={self.width}, task.token_width={self.token_width}: expected 2 or more")
            if min(self.cross_entropy, self.dice) < 0 or not self.cross_entropy + self.dice > 0:
                raise UserError(
                    f"task.cross_entropy={self.cross_entropy}, task.dice={self.dice}: none may be negative, and one "
                    "must be positive"
                )
            if self.balance < 0 or any(not weight >= 0 for weight in self.class_weights):
                raise UserError("task.balance and task.class_weights must not be negative")
            if self.balance and self.class_weights:
                raise UserError("task.balance and task.class_weights are both given; leave one of them out")
            if not 0 <= self.boundary < 0.5:
                raise UserError(f"task.boundary={self.boundary} is not a share of the diagonal in [0, 0.5)")

    def __init__(self, settings: "Segmentation.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        augment.check_masks(parts.train_augment)
        k = len(parts.class_names)
        if settings.class_weights and len(settings.class_weights) != k:
            raise UserError(f"task.class_weights has {len(settings.class_weights)} numbers for {k} classes; give {k}")
        if settings.evaluation == "whole" and parts.augment.resize and hasattr(parts.model, "grid"):
            raise UserError(
                "task.evaluation='whole': the model's positions fit one size of image only; choose 'resized' or "
                "'windows'"
            )
        if parts.tta == "flip_scales" and (settings.evaluation != "whole" or hasattr(parts.model, "grid")):
            raise UserError(
                "evaluate.tta=flip_scales needs whole images of any size: choose a CNN with task.evaluation=whole, or "
                "evaluate.tta=flip"
            )
        self.module = decoders.Segmenter(parts.model, make_decoder(settings, k, parts.model))

    @classmethod
    def check(cls, settings: Any, model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` for a decoder that cannot read the model's features."""
        kind = models.module_class(model["name"])
        if settings.decoder in OF_STAGES and not issubclass(kind, models.ResNet):
            raise UserError(
                f"task.decoder={settings.decoder!r} reads the maps of a CNN's stages, which model {model['name']!r} "
                "does not give; choose a resnet, or decoder simple_pyramid, mask_transformer or linear"
            )
        if not hasattr(kind, "features"):
            raise UserError(f"model {model['name']!r} has no features of each place, which task 'segmentation' reads")
        width = settings.width or model.get("width", 0)
        if settings.decoder == "mask_transformer" and width % settings.num_heads:
            raise UserError(f"task.num_heads={settings.num_heads} does not divide the mask transformer's width {width}")

    @classmethod
    def with_data(cls, settings: Any, train: Split | None, num_classes: int) -> Any:
        """The settings with the weights of the classes, by their frequencies in the training masks."""
        if not settings.balance:
            return settings
        frequencies = np.ones(num_classes) if train is None else train.class_frequencies(num_classes)
        weights = balanced(frequencies, settings.balance)
        return dataclasses.replace(settings, balance=0.0, class_weights=tuple(map(float, weights)))

    @classmethod
    def sections(cls, folder: Path) -> list[Section]:
        """The predicted masks beside the truth, and the classes' metrics, as the evaluator saved them."""
        if not (folder / DETAILS).is_file():
            return []
        details = json.loads((folder / DETAILS).read_text(encoding="utf-8"))
        f1 = details["boundary_f1_per_class"]
        found = {name: (iou, f1[name]) for name, iou in details["iou_per_class"].items()}
        rows = [(name, *("none" if value is None else value for value in both)) for name, both in found.items()]
        return [
            Section("Masks", "Images of the test split, their masks and the predicted ones.", folder / PICTURE),
            Section("Classes", columns=("class", "iou", "boundary_f1"), rows=rows),
        ]

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        state: PyTree,
        batch: Examples,
        rngs: Rngs,
        constants: Mapping[str, PyTree],
    ) -> tuple[Float[Array, ""], Aux]:
        pixels = {name: batch[name] for name in ("image", "mask", "mirrored", "progress") if name in batch}
        seen = augment.train_examples(self.parts.train_augment, pixels, rngs.augment)
        variables, key = {"params": params, "batch_stats": batch_stats}, {"dropout": rngs.dropout}
        logits, changed = self.module.apply(variables, seen["image"], train=True, rngs=key, mutable=["batch_stats"])
        logits, mask, settings = upsampled(logits, seen["mask"].shape[1:]), seen["mask"], self.settings
        weights = jnp.asarray(settings.class_weights) if settings.class_weights else None
        loss = settings.cross_entropy * losses.cross_entropy(logits, mask, weights)
        if settings.dice:
            loss += settings.dice * losses.dice(logits, mask)
        right = ((logits.argmax(axis=-1) == mask) & (mask != VOID)).sum(axis=(1, 2))
        accuracy = (right / jnp.maximum((mask != VOID).sum(axis=(1, 2)), 1)).mean()
        metrics = {"loss": loss.mean(), "pixel_accuracy": accuracy}
        return loss.mean(), Aux(changed.get("batch_stats", {}), metrics)

    def predict(self, variables: PyTree, images: UInt8[Array, "n H W c"]) -> Float[Array, "n H W k"]:
        """Logits for each pixel of images at their stored size."""
        return upsampled(self._logits(variables, self._view(images)), images.shape[1:3])

    def predict_views(self, variables: PyTree, images: UInt8[Array, "n H W c"]) -> Float[Array, "n H W k"]:
        """The mean of the probabilities over an image and its mirror image, and over `SCALES` with flip_scales."""
        seen, (n, *size, c) = self._view(images), images.shape
        scales = SCALES if self.parts.tta == "flip_scales" else (1.0,)
        found = []
        for scale in scales:
            scaled = (n, *(round(scale * length) for length in size), c)
            view = jax.image.resize(seen, scaled, "linear") if scale != 1 else seen
            for step in (1, -1):  # through the columns
                logits = upsampled(self._logits(variables, view[:, :, ::step]), images.shape[1:3])
                found.append(jax.nn.softmax(logits)[:, :, ::step])
        return sum(found[1:], found[0]) / len(found)

    def _view(self, images: UInt8[Array, "n H W c"]) -> Float[Array, "n h w c"]:
        settings = self.parts.augment
        resize = settings.resize if self.settings.evaluation == "resized" else ()
        return augment.eval_view(dataclasses.replace(settings, resize=resize), images)

    def _logits(self, variables: PyTree, seen: Float[Array, "n H W c"]) -> Float[Array, "n h w k"]:
        ways = {"resized": self._apply, "whole": self._whole, "windows": self._in_windows}
        return ways[self.settings.evaluation](variables, seen)

    def _whole(self, variables: PyTree, seen: Float[Array, "n H W c"]) -> Float[Array, "n H W k"]:
        """Of a CNN the edge goes on to a multiple of `STRIDE`: else its maps would be stretched over each other."""
        _, h, w, _ = seen.shape
        stride = 1 if hasattr(self.parts.model, "grid") else STRIDE  # positions are of images of this size
        padded = jnp.pad(seen, ((0, 0), (0, -h % stride), (0, -w % stride), (0, 0)), "edge")
        return upsampled(self._apply(variables, padded), padded.shape[1:3])[:, :h, :w]

    def _apply(self, variables: PyTree, images: Float[Array, "n H W c"]) -> Float[Array, "n h w k"]:
        found = self.module.apply(variables, images, train=False)
        assert isinstance(found, jax.Array)
        return found

    def _in_windows(self, variables: PyTree, images: Float[Array, "n H W c"]) -> Float[Array, "n H W k"]:
        """The mean logits of all windows that show a pixel."""
        n, *size, c = images.shape
        window = self.parts.image_shape[:2]
        starts = list(itertools.product(*(window_starts(a, b) for a, b in zip(size, window, strict=True))))
        count = np.zeros((*size, 1), np.float32)
        for y, x in starts:
            count[y : y + window[0], x : x + window[1]] += 1

        def body(total: Array, start: Array) -> tuple[Array, None]:
            corner = (0, start[0], start[1], 0)
            part = jax.lax.dynamic_slice(images, corner, (n, *window, c))
            logits = upsampled(self._apply(variables, part), window)
            before = jax.lax.dynamic_slice(total, corner, logits.shape)
            return jax.lax.dynamic_update_slice(total, before + logits, corner), None

        total = jnp.zeros((n, *size, len(self.parts.class_names)))
        return jax.lax.scan(body, total, jnp.asarray(starts))[0] / count[None]

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        """Counts of each image, its loss without weights, the image and the predicted mask."""
        logits, mask, k = self.predict(variables, batch["image"]), batch["mask"], len(self.parts.class_names)
        predicted = logits.argmax(axis=-1).astype(jnp.uint8)
        radius = max(1, round(self.settings.boundary * math.hypot(*mask.shape[1:])))
        views = {}
        if self.parts.tta != "none":
            likeliest = self.predict_views(variables, batch["image"]).argmax(axis=-1).astype(jnp.uint8)
            views["confusion_tta"] = confusion(likeliest, mask, k)
        return {
            **views,
            "confusion": confusion(predicted, mask, k),
            "boundary": boundary_hits(predicted, mask, k, radius),
            "loss": losses.cross_entropy(logits, mask),
            "image": batch["image"],
            "predicted": predicted,
        }

    def evaluator(self, size: int) -> MaskEvaluator:
        return MaskEvaluator(self.parts.class_names)

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        if math.isfinite(scalars["loss"]):
            return []
        return [
            f"the training loss is {scalars['loss']}: the parameters are lost. Likely: the learning rate is too high, "
            "the warm-up is too short, or a low precision overflows."
        ]


def make_decoder(settings: Segmentation.Settings, k: int, model: nn.Module) -> nn.Module:
    """The decoder that the settings describe, with the precision of the model."""
    dtype = getattr(model, "dtype", "float32")
    match settings.decoder:
        case "linear":
            return decoders.LinearDecoder(k, dtype)
        case "mask_transformer":
            return decoders.MaskTransformer(k, settings.width, settings.depth, settings.num_heads, dtype)
        case "simple_pyramid":
            return decoders.SimplePyramid(k, settings.width, dtype)
        case "fpn":
            return decoders.FeaturePyramid(k, settings.width, dtype)
        case "vt_fpn":
            sizes = settings.width, settings.tokens, settings.token_width, settings.key_width
            return decoders.TokenPyramid(k, *sizes, dtype)


def upsampled(logits: Float[Array, "n h w k"], size: tuple[int, ...]) -> Float[Array, "n H W k"]:
    """The logits at this (height, width), bilinear."""
    n, *given, k = logits.shape
    return logits if tuple(given) == tuple(size) else jax.image.resize(logits, (n, *size, k), "linear", antialias=False)


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin, evenly spaced, the last one at the end, each over half of the next at least."""
    if window > length:
        raise UserError(
            f"task.evaluation='windows': a window of {window} pixels is larger than the images' {length}; set "
            "augment.resize to a smaller size, or task.evaluation=resized"
        )
    steps = math.ceil((length - window) / max(1, window // 2))
    return [round(i * (length - window) / max(steps, 1)) for i in range(steps + 1)]


def balanced(frequencies: Float[np.ndarray, " k"], power: float) -> Float[np.ndarray, " k"]:
    """(median / frequency) ** power; 1 for a class that training does not show, the median that of the others."""
    there = frequencies > 0
    median = np.median(frequencies[there]) if there.any() else 1.0
    return np.where(there, (median / np.maximum(frequencies, 1e-12)) ** power, 1.0)
