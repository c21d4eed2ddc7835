"""Exact metrics of a whole split, on the host in float64: they depend on no batch size, padding or order.

Sums are correctly rounded (`math.fsum`), so a shuffled split gives the same number to the last bit.
A row of logits that holds a NaN or an infinity predicts no class, -1: it counts as wrong, and makes loss and ECE NaN.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

from vit_jax.command import UserError
from vit_jax.losses import LOSSES
from vit_jax.metrics.registry import METRICS, Metric, register

NO_CLASS = -1
NO_EXAMPLES = "the split has no examples, so it has no metrics; choose another split or a larger share"
ROWS_AT_ONCE = 1024  # bounds the memory: 21,841 classes in float64 are 180 MB


class Examples(NamedTuple):
    """What one pass over the logits leaves of each example."""

    loss: Float64[np.ndarray, " n"]  # as trained with; of softmax -log p(label)
    confidence: Float64[np.ndarray, " n"]  # the largest probability
    prediction: Int64[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]  # how many classes stand before the label; k when the logits are not finite


def of_examples(
    examples: Examples, labels: Integer[np.ndarray, " n"], k: int, class_names: Sequence[str] = ()
) -> dict[str, float]:
    """`loss` and every metric of classification that is registered, of what the logits of k classes left.

    With `class_names` also `accuracy/<name>` for each class that occurs among the labels.
    Equal logits rank by class index, as `predict` does: constant logits are right for class 0 only.
    Raises `UserError` for an empty split, labels outside 0..k-1, or a wrong number of names.
    """
    _check(labels, k, class_names)
    metrics = {"loss": math.fsum(examples.loss) / len(labels)}
    for name, metric in METRICS.items():
        value = metric.compute(examples, labels, k) if metric.compute else None
        if value is not None:
            metrics[name] = value
    accuracies = per_class_accuracy(examples.prediction, labels, k)
    occurring = ((name, share) for name, share in zip(class_names, accuracies, strict=False) if not np.isnan(share))
    return metrics | {f"accuracy/{name}": float(share) for name, share in occurring}


def _check(labels: np.ndarray, k: int, class_names: Sequence[str]) -> None:
    if not len(labels):
        raise UserError(NO_EXAMPLES)
    check_labels(labels, k)
    if class_names and len(class_names) != k:
        raise UserError(f"{len(class_names)} class names for {k} classes; give one per class, or none")


def check_labels(labels: Integer[np.ndarray, " n"], k: int) -> None:
    """Raises `UserError` for labels that logits of k classes do not have."""
    if labels.min() < 0 or labels.max() >= k:
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()}, but the logits have {k} classes; "
            "drop padded examples, or evaluate on the data set the model was trained for"
        )


def predict(logits: Float[np.ndarray, "n k"]) -> Int64[np.ndarray, " n"]:
    """The class with the largest logit, the first of equal ones; -1 where a logit is not finite."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), NO_CLASS)


def per_example(logits: Float[np.ndarray, "n k"], labels: Integer[np.ndarray, " n"], loss: str = "softmax") -> Examples:
    """The loss, confidence, prediction and rank of every example, a block of rows at a time."""
    starts = range(0, len(labels), ROWS_AT_ONCE)
    blocks = [_block(logits[i : i + ROWS_AT_ONCE], labels[i : i + ROWS_AT_ONCE], loss) for i in starts]
    return Examples(*map(np.concatenate, zip(*blocks, strict=True)))


def _block(logits: np.ndarray, labels: np.ndarray, loss: str) -> Examples:
    x = logits.astype(np.float64)
    k = x.shape[1]
    prediction = predict(x)
    x[prediction == NO_CLASS] = np.nan
    of_label = np.take_along_axis(x, labels[:, None].astype(np.int64), axis=1)
    before = (x > of_label) | ((x == of_label) & (np.arange(k) < labels[:, None]))
    rank = np.where(prediction == NO_CLASS, k, before.sum(axis=1))
    return Examples(*LOSSES[loss].evaluation(x, of_label[:, 0]), prediction, rank)


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = 15
) -> float:
    """The mean gap between confidence and accuracy over equal-width bins (low, high] of confidence, weighted by size.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3. NaN if a confidence is.
    """
    if np.isnan(confidence).any():
        return math.nan
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    gaps = (math.fsum((correct - confidence)[index == b]) for b in range(bins))
    return math.fsum(map(abs, gaps)) / len(confidence)


