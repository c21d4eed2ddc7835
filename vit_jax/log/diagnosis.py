"""Warnings about a model that learns nothing, with the likely causes."""

import math
from typing import Literal

from vit_jax.log.human import human_percent

LEARNED = 3  # times the accuracy of guessing
NEAR, AT = 0.02, 1e-3  # of the loss of guessing: how far from it a loss is about it, and hardly differs from it


def diagnose(
    *,
    loss: float,
    accuracy: float,
    num_classes: int,
    predicted_class_share: float,
    predicted_class: str,
    true_class_share: float,
    kind: Literal["softmax", "sigmoid", "multi_hot"] = "softmax",
) -> list[str]:
    """Warnings of one or two sentences; none for a model that learns.

    loss, accuracy: mean training loss (in nats, cross-entropy of that kind: see `guessing`), and share of the training
      images that were right: a model that is right far more often than by guessing has learned, however large its loss,
      unless that is the loss of guessing: its logits then hardly differ between the classes.
    predicted_class_share: share in [0, 1] of the validation predictions that fall in `predicted_class`, the class
      predicted most often; true_class_share: share of the validation images that do belong to it.
    """
    if not math.isfinite(loss):  # then the predictions mean nothing either
        return [
            f"the training loss is {loss}: the parameters are lost. Likely: the learning rate is too high, the gradient"
            " is not clipped or the warm-up too short, a low precision overflows, or the images hold NaN."
        ]
    warnings = []
    guessed = guessing(num_classes, kind)
    guesses = loss >= (1 - NEAR) * guessed and accuracy < LEARNED / num_classes
    if num_classes > 1 and (guesses or abs(loss - guessed) < AT * guessed):
        k = num_classes
        formula = f"ln({k})" if kind == "softmax" else f"ln({k}) + {k - 1} ln({k}/{k - 1})"
        formula = f"({formula}) / {k}" if kind == "multi_hot" else formula
        warnings.append(
            f"the training loss {_short(loss)} is still about {formula} = {_short(guessed)}, what guessing gives."
            " Likely: the learning rate is much too high or too low, the warm-up is missing, the labels do not match"
            " the images, the images are not normalised, or it has had too few steps yet."
        )
    if predicted_class_share > 0.9 and true_class_share < 0.8 * predicted_class_share:
        warnings.append(
            f"{human_percent(predicted_class_share)} of the validation predictions are {predicted_class!r}, the class"
            f" of {human_percent(true_class_share)} of the images. Likely: the model has collapsed (learning rate too"
            " high, warm-up missing), the training images are not shuffled, or their classes are very unbalanced."
        )
    return warnings


def guessing(num_classes: int, kind: Literal["softmax", "sigmoid", "multi_hot"]) -> float:
    """The least mean loss, in nats, of a model that knows of k classes that they are equally frequent, and no more.

    softmax: the entropy of the class, ln k. sigmoid, summed over the classes: k times the entropy of "is it this one?",
    of probability 1/k, which is ln k + (k - 1) ln(k / (k - 1)). Smoothed and mixed targets leave it so: they add up to
    1 for each image, and the loss is linear in them. multi_hot: the mean over the classes instead; mixed images have
    two, and cost more.
    """
    entropy = math.log(num_classes)
    if kind != "softmax" and num_classes > 1:
        entropy += (num_classes - 1) * math.log(num_classes / (num_classes - 1))
    return entropy / num_classes if kind == "multi_hot" else entropy


def _short(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"
