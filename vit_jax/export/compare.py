"""How far an exported model is from the one that it was made of, on real images; and how fast each is."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Preprocessing, open_data
from vit_jax.data.files import find_images, read_images

TOLERANCE = 1e-4  # of float32, as a share of the largest output
ROUNDED = 0.05  # the same, where the model's products have fewer bits
AGREEMENT = 0.9  # the least share of images that an int8 model takes for the same class

Images = UInt8[np.ndarray, "n h w c"]
Model = Callable[[Images], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """Between two models' outputs for the same images."""

    images: int
    largest: float
    scale: float  # the largest of the outputs, as they are without their sign
    agreement: float  # share of images, or of their places, with the same largest output

    def is_within(self, tolerance: float) -> bool:
        return self.largest <= tolerance * max(self.scale, float(np.finfo(np.float32).tiny))

    def __str__(self) -> str:
        return (
            f"at most {self.largest:.2g} from the model's outputs, which reach {self.scale:.3g}, on {self.images:,} "
            f"images; {self.agreement:.2%} have the same largest output"
        )


def difference(found: Float[np.ndarray, "n *places k"], expected: Float[np.ndarray, "n *places k"]) -> Difference:
    """How far the outputs are apart; NaN in either is infinitely far."""
    if found.shape != expected.shape:
        raise ValueError(f"outputs {list(found.shape)} against {list(expected.shape)}")
    apart = np.abs(found.astype(np.float64) - expected)
    largest = float(np.where(np.isnan(apart), np.inf, apart).max())
    same = float((found.argmax(axis=-1) == expected.argmax(axis=-1)).mean())
    return Difference(len(found), largest, float(np.abs(expected).max()), same)


def in_batches(model: Model, images: Images, batch_size: int) -> np.ndarray:
    """The output for all images; the last batch is filled up, so that one size is compiled."""
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        padding = ((0, min(batch_size, len(images)) - len(part)), (0, 0), (0, 0), (0, 0))
        parts.append(np.asarray(model(np.pad(part, padding)))[: len(part)])
    return np.concatenate(parts)


def images_per_second(models: Mapping[str, Model], images: Images, rounds: int = 15) -> dict[str, float]:
    """The median speed of each model on these images at once, in rounds of one call each."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(images)
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / statistics.median(found) for name, found in seconds.items()}


def files(paths: list[Path], view: Preprocessing, threads: int, limit: int) -> Images:
    """The first images of these files and folders, at their size; raises `UserError` where none is whole."""
    names = find_images([str(path) for path in paths])[:limit]
    batches = [images for _, images, _ in read_images(names, view, limit, threads)]
    found = np.concatenate(batches) if batches else np.zeros((0, *view.shape), np.uint8)
    if not len(found):
        raise UserError(f"none of the {len(names)} files of --images is a whole image; give others")
    return found


def split(config: Config, view: Preprocessing, name: str, limit: int) -> tuple[Images, Int[np.ndarray, " n"] | None]:
    """The first images of a split of a run's data set, and their labels; None where they have none."""
    data = dataclasses.replace(open_data(config.data, view.size), preprocessing=view)
    examples = data.split(name)
    indices = np.arange(min(limit, len(examples)))
    fields = [field for field in ("image", "label") if field in examples.fields]
    found, good = examples.read_marked(indices, fields)
    return found["image"][good], found["label"][good] if "label" in found else None
