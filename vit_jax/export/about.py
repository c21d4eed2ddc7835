"""What travels with an exported model: its classes, and how an image becomes its input (`*.preprocessing.json`)."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_jax import augment
from vit_jax.command import UserError
from vit_jax.data import Preprocessing


@dataclass(frozen=True)
class About:
    """What the user of an exported model must know."""

    model: str
    step: int  # of training; 0 for published weights
    output: str  # "logits", or "features" of a model without a head
    class_names: tuple[str, ...]  # by label; () for features
    loss: str  # of the training, which says how logits become probabilities: "softmax", "sigmoid" ...; "": none
    with_preprocessing: bool  # the graph takes uint8 images of `view`; else float32 ones, resized and normalised
    input_shape: tuple[int, int, int]  # h, w, c of the graph's images
    view: Preprocessing  # how a file becomes an image uint8
    # How that becomes the model's input: resized to so many pixels, () as it is, divided by 255, less `mean`, by `std`.
    resize: tuple[int, ...]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def dtype(self) -> str:
        return "uint8" if self.with_preprocessing else "float32"

    @property
    def settings(self) -> augment.Settings:
        """How an image uint8 becomes the model's input, as evaluation in training does it."""
        inputs: dict[str, Any] = {name: getattr(self, name) for name in ("resize", "interpolation", "mean", "std")}
        return augment.Settings(**inputs)

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "dtype": self.dtype}, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str, where: Path | str) -> About:
    """The inverse of `to_json`; raises `UserError`, which names `where`."""
    try:
        stored: dict[str, Any] = json.loads(text)
        fields = {f.name for f in dataclasses.fields(About)}
        given = {name: tuple_of(value) for name, value in stored.items() if name in fields}
        view = {name: tuple_of(value) for name, value in stored["view"].items()}
        return About(**{**given, "view": Preprocessing(**view)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} does not describe an exported model ({error!r}); export it again") from error


def side_file(file: Path) -> Path:
    """The description beside an exported file: `x.onnx.preprocessing.json` of `x.onnx`."""
    return file.with_name(f"{file.name}.preprocessing.json")


def tuple_of(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(tuple_of, value)) if isinstance(value, list) else value
