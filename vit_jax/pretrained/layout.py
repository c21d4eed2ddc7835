"""What is known of a file of published weights: its model, and which of its arrays are which of ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Convert = Callable[[np.ndarray], np.ndarray]


def identity(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


@dataclass(frozen=True)
class Entry:
    """One array of ours, and how it is made of one of theirs."""

    ours: str  # "params/Transformer/encoderblock_0/LayerNorm_0/scale", "batch_stats/..."
    theirs: str
    convert: Convert = identity
    invert: Convert = identity  # ours -> theirs, for layouts in which weights are written


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input; mean and deviation of each channel on the 0..1 scale."""

    size: tuple[int, int]
    resize: Literal["crop", "stretch"]
    crop_fraction: float  # the image is scaled to size / crop_fraction, and its centre taken
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Layout:
    """A file's parameter names, as ours, and what else it tells about its model."""

    name: str  # for messages: "Google npz", "Hugging Face", "timm"
    model: dict[str, Any]  # `models.settings` of its architecture; num_classes of its head, 0 where it has none
    grid: tuple[int, int]  # of the patches that its positions were learned for; (0, 0) without positions
    preprocessing: Preprocessing
    entries: tuple[Entry, ...]  # one for each array of ours; several may read one of theirs
    ignored: tuple[str, ...] = ()  # regular expressions of those keys of theirs that hold nothing of ours
    class_names: tuple[str, ...] = ()  # by label; () where the file does not tell
