"""Exact metrics of the masks of a split, and a picture of the first ones."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_jax import augment
from vit_jax.augment import VOID
from vit_jax.command import UserError
from vit_jax.files import write_atomically
from vit_jax.metrics.segmentation import boundary_f1_of, iou_per_class
from vit_jax.tasks.segmentation import pictures

PICTURE, DETAILS = "masks.png", "masks.json"
SHOWN = 8  # images on the picture
HEIGHT = 120  # of each, in pixels


class MaskEvaluator:
    """Sums the counts of all images: the metrics depend on no batch size and no order."""

    def __init__(self, class_names: Sequence[str]) -> None:
        k = len(class_names)
        self.class_names, self.size = tuple(class_names), 0
        self.confusion = np.zeros((k, k), np.int64)
        self.confusion_tta = np.zeros((k, k), np.int64)  # with test-time augmentation; all 0 without
        self._surprise: list[float] = []  # of each image, times its known pixels
        self._f1, self._with_edges = np.zeros(k), np.zeros(k, np.int64)
        self._shown: dict[str, list[np.ndarray]] = {"image": [], "mask": [], "predicted": []}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        k, masks = len(self.class_names), rows["mask"]
        known = masks[masks != VOID]
        if known.size and known.max() >= k:
            raise UserError(f"a mask has the value {known.max()}, but the {k} classes are 0 to {k - 1}; {VOID} is void")
        if room := max(0, SHOWN - self.size):
            for name, found in self._shown.items():
                found += list(rows[name][:room].copy())  # a view would keep the whole batch
        self.size += len(masks)
        self.confusion += rows["confusion"].sum(axis=0, dtype=np.int64)
        self.confusion_tta += rows.get("confusion_tta", np.zeros((1, k, k), np.int64)).sum(axis=0, dtype=np.int64)
        self._surprise += (rows["loss"].astype(np.float64) * rows["confusion"].sum(axis=(1, 2))).tolist()
        f1 = boundary_f1_of(rows["boundary"])
        self._f1 += np.nansum(f1, axis=0)
        self._with_edges += (~np.isnan(f1)).sum(axis=0)

    def scalars(self) -> dict[str, float]:
        pixels = int(self.confusion.sum())
        if not pixels:
            raise UserError("the split has no pixel of a known class, so it has no metrics; choose another split")
        edged = self._with_edges > 0
        views = (
            {"mean_iou_tta": float(np.nanmean(iou_per_class(self.confusion_tta)))} if self.confusion_tta.any() else {}
        )
        return {
            **views,
            "mean_iou": float(np.nanmean(iou_per_class(self.confusion))),
            "pixel_accuracy": float(np.trace(self.confusion) / pixels),
            "boundary_f1": float(np.mean(self._f1[edged] / self._with_edges[edged])) if edged.any() else 0.0,
            "loss": math.fsum(self._surprise) / pixels,
        }

    def details(self) -> dict[str, Any]:
        """IoU and boundary F1 by class, None where a class has none, and the confusion matrix in pixels."""
        with np.errstate(invalid="ignore"):
            by_class = {"iou_per_class": iou_per_class(self.confusion), "boundary_f1": self._f1 / self._with_edges}
        named = {
            key: dict(zip(self.class_names, (None if np.isnan(v) else float(v) for v in values), strict=True))
            for key, values in by_class.items()
        }
        return {
            "iou_per_class": named["iou_per_class"],
            "boundary_f1_per_class": named["boundary_f1"],
            "confusion": self.confusion.tolist(),
        }

    def warnings(self) -> list[str]:
        predicted = np.flatnonzero(self.confusion.sum(axis=0))
        if len(predicted) != 1 or (self.confusion.sum(axis=1) > 0).sum() == 1:
            return []
        return [
            f"every pixel is taken for {self.class_names[predicted[0]]!r}. Likely: the learning rate is too high, or "
            "the run has had too few steps yet."
        ]

    def picture(self) -> Image.Image:
        """A row of images, one of their masks, one of the predicted masks."""
        k = len(self.class_names)
        rows = {
            "image": self._shown["image"],
            "true mask, void black": [pictures.coloured(mask, k) for mask in self._shown["mask"]],
            "predicted mask": [pictures.coloured(mask, k) for mask in self._shown["predicted"]],
        }
        return augment.contact_sheet({title: np.stack(found) for title, found in rows.items()}, HEIGHT)

    def save(self, folder: Path) -> None:
        self.picture().save(folder / PICTURE)
        write_atomically(folder / DETAILS, json.dumps(self.details(), indent=1) + "\n")
