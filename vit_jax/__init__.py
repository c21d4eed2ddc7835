"""Vision Transformers, and the CNNs they are compared with, in JAX/Flax Linen.

    import vit_jax

    model = vit_jax.create("vit/B16", num_classes=10)  # a Flax Linen module
    result = vit_jax.train("configs/digits.py", workdir="runs/digits")
    predictor = vit_jax.load("runs/digits")  # a run, or published weights: hf://google/vit-base-patch16-224
    predictor.predict("photos/").labels

`import vit_jax` by itself is instant: JAX is imported by the first call.
"""

import importlib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax import interrupt

if interrupt.is_command(sys.orig_argv):
    interrupt.end_at_once()  # imports take seconds, and Ctrl-C in one is a page of traceback

if typing.TYPE_CHECKING:
    from flax import linen as nn

    from vit_jax.inference import Predictor

__all__ = ["create", "evaluate", "list_models", "list_weights", "load", "train"]


def list_models(pattern: str = "*") -> list[str]:
    """The names of the published models that match a shell pattern: `list_models("vit/*")`."""
    from vit_jax import models

    return models.names(pattern)


def list_weights(pattern: str = "*") -> list[str]:
    """The names of the published weights that match a shell pattern; `load(name)` fetches them."""
    import fnmatch

    from vit_jax import pretrained

    return fnmatch.filter(pretrained.PUBLISHED, pattern)


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


def load(address: str | Path, use: str = "", overrides: Sequence[str] = ()) -> "Predictor":
    """The trained model at an address, ready to use: the folder of a run, or published weights.

    See `vit_jax.inference.load`.
    """
    from vit_jax import inference

    return inference.load(address, use=use, overrides=overrides)


class _Train(types.ModuleType):
    """The package `vit_jax.train`, which can be called."""

    def __call__(
        self, config: Any, workdir: str | Path | None = None, overrides: Sequence[str] = (), console: Any = None
    ) -> Any:
        """Trains, or resumes, the run of a configuration; its result. See `vit_jax.main.start`.

            vit_jax.train("configs/digits.py:arg", workdir="runs/digits", overrides=["train.epochs=3"])

        `config` is a file, or a `ConfigDict`, a nested dict or a `Config`, which need a workdir.
        """
        from vit_jax.main import start

        return start(config, workdir, overrides, console)


class _Evaluate(types.ModuleType):
    """The module `vit_jax.evaluate`, which can be called."""

    def __call__(self, workdir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Exact metrics of a run over a split, its confusion matrix and the accuracy of each class.

        vit_jax.evaluate("runs/digits", overrides=["evaluate.split=test"])
        """
        from vit_jax import config
        from vit_jax.evaluate import evaluate_run
        from vit_jax.workdir import Workdir

        config.check_read(overrides, "evaluate", Workdir(workdir).config(overrides))
        return evaluate_run(Path(workdir), overrides)


class _Package(types.ModuleType):
    """This package. Its modules `train` and `evaluate` are the functions of these names, too: both are public."""

    def __setattr__(self, name: str, value: object) -> None:
        kind = {"train": _Train, "evaluate": _Evaluate}.get(name)
        if kind and isinstance(value, types.ModuleType):  # Python has just imported it
            value.__class__ = kind
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)


if not typing.TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name in ("train", "evaluate"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(
            f"vit_jax has no attribute {name!r}; it has {', '.join(__all__)}, and modules to import, "
            "such as vit_jax.models"
        )