def confusion(
    predictions: Integer[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], k: int
) -> Int64[np.ndarray, "{k} {k}"]:
    """Counts of examples, rows the true class, columns the predicted one; a prediction of -1 is in no column."""
    known = predictions != NO_CLASS
    cells = labels[known].astype(np.int64) * k + predictions[known]
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def per_class_accuracy(
    predictions: Integer[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], k: int
) -> Float64[np.ndarray, " {k}"]:
    """The share of each class's examples that are predicted right (its recall); NaN for a class without examples."""
    right = np.bincount(labels[predictions == labels], minlength=k)
    total = np.bincount(labels, minlength=k)
    return np.divide(right, total, out=np.full(k, np.nan), where=total > 0)


def f1_macro(predictions: Integer[np.ndarray, " n"], labels: Integer[np.ndarray, " n"], k: int) -> float:
    """The unweighted mean of 2 TP / (2 TP + FP + FN) over the classes that occur among the labels or predictions.

    scikit-learn's `f1_score(average='macro', zero_division=0)`, without its warning for many classes of few examples.
    """
    predicted = np.bincount(predictions[predictions != NO_CLASS], minlength=k)
    occurrences = np.bincount(labels, minlength=k) + predicted
    right = np.bincount(labels[predictions == labels], minlength=k)
    f1 = 2 * right[occurrences > 0] / occurrences[occurrences > 0]
    return math.fsum(f1) / len(f1)


def most_predicted(predictions: Integer[np.ndarray, " n"], k: int) -> tuple[int, float]:
    """The class predicted most often, and its share of all predictions; of -1, no class, there may be more."""
    counts = np.bincount(predictions[predictions != NO_CLASS], minlength=k)
    return int(counts.argmax()), float(counts.max() / len(predictions))


def shape_bias(
    predictions: Integer[np.ndarray, " n"], shapes: Integer[np.ndarray, " n"], textures: Integer[np.ndarray, " n"]
) -> float:
    """Of images with the shape of one class and the texture of another, the share that is taken for the shape's.

    Among those that are taken for either (Geirhos et al. 2019, arXiv:1811.12231, s. 2.3); images whose two classes are
    the same say nothing. NaN where none is left.
    """
    conflict = shapes != textures
    as_shape, as_texture = (int(((predictions == labels) & conflict).sum()) for labels in (shapes, textures))
    return as_shape / (as_shape + as_texture) if as_shape + as_texture else math.nan


def error_consistency(a_correct: Bool[np.ndarray, " n"], b_correct: Bool[np.ndarray, " n"]) -> float:
    """Cohen's kappa of which images two observers get right: 1 always the same, 0 as often as by chance.

    (observed - expected) / (1 - expected), where independent observers of accuracies p and q agree on a share of
    expected = p q + (1 - p)(1 - q) (Geirhos et al. 2020, arXiv:2006.16736, eq. 1 and 3). NaN where that is 1.
    """
    p, q = float(np.mean(a_correct)), float(np.mean(b_correct))
    observed, expected = float(np.mean(a_correct == b_correct)), p * q + (1 - p) * (1 - q)
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def _top(n: int) -> Metric:
    """The share of the examples whose label is among the n most probable classes; none where that is all of them."""
    label, short = ("accuracy", "acc") if n == 1 else (f"top-{n} accuracy", f"top-{n}")
    return Metric(
        label,
        short,
        brief=True,
        compute=lambda found, labels, k: float(np.mean(found.rank < n)) if k > n or n == 1 else None,
    )


def _ece(found: Examples, labels: np.ndarray, k: int) -> float:
    return expected_calibration_error(found.confidence, found.rank == 0)


register("accuracy", _top(1))
register("top5", _top(5))
register("f1_macro", Metric("F1 (macro)", "F1", compute=lambda found, labels, k: f1_macro(found.prediction, labels, k)))
register("accuracy_tta", Metric("accuracy, test-time augmentation", "acc TTA"))  # the evaluator computes it
register("ece", Metric("calibration error", "ECE", higher_is_better=False, compute=_ece))
