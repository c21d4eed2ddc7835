"""Classification: one class for each image, learned from labels."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax import augment, losses, metrics
from vit_jax.command import UserError
from vit_jax.data import Split
from vit_jax.files import write_atomically
from vit_jax.human import human_percent
from vit_jax.setting import setting
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs, Task, TaskSettings, make_forward
from vit_jax.trees import PyTree

PREDICTIONS, CONFUSION = "predictions.npz", "confusion.json"
LOGITS_BYTES = 2**31  # more are not kept: of ImageNet-21k's test images 250 GB
MATRIX_CLASSES = 2000  # more have no confusion matrix: of 21,843 classes 4 GB
LEARNED = 3  # times the accuracy of guessing: a model that has so much learns
NEAR = 0.02  # a loss from this share below that of guessing upwards is one of guessing,
AT = 1e-3  # and one that differs from it by so little, whatever the accuracy is


class Classification(Task):
    """Softmax or sigmoid cross-entropy of the model's logits, with mixed and smoothed targets."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaskSettings):
        """The fields of `task`."""

        # softmax, sigmoid, multi_hot (DeiT III's), or another of `losses.LOSSES`.
        loss: str = setting("softmax", read_by="predict", choices=lambda: losses.LOSSES)
        label_smoothing: float = 0.0  # share of the target that all classes have together (arXiv:1512.00567, s. 7)

        # Power of (1 / share of the training images) that weighs the loss of a class: 0 none, 1 all classes alike.
        balance: float = 0.0
        class_weights: tuple[float, ...] = ()  # of each class, instead of `balance`

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            if self.balance < 0 or any(not weight >= 0 for weight in self.class_weights):
                raise UserError("task.balance and task.class_weights must not be negative")
            if self.balance and self.class_weights:
                raise UserError("task.balance and task.class_weights are both given; leave one of them out")
            if not 0 <= self.label_smoothing < 1:
                raise UserError(f"task.label_smoothing={self.label_smoothing} is not in [0, 1)")
            if self.label_smoothing and not losses.LOSSES[self.loss].label_smoothing:
                raise UserError(
                    f"task.label_smoothing={self.label_smoothing} would make every class a target of "
                    f"task.loss={self.loss!r}; set it to 0"
                )

    targets = ("label",)
    needs_head = True
    views = ("none", "flip", "flip_shift")
    monitor = "accuracy"
    train_metrics = ("loss", "accuracy")
    mutable: ClassVar[tuple[str, ...]] = ("batch_stats", "distillation")

    def __init__(self, settings: "Classification.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        self.num_classes = k = len(parts.class_names)
        weights = settings.class_weights
        if weights and len(weights) != k:
            raise UserError(f"task.class_weights has {len(weights)} numbers for {k} classes; give {k}")
        self.forward = make_forward(self.module, parts.augment)

    @classmethod
    def check(cls, settings: "Classification.Settings", model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` for a model that does not give logits for an image, or lacks a teacher."""
        if model.get("pooling") == "none":
            raise UserError(
                "model.pooling='none' gives logits for each patch, not for an image; choose gap, token or map"
            )
        if model.get("distillation_token") and not distill.teacher:
            raise UserError(
                f"model {model['name']!r} has a head that learns from a teacher, and this run has none; "
                "set distill.teacher, or choose its twin without that head, e.g. vit/S16 for deit/S16"
            )

    @classmethod
    def with_data(cls, settings: "Classification.Settings", train: Split | None, num_classes: int) -> Any:
        """The settings with the weights of the classes, by their shares of the training images."""
        if not settings.balance:
            return settings
        shares = np.full(num_classes, 1 / num_classes) if train is None else train.class_shares(num_classes)
        weights = balanced(shares, settings.balance)
        return dataclasses.replace(settings, balance=0.0, class_weights=tuple(map(float, weights)))

    def targets_of(self, labels: Int[Array, " n"]) -> Float[Array, "n k"]:
        """The labels as probabilities, smoothed."""
        return losses.one_hot(labels, self.num_classes, self.settings.label_smoothing)

    def mixed(self, batch: Examples, rngs: Rngs) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
        """What the model sees of a batch in training, and the targets."""
        images, targets = self.augmented(batch, rngs), self.targets_of(batch["label"])
        return augment.mix(self.parts.train_augment, rngs.mix, images, targets)

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
        logits, changed = self.module.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": rngs.dropout},
            mutable=list(self.mutable),
        )
        loss = self.mean_loss(logits, targets, images, changed, constants)
        metrics = {"loss": loss, "accuracy": accuracy(logits, targets)}
        return loss, Aux(changed.get("batch_stats", {}), metrics)

    def mean_loss(
        self,
        logits: Float[Array, "n k"],
        targets: Float[Array, "n k"],
        images: Float[Array, "n h w c"],
        sown: Mapping[str, PyTree],
        constants: Mapping[str, PyTree],
    ) -> Float[Array, ""]:
        """The mean over the batch of `per_example` times the weight of the class.

        The weights are as they are given: ten for each class makes the loss ten times as large. Those of `balance` have
        a mean of 1. An image with several targets, smoothed or mixed, has the mean of their weights.
        """
        found = self.per_example(logits, targets, images, sown, constants)
        if self.settings.class_weights:
            found *= targets @ jnp.asarray(self.settings.class_weights, jnp.float32)
        return found.mean()

    def per_example(
        self,
        logits: Float[Array, "n k"],
        targets: Float[Array, "n k"],
        images: Float[Array, "n h w c"],
        sown: Mapping[str, PyTree],
        constants: Mapping[str, PyTree],
    ) -> Float[Array, " n"]:
        """The loss of each example; `sown` is what the model left in its mutable collections."""
        return losses.LOSSES[self.settings.loss].per_example(logits, targets)

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        logits = self.forward(variables, batch["image"])
        views = augment.other_views(self.parts.tta, augment.eval_view(self.parts.augment, batch["image"]))
        if not views:
            return {"logits": logits}
        mean = (1 - sum(weight for weight, _ in views)) * logits
        for weight, view in views:
            seen = self.parts.model.apply(variables, view, train=False)
            assert isinstance(seen, jax.Array)
            mean += weight * seen
        return {"logits": logits, "tta_logits": mean}

    def evaluator(self, size: int) -> "ClassificationEvaluator":
        return ClassificationEvaluator(size, self.parts.class_names, self.settings.loss)

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Of a loss that is not finite, or that stays at what guessing gives.

        A model that is right far more often than by guessing has learned, however large its loss, unless that is the
        loss of guessing: its logits then hardly differ between the classes.
        """
        loss, k = scalars["loss"], self.num_classes
        if not math.isfinite(loss):
            return super().warnings(scalars)
        guessed, formula = losses.LOSSES[self.settings.loss].guess(k)
        learned = min(LEARNED / k, (1 + 1 / k) / 2)  # of few classes: half-way between guessing and right
        guesses = loss >= (1 - NEAR) * guessed and scalars["accuracy"] < learned
        if k == 1 or not (guesses or abs(loss - guessed) < AT * guessed):
            return []
        place = "above" if loss > (1 + NEAR) * guessed else "still about"
        return [
            f"the training loss {_short(loss)} is {place} {formula} = {_short(guessed)}, what guessing gives."
            " Likely: the learning rate is much too high or too low, the warm-up is missing, the labels do not match"
            " the images, the images are not normalised, or it has had too few steps yet."
        ]


class _Part(NamedTuple):
    place: np.ndarray  # [n] in the split
    label: np.ndarray  # [n]
    examples: metrics.Examples
    logits: np.ndarray | None  # [n k] float32


class ClassificationEvaluator:
    """Logits, loss, rank and confidence of every example; metrics are computed once from all of them."""

    def __init__(self, expected: int, class_names: tuple[str, ...], loss: str = "softmax") -> None:
        self.expected, self.class_names, self.loss = expected, class_names, loss
        self._parts: list[_Part] = []
        self._right_tta: list[np.ndarray] = []  # whether test-time augmentation is right, of each example

    @property
    def size(self) -> int:
        return sum(len(part.place) for part in self._parts)

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        label, logits = rows["label"], rows["logits"]
        k = logits.shape[1]
        metrics.check_labels(label, k)
        if "tta_logits" in rows:
            self._right_tta.append(rows["tta_logits"].argmax(axis=1) == label)
        kept = logits if self.expected * k * logits.itemsize <= LOGITS_BYTES else None
        self._parts.append(_Part(rows["index"], label, metrics.per_example(logits, label, self.loss), kept))

    @cached_property  # read once all examples are there
    def found(self) -> _Part:
        """All examples, in one part; logits are None where they are too many to keep."""
        if not self._parts:
            raise UserError(metrics.NO_EXAMPLES)
        examples = metrics.Examples(*map(np.concatenate, zip(*(part.examples for part in self._parts), strict=True)))
        place, label = (np.concatenate([getattr(part, name) for part in self._parts]) for name in ("place", "label"))
        logits = [part.logits for part in self._parts if part.logits is not None]
        return _Part(place, label, examples, np.concatenate(logits) if logits else None)

    def scalars(self) -> dict[str, float]:
        """Loss, and every metric of classification that is registered; accuracy with test-time augmentation too."""
        found = metrics.of_examples(self.found.examples, self.found.label, len(self.class_names))
        if self._right_tta:
            found["accuracy_tta"] = float(np.concatenate(self._right_tta).mean())
        return found

    def details(self) -> dict[str, Any]:
        """The confusion matrix (rows true, columns predicted) and the accuracy of each class.

        None instead of the matrix of more than `MATRIX_CLASSES`.
        """
        predicted, label, k = self.found.examples.prediction, self.found.label, len(self.class_names)
        per_class = metrics.per_class_accuracy(predicted, label, k)
        return {
            "classes": list(self.class_names),
            "matrix": metrics.confusion(predicted, label, k).tolist() if k <= MATRIX_CLASSES else None,
            "per_class_accuracy": {
                name: None if np.isnan(share) else float(share)
                for name, share in zip(self.class_names, per_class, strict=True)
            },
        }

    def warnings(self) -> list[str]:
        """Of predictions that are nearly all one class, where the images are not."""
        predicted, share = metrics.most_predicted(self.found.examples.prediction, len(self.class_names))
        true_share = float(np.mean(self.found.label == predicted))
        if not (share > 0.9 and true_share < 0.8 * share):
            return []
        return [
            f"{human_percent(share)} of the predictions are {self.class_names[predicted]!r}, the class"
            f" of {human_percent(true_share)} of the images. Likely: the model has collapsed (learning rate too"
            " high, warm-up missing), the training images are not shuffled, or their classes are very unbalanced."
        ]

    def save(self, folder: Path) -> None:
        """Writes the logits, or where they are not kept each image's class and its probability, and the details."""
        place, label, examples, logits = self.found
        path = folder / PREDICTIONS
        if logits is not None:
            np.savez_compressed(path, index=place, label=label, logits=logits)
        else:
            prediction, confidence = examples.prediction, examples.confidence
            np.savez_compressed(path, index=place, label=label, prediction=prediction, confidence=confidence)
        write_atomically(folder / CONFUSION, json.dumps(self.details(), indent=1) + "\n")


def accuracy(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """The share of the images whose largest logit is of their largest target: of a mixed one, what it shows most of."""
    return (logits.argmax(axis=-1) == targets.argmax(axis=-1)).mean()


def balanced(shares: Float[np.ndarray, " k"], power: float) -> Float[np.ndarray, " k"]:
    """Weights like (1 / share) ** power, whose mean over the images is 1; 0 of a class that training does not show."""
    there = shares > 0
    weights = np.where(there, np.maximum(shares, 1e-12) ** -power, 0.0)
    return weights / (shares * weights).sum()


def _short(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"
