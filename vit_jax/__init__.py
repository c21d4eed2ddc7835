"""Vision Transformers, and the CNNs they are compared with, in JAX/Flax Linen.

    import vit_jax

    model = vit_jax.create("vit/B16", num_classes=10)  # a Flax Linen module
    trained = vit_jax.load("runs/digits")  # a run, or published weights: hf://google/vit-base-patch16-224
    trained.predict("photos/").labels

`import vit_jax` by itself is instant: JAX is imported by the first call.
"""

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if typing.TYPE_CHECKING:
    from flax import linen as nn

    from vit_jax.run import Trained

__all__ = ["create", "list_models", "load"]


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published models that match a shell pattern: `list_models("vit/*")`."""
    from vit_jax import models

    return models.names(pattern)


def create(name: str, num_classes: int = 0, **fields: Any) -> "nn.Module":
    """A model as a Flax Linen module with random parameters to come: `model.init(rng, images, train=False)`.

    Args:
        name: a name of `list_models()`, or a family such as "vit", whose required fields are then all given.
        num_classes: of its head; 0: no head, the model returns the features that a head would read.
        fields: other fields of the module, such as `dropout=0.1`; `vit_jax.models.fields(name)` lists them.

    Raises:
        UserError: an unknown name or field.
    """
    from vit_jax import models

    return models.create(models.settings(name, num_classes=num_classes, **fields))


def load(address: str | Path, use: str = "", overrides: Sequence[str] = ()) -> "Trained":
    """The trained model at an address, ready to use: the folder of a run, or published weights. See `run.open`."""
    from vit_jax import run

    return run.open(address, use=use, overrides=overrides)


def __dir__() -> list[str]:
    return sorted(__all__)


if not typing.TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        raise AttributeError(
            f"vit_jax has no attribute {name!r}; it has {', '.join(__all__)}, and modules to import, "
            "such as vit_jax.models"
        )
