"""Folders of runs, written by hand: what a report reads, without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny
from vit_jax import config
from vit_jax.workdir import Workdir

CLASSES = ("cat", "dog", "emu")
PREPROCESSING = {"size": [5, 7], "resize": "crop", "channels": 3, "crop_fraction": 1.0, "interpolation": "bilinear"}


def run(folder: Path, *overrides: str, accuracy: float | None = 0.5, steps: int = 20, arg: str = "cnn") -> Path:
    """A run of `tests/tiny.py`; without an accuracy it is not finished."""
    given = config.load(tiny.spec(arg), overrides)
    workdir = Workdir(folder)
    folder.mkdir(parents=True)
    workdir.config_file.write_text(config.to_json(given))
    workdir.labels_file.write_text(json.dumps(CLASSES))
    workdir.images_file.write_text(json.dumps({"train": 180, "validation": 20, "test": 40}))
    prepared = {**PREPROCESSING, "input": [], "mean": [0.5] * 3, "std": [0.5] * 3}
    workdir.preprocessing_file.write_text(json.dumps(prepared))
    lines = [_line(at, steps) for at in range(1, steps + 1)]
    workdir.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if accuracy is not None:
        workdir.write_result(_result(accuracy, steps))
    return folder


def _line(at: int, steps: int) -> dict[str, Any]:
    share = at / steps
    train = {"loss": 2 - share + 0.1 * np.sin(at), "accuracy": share, "grad_norm": 1.0, "lr": 1 - share}
    found = {"step": at, **{f"train/{name}": value for name, value in train.items()}, "train/images_per_second": 80.0}
    return found | ({"val/loss": 2 - share, "val/accuracy": share * (1.5 - share)} if at % 5 == 0 else {})


def _result(accuracy: float, steps: int) -> dict[str, Any]:
    facts = {"parameters": 1000, "flops_per_image": 7000, "steps": steps, "seconds": 61.0, "warnings": ["<b>slow</b>"]}
    scores = {"test/accuracy": accuracy, "test/loss": 1 - accuracy, "best_val/accuracy": accuracy, "val/loss": 0.5}
    return {**scores, "monitor": "accuracy", "device": "1 x CPU", "images_per_second": 80.0, **facts}


def predict(folder: Path, label: list[int], logits: np.ndarray) -> None:
    """Adds the predictions of a test split."""
    at = np.arange(len(label))
    np.savez(Workdir(folder).predictions_file, index=at, label=np.asarray(label), logits=logits)
