"""Images in a NumPy file with the arrays x_train, y_train, x_test and y_test: data.name=npz/FILE."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_jax import data


@dataclass(frozen=True)
class NumpySplit:
    path: Path
    images: np.ndarray  # uint8 [n h w c]
    classes: np.ndarray  # [n]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> data.Example:
        return {"image": self.images[index], "label": int(self.classes[index])}

    def labels(self) -> np.ndarray:  # may be left out: the labels are then read one by one
        return self.classes

    def describe(self, index: int) -> str:
        return f"{self.path}, image {index}"


def open_npz(name: str, data_dir: Path) -> data.Dataset:
    path = data_dir / f"{name.removeprefix('npz/')}.npz"
    if not path.is_file():
        raise data.MissingDataset(f"data set {name!r}: there is no {path}")
    arrays = dict(np.load(path))
    splits = {split: NumpySplit(path, arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test")}
    class_names = tuple(str(label) for label in range(arrays["y_train"].max() + 1))
    sizes = {split: len(source) for split, source in splits.items()}
    return data.Dataset(name, class_names, arrays["x_train"].shape[1:], sizes, splits.__getitem__)


data.register("npz", open_npz)
