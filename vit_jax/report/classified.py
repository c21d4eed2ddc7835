"""What a report shows of a classified split: confusion, classes, reliability, mistakes; and which images it needs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

from vit_jax import losses, metrics
from vit_jax.report.runs import Run

SHOWN_CLASSES = 40  # in the matrix; of more classes those that are confused most
BINS = 15  # as of the calibration error
CARDS = 12  # mistakes, and hits
IN_CELL = 6  # images of a cell of the matrix
CELLS = 160  # images of all cells
TOP = 5


@dataclass(frozen=True)
class Classified:
    """The test split of one run."""

    class_names: tuple[str, ...]
    place: Int[np.ndarray, " n"]  # in the split
    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"] | None  # None where the run kept no logits


def read(run: Run) -> Classified | None:
    """The predictions of a run; None where it left none."""
    path = run.workdir.predictions_file
    if not path.is_file() or not run.workdir.labels_file.is_file():
        return None
    run.workdir.check(path)
    with path.open("rb") as file, np.load(file) as found:  # which leaves a damaged file open
        arrays = {name: found[name] for name in found.files}
    if "label" not in arrays or not {"logits", "prediction"} & arrays.keys():
        return None
    names, place = run.workdir.class_names(), arrays["index"] if "index" in arrays else np.arange(len(arrays["label"]))
    if "logits" not in arrays:
        return Classified(names, place, arrays["label"], arrays["prediction"], arrays["confidence"], None)
    loss = losses.LOSSES[run.config.task.get("loss", "softmax")]
    with np.errstate(invalid="ignore"):
        probabilities = loss.probabilities(arrays["logits"])
    prediction = metrics.predict(arrays["logits"])
    return Classified(names, place, arrays["label"], prediction, probabilities.max(axis=1), probabilities)


def describe(found: Classified) -> dict[str, Any]:
    """Everything but the images, ready for JSON."""
    k = len(found.class_names)
    matrix = metrics.confusion(found.prediction, found.label, k) if k <= 2000 else None
    shown = most_confused(matrix) if matrix is not None else []
    return {
        "classes": list(found.class_names),
        "shown": shown,
        "matrix": matrix[np.ix_(shown, shown)].tolist() if matrix is not None else None,
        "per_class": per_class(matrix) if matrix is not None else [],
        "reliability": reliability(found),
        "images": len(found.label),
    }


def most_confused(matrix: Int[np.ndarray, "k k"]) -> list[int]:
    """The classes that the matrix shows, in their order: all, or those with most mistakes."""
    wrong = matrix - np.diag(np.diag(matrix))
    worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:SHOWN_CLASSES]
    return sorted(worst.tolist())


def per_class(matrix: Int[np.ndarray, "k k"]) -> list[list[Any]]:
    """Of each class: images, recall, precision, F1, and what it is most often taken for, with the share of that."""
    rows = []
    for c, (row, column) in enumerate(zip(matrix, matrix.T, strict=True)):
        right, images, predicted = int(row[c]), int(row.sum()), int(column.sum())
        others = np.where(np.arange(len(row)) == c, 0, row)
        other = int(others.argmax()) if others.any() else None
        recall, precision = (right / n if n else None for n in (images, predicted))
        f1 = 2 * right / (images + predicted) if images + predicted else None
        rows.append([c, images, recall, precision, f1, other, int(others.max()) / images if images else None])
    return rows


def reliability(found: Classified) -> list[list[int | float]]:
    """Of each bin of confidence that holds images: its number, their share, their mean confidence and accuracy."""
    known = np.isfinite(found.confidence)
    confidence, correct = found.confidence[known], (found.prediction == found.label)[known]
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    parts = [(b, bins == b) for b in range(BINS) if (bins == b).any()]
    return [[b, float(part.mean()), float(confidence[part].mean()), float(correct[part].mean())] for b, part in parts]


def cards(found: Classified) -> dict[str, list[dict[str, Any]]]:
    """The most confident mistakes and the least confident hits, each with its place and its most probable classes."""
    correct, order = found.prediction == found.label, np.argsort(-np.nan_to_num(found.confidence), kind="stable")
    mistakes = [i for i in order if not correct[i]][:CARDS]
    hits = [i for i in order[::-1] if correct[i]][:CARDS]
    return {name: [_card(found, int(i)) for i in rows] for name, rows in (("mistakes", mistakes), ("hits", hits))}


def _card(found: Classified, row: int) -> dict[str, Any]:
    if found.probabilities is None:
        top = [(int(found.prediction[row]), float(found.confidence[row]))]
    else:
        best = np.argsort(-found.probabilities[row], kind="stable")[:TOP]
        top = [(int(c), float(found.probabilities[row, c])) for c in best]
    finite = [[c, round(share, 4) if math.isfinite(share) else None] for c, share in top]
    return {"place": int(found.place[row]), "label": int(found.label[row]), "top": finite}


def cells(found: Classified, shown: list[int]) -> dict[str, list[int]]:
    """The places of some images of each cell `row,column` of the matrix: mistakes first, as many as the page holds."""
    numbers = {c: i for i, c in enumerate(shown)}
    rows: dict[tuple[int, int], list[int]] = {}
    order = np.argsort(-np.nan_to_num(found.confidence), kind="stable")
    for i in order[np.argsort(found.prediction[order] == found.label[order], kind="stable")]:
        true, predicted = int(found.label[i]), int(found.prediction[i])
        if true in numbers and predicted in numbers:
            cell = rows.setdefault((numbers[true], numbers[predicted]), [])
            if len(cell) < IN_CELL:
                cell.append(int(found.place[i]))
    # One of each cell first, then a second one of each: a page that is full shows something everywhere.
    queue = [(turn, cell) for turn in range(IN_CELL) for cell, places in rows.items() if turn < len(places)][:CELLS]
    kept: dict[str, list[int]] = {}
    for turn, (true, predicted) in queue:
        kept.setdefault(f"{true},{predicted}", []).append(rows[true, predicted][turn])
    return kept


def picture(found: Classified, side: int = 36) -> Image.Image:
    """The confusion matrix, rows true, columns predicted: dark where a class is often taken for another."""
    k = len(found.class_names)
    matrix = metrics.confusion(found.prediction, found.label, k)
    shares = np.sqrt(matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True)))
    shade = np.repeat(np.repeat(255 - np.round(205 * shares).astype(np.uint8), side, axis=0), side, axis=1)
    drawing = Image.fromarray(shade).convert("RGB")
    pen, font = ImageDraw.Draw(drawing), ImageFont.load_default(size=12)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            ink = "white" if shares[row, column] > 0.6 else "black"
            pen.text(((column + 0.5) * side, (row + 0.5) * side), str(count), ink, font, "mm")
    return drawing
