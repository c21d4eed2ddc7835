"""The workloads: models with their images and batches. Also a configuration file: its argument is a model's name.

python -m vit_jax.main --config benchmarks/workloads.py:vit/B16
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.machine import RESULTS
from vit_jax import config, models
from vit_jax.command import UserError
from vit_jax.config import Config

REPOSITORY = Path(__file__).resolve().parents[1]
CIFAR10 = {"cifar10:vit": "vit", "cifar10:cnn": "cnn"}  # the published student report's, 32 pixels
CIFAR10_IMAGES = 10_000  # of the synthetic data set that the device holds
GPU_BATCH = {"cifar10:vit": 512, "cifar10:cnn": 512, "vit/Ti16": 1024, "vit/S16": 512, "vit/L16": 128}
CPU_BATCH = {"cifar10:vit": 128, "cifar10:cnn": 128, "vit/Ti16": 16}
MODES, DTYPES = ("train", "inference"), ("float32", "bfloat16", "float16")


def get_config(arg: str = "vit/B16") -> ConfigDict:
    """A published model under AdamW with weight decay."""
    c = config.default()
    c.model = models.settings(arg)
    c.optim.lr, c.optim.weight_decay, c.optim.schedule = 1e-3, 0.05, "constant"
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
        """The configuration that a user would train, on synthetic images."""
        if self.model in CIFAR10:
            spec, cache = f"configs/cifar10.py:{CIFAR10[self.model]}", "device"
            data = f"32x32x3/10/{max(CIFAR10_IMAGES, self.batch_size)}"
        else:
            spec, cache = f"benchmarks/workloads.py:{self.model}", "none"
            data = f"{self.image_size}x{self.image_size}x3/1000/{self.batch_size}"
        common = [f"data.name=synthetic/{data}", "data.validation=none", f"data.cache={cache}"]
        common += ["augment.mean=(0.5,)", "augment.std=(0.5,)"]
        common += [f"train.batch_size={self.batch_size}", f"model.dtype={self.dtype}"]
        common += ["model.attention=auto"] if is_vit(self.model) else []
        return config.load(f"{REPOSITORY}/{spec}", [*common, *overrides])


def is_vit(model: str) -> bool:
    """Whether a model is a plain Vision Transformer: it has a textbook twin, and attention kernels to choose from."""
    return model.startswith("vit/") or CIFAR10.get(model) == "vit"


def add_flags(parser: argparse.ArgumentParser, models: str) -> None:
    """The flags that name cases; `cases` reads them."""
    parser.add_argument("--models", default=models, help="cifar10:vit, vit/B16, resnet/50 ... (default: %(default)s)")
    parser.add_argument("--modes", default="train", help="train, inference (default: train)")
    parser.add_argument("--dtypes", default="", help="default: bfloat16 on GPUs, else float32")
    parser.add_argument("--batch-sizes", default="", help="default: one that suits model and device")
    parser.add_argument("--image-size", type=int, default=224, help="pixels, of the models that are not cifar10's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")


def cases(flags: argparse.Namespace, gpu: bool) -> list[Case]:
    """Every combination of the flags' values; raises `UserError` for a value that cannot be measured."""
    names = list_of(flags.models, "--models")
    for name in names:
        if name not in CIFAR10 and name not in models.names():
            known = [*CIFAR10, *models.names("vit/*"), "resnet/50"]
            raise UserError(f"--models: {name!r} is unknown; choose from {', '.join(known)} or models.names()")
    check_positive(flags, "image_size")
    sizes = list_of(flags.batch_sizes, "--batch-sizes") if flags.batch_sizes else [""]
    if flags.batch_sizes and not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(f"--batch-sizes {flags.batch_sizes!r}: expected numbers of images, e.g. 128,256")
    default = GPU_BATCH if gpu else CPU_BATCH
    return [
        Case(name, mode, dtype, int(size or default.get(name, 256 if gpu else 8)), flags.image_size)
        for name in names
        for dtype in list_of(flags.dtypes or ("bfloat16" if gpu else "float32"), "--dtypes", DTYPES)
        for size in sizes
        for mode in list_of(flags.modes, "--modes", MODES)
    ]


def list_of(text: str, flag: str, choices: Sequence[str] = ()) -> list[str]:
    """The values of a flag, comma-separated; each at most once."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    for value in values:
        if choices and value not in choices:
            raise UserError(f"{flag}: {value!r} is unknown; choose from {', '.join(choices)}")
    if not values or len(set(values)) < len(values):
        raise UserError(f"{flag} {text!r}: expected different values, comma-separated")
    return values


def check_positive(flags: argparse.Namespace, *names: str) -> None:
    """Raises `UserError` for a flag that is zero or less."""
    for name in names:
        if getattr(flags, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(flags, name)} is not positive; give a larger number")


def no_overrides(overrides: Sequence[str]) -> None:
    """Raises `UserError` for an override, in a command that reads no configuration."""
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
