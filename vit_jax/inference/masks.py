"""A trained segmentation, ready to use: the class of each pixel of images of any size."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from vit_jax import models, tasks
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Preprocessing, decoding
from vit_jax.data.resizing import resize_mask
from vit_jax.inference.opening import load_variables
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir


@dataclass(frozen=True)
class Segmented:
    """One image, and what it was taken for."""

    name: str  # of its file
    image: UInt8[np.ndarray, "h w c"]  # upright, as it is
    mask: UInt8[np.ndarray, "h w"]  # the class of each pixel


@dataclass(frozen=True)
class MaskPredictor:
    """A trained segmentation. Images are stretched to the size that the run was evaluated at, masks back to theirs."""

    task: Segmentation
    variables: PyTree
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    step: int  # of training that the variables are from

    @cached_property
    def forward(self) -> Any:
        """`(variables, images uint8 [n h w c]) -> masks uint8 [n h w]`, compiled."""
        return jax.jit(lambda v, images: self.task.predict(v, images).argmax(axis=-1).astype(jnp.uint8))

    def predict(
        self, images: Sequence[UInt8[np.ndarray, "_ _ _"]], batch_size: int = 0
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """The mask of each image, at the image's size; fewer images than `batch_size` are padded, to compile once."""
        seen = np.stack([self.preprocessing(image) for image in images])
        missing = max(0, batch_size - len(images))
        masks = np.asarray(self.forward(self.variables, np.pad(seen, ((0, missing), (0, 0), (0, 0), (0, 0)))))
        found = zip(masks[: len(images)], images, strict=True)
        return [resize_mask(mask, image.shape[:2], "stretch") for mask, image in found]

    def predict_files(self, files: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Segmented], dict[str, str]]]:
        """A batch of files at a time, and what is wrong with those that were left out."""
        batch_size = min(batch_size, len(files))
        for start in range(0, len(files), batch_size):
            images, broken = dict[str, np.ndarray](), dict[str, str]()
            for path in files[start : start + batch_size]:
                try:
                    images[str(path)] = decoding.decode(path.read_bytes(), self.preprocessing.channels)
                except (OSError, ValueError) as fault:
                    broken[str(path)] = str(fault)
            masks = self.predict(list(images.values()), batch_size) if images else []
            found = zip(images.items(), masks, strict=True)
            yield [Segmented(name, image, mask) for (name, image), mask in found], broken


def predicts_masks(given: Config) -> bool:
    """Whether a run of this configuration learns masks."""
    return issubclass(tasks.chosen(given.task, given.distill), Segmentation)


def load_masks(address: str | Path | Workdir, *, overrides: Sequence[str] = ()) -> MaskPredictor:
    """The segmentation that a run has learned; raises `UserError` for a run of another task."""
    workdir = Workdir(address)
    given = workdir.config(overrides)
    if not predicts_masks(given):
        raise UserError(
            f"{workdir} holds a run of task {given.task['name']!r}, not of 'segmentation'; use `vit_jax.load`"
        )
    view, filled = workdir.preprocessing(given.augment)
    prepared = dataclasses.replace(given, augment=filled, model={**given.model, "num_classes": 0})
    shape, names = input_shape(filled, view.shape), workdir.class_names()
    task = tasks.create(given.task, tasks.Parts(models.create(prepared.model), shape, names, filled, filled))
    assert isinstance(task, Segmentation)
    step, variables = load_variables(workdir, task.module, shape, prepared)
    stretched = dataclasses.replace(view, resize="stretch", crop_fraction=1.0, draft=False)
    return MaskPredictor(task, variables, names, stretched, step)
