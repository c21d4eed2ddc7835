"""What a server needs of a model, of whichever kind: a run, published weights, an exported file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vit_jax import inference, losses
from vit_jax.command import UserError
from vit_jax.data import Preprocessing
from vit_jax.explain import methods as explain
from vit_jax.explain.drawing import scaled
from vit_jax.export import open_exported
from vit_jax.inference import Predictor

# What shows where a model looked; those that a model does not have are left out.
METHODS = ("gradient_rollout", "grad_cam", "rollout", "occlusion", "integrated_gradients")
Explain = Callable[[UInt8[np.ndarray, "n h w c"], str, int], Float[np.ndarray, "n _ _"]]


@dataclass(frozen=True)
class Served:
    """A model that classifies images."""

    name: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing  # a file's bytes -> uint8 [h w c]
    probabilities: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n k"]]
    methods: tuple[str, ...] = ()  # of `explain`
    explain: Explain | None = field(default=None)  # heat of images, a method, a class's number: at most 1

    def warm_up(self) -> None:
        """Compiles all methods, so that no request waits for it while it keeps the device."""
        image = np.zeros((1, *self.preprocessing.shape), np.uint8)
        if self.explain is not None:
            for method in self.methods:
                self.explain(image, method, 0)


def open_run(address: str | Path, overrides: Sequence[str] = ()) -> Served:
    """A run, or published weights."""
    predictor = inference.load(address, overrides=overrides)
    probabilities = _probabilities(predictor.class_names, predictor.config.task.get("loss", ""), address)
    names, heat = _explanations(predictor)
    return Served(
        str(predictor.config.model["name"]),
        predictor.class_names,
        predictor.preprocessing,
        lambda images: probabilities(predictor.logits(images, len(images))),
        names,
        heat,
    )


def open_file(path: Path) -> Served:
    """An exported model; it has no gradients, so that it cannot show where it looked."""
    exported = open_exported(path)
    about = exported.about
    if about.class_names and about.output != "logits":
        raise UserError(f"{path} gives {about.output}, not logits; serve a model that classifies images")
    probabilities = _probabilities(about.class_names, about.loss, path)
    found = exported(np.zeros((1, *about.view.shape), np.uint8)).shape
    if found != (1, len(about.class_names)):
        raise UserError(f"{path} gives {list(found)} numbers for an image; serve a model that gives each class one")
    return Served(about.model, about.class_names, about.view, lambda images: probabilities(exported(images)))


def _probabilities(class_names: Sequence[str], loss: str, address: str | Path) -> Callable[..., np.ndarray]:
    """How logits become probabilities; raises `UserError` for a model that does not classify images."""
    if not class_names:
        raise UserError(f"{address} has no head, so there is nothing to predict; serve a model that has classes")
    if loss not in losses.LOSSES:
        known = ", ".join(losses.LOSSES)
        raise UserError(
            f"{address} was trained with the loss {loss or 'none'!r}, not {known}: its outputs are no probabilities of "
            "classes; serve a model that classifies images"
        )
    return losses.LOSSES[loss].probabilities


def _explanations(predictor: Predictor) -> tuple[tuple[str, ...], Explain]:
    """The methods that apply to the model, and what computes them."""
    names = tuple(name for name in METHODS if not explain.obstacle(explain.METHODS[name], predictor))

    def heat(images: UInt8[np.ndarray, "n h w c"], method: str, target: int) -> Float[np.ndarray, "n _ _"]:
        return scaled(explain.explain(predictor, images, method, target=target))

    return names, heat
