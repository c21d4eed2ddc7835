"""What is measured: models with their images and batches. Also a configuration file: its argument is a model's name.

python -m vit_jax.main --config benchmarks/workloads.py:vit/B16
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax import config, models
from vit_jax.command import Parser, UserError
from vit_jax.config import Config

REPOSITORY = Path(__file__).resolve().parents[1]
CIFAR10 = {"cifar10:vit": "vit", "cifar10:cnn": "cnn"}  # the published student report's, 32 pixels
CIFAR10_IMAGES = 10_000  # of the synthetic data set that the device holds
GPU_BATCH = {"cifar10:vit": 512, "cifar10:cnn": 512, "vit/Ti16": 1024, "vit/S16": 512, "vit/L16": 128}
CPU_BATCH = {"cifar10:vit": 128, "cifar10:cnn": 128, "vit/Ti16": 16}
DEFAULT_MODELS = ("cifar10:vit", "cifar10:cnn", "vit/Ti16", "vit/S16", "vit/B16", "vit/L16", "resnet/50")


def get_config(arg: str = "vit/B16") -> ConfigDict:
    """A published model under AdamW with weight decay."""
    c = config.default()
    c.model = models.settings(arg)
    c.optim.lr = 1e-3
    c.optim.schedule = "constant"
    c.optim.weight_decay = 0.05
    return c


@dataclass(frozen=True)
class Case:
    """One thing to measure, whoever computes it."""

    model: str
    mode: str  # train, inference
    dtype: str
    batch_size: int
    image_size: int = 224  # of the models that are no configuration of their own

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration: the one that a user would train, on synthetic images."""
        cifar10 = self.model in CIFAR10
        file = "configs/cifar10.py" if cifar10 else "benchmarks/workloads.py"
        size, classes = (32, 10) if cifar10 else (self.image_size, 1000)
        images = max(CIFAR10_IMAGES, self.batch_size) if cifar10 else self.batch_size
        common = [
            f"data.name=synthetic/{size}x{size}x3/{classes}/{images}",
            "data.validation=none",
            f"data.cache={'device' if cifar10 else 'none'}",
            "augment.mean=(0.5,)",
            "augment.std=(0.5,)",
            f"train.batch_size={self.batch_size}",
            f"model.dtype={self.dtype}",
            *(["model.attention=auto"] if is_vit(self.model) else []),
        ]
        return config.load(f"{REPOSITORY / file}:{CIFAR10.get(self.model, self.model)}", [*common, *overrides])


def is_vit(model: str) -> bool:
    """Whether a model is a plain Vision Transformer: it has a twin in the textbook, and attention to choose."""
    return model.startswith("vit/") or CIFAR10.get(model) == "vit"


def check_model(name: str) -> None:
    """Raises `UserError` for a model that cannot be measured."""
    if name not in CIFAR10 and name not in models.names():
        known = [*CIFAR10, *models.names("vit/*"), "resnet/50"]
        raise UserError(f"--models: {name!r} is unknown; choose from {', '.join(known)} or another of models.names()")


def default_batch(model: str, gpu: bool) -> int:
    """The batch that suits a device."""
    return GPU_BATCH.get(model, 256) if gpu else CPU_BATCH.get(model, 8)


def add_case(parser: Parser, model: str) -> None:
    """The flags of commands that look at one training step: see `training_case`."""
    parser.add_argument("--model", default=model)
    parser.add_argument("--dtype", default="", help="default: bfloat16 on GPUs, else float32")
    parser.add_argument("--batch-size", type=int, default=0, help="default: one that suits model and device")
    parser.add_argument("--image-size", type=int, default=224, help="pixels, of the models that are not cifar10's")


def training_case(flags: Any, gpu: bool) -> Case:
    """The training step that the flags name; raises `UserError` for one that cannot be."""
    check_model(flags.model)
    if flags.batch_size < 0 or flags.image_size < 1:
        raise UserError(
            f"--batch-size {flags.batch_size}, --image-size {flags.image_size}: expected positive numbers (a batch of "
            "0 is the default)"
        )
    dtype = flags.dtype or ("bfloat16" if gpu else "float32")
    return Case(flags.model, "train", dtype, flags.batch_size or default_batch(flags.model, gpu), flags.image_size)
