"""A trained model, ready to use."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from vit_jax import models, step
from vit_jax.checkpoint import Checkpoints, Damaged, restore_variables
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import View
from vit_jax.run.build import input_shape
from vit_jax.run.folder import CHECKPOINTS, LABELS, read_config, read_preprocessing
from vit_jax.trees import PyTree


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to use."""

    config: Config  # prepared
    model: nn.Module
    variables: Mapping[str, PyTree]
    class_names: tuple[str, ...]
    view: View  # encoded image -> uint8 [h w c], on the host
    step: int

    @cached_property
    def forward(self) -> Callable[[PyTree, Any], jax.Array]:
        """`(variables, images uint8 [n h w c]) -> logits [n k]`, compiled."""
        return jax.jit(step.make_forward(self.model, self.config.augment))

    def logits(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Logits [n k] float32 of images [n h w c] uint8 at the size of `view`; any n."""
        if images.shape[1:] != self.view.shape or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.dtype}{list(images.shape)}, expected uint8{['n', *self.view.shape]}; "
                "bring them to that shape with `view`"
            )
        return np.concatenate(list(self._logits(images, batch_size)) or [np.zeros((0, len(self.class_names)))])

    def _logits(self, images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        size = min(batch_size, len(images))
        for start in range(0, len(images), size or 1):
            part = images[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
            yield np.asarray(self.forward(self.variables, padded))[: len(part)]


def open(workdir: Path, *, use: str = "", overrides: tuple[str, ...] | list[str] = ()) -> Trained:
    """The model of a run's last or best checkpoint (`use`; "": as its configuration says)."""
    given = read_config(workdir, overrides)
    class_names = tuple(json.loads((workdir / LABELS).read_text()))
    view, filled = read_preprocessing(workdir, given.augment)
    model_fields = {**given.model, "num_classes": len(class_names)}
    prepared = dataclasses.replace(given, model=model_fields, augment=filled)
    model = models.create(model_fields)
    abstract = jax.eval_shape(lambda: step.init_variables(model, 0, input_shape(prepared, view.shape)))
    at, variables = _read_variables(workdir / CHECKPOINTS, abstract, use or given.evaluate.use, prepared)
    return Trained(prepared, model, variables, class_names, view, at)


def _read_variables(directory: Path, abstract: PyTree, use: str, prepared: Config) -> tuple[int, PyTree]:
    """The variables of the best or the newest checkpoint that is not damaged, and its step."""
    checkpoints = Checkpoints(directory, read_only=True)
    steps = checkpoints.steps()
    best = checkpoints.best_step() if use == "best" else None
    part = "ema" if prepared.optim.ema_decay else ""
    for at in ([best] if best is not None else []) + steps[::-1]:
        try:
            return at, restore_variables(directory, at, abstract, part)
        except Damaged as damage:
            logging.getLogger(__name__).warning("checkpoint %s is damaged (%s): trying another", at, damage)
    raise UserError(f"{directory} holds no usable checkpoint (found steps {steps}); train the run first")
