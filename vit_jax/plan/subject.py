"""What is planned: a configuration's real train step on some machine, and the shapes that it takes.

Nothing of the data set is read but its sizes; where it is not at hand, published sizes stand in, and are named.
"""

import dataclasses
from dataclasses import dataclass

from rich.console import Console

from vit_jax import tasks
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, MissingDataset, open_data
from vit_jax.plan.topology import Machine
from vit_jax.train import Experiment, Inputs, set_up
from vit_jax.train.attention import kernel_choice
from vit_jax.train.inputs import check_data, with_short_warmup
from vit_jax.train.start import default_size

# Height, width (0: the images differ in size), channels, classes, training images, as their authors published them.
DATA_SETS = {
    "mnist": (28, 28, 1, 10, 60_000),
    "fashion_mnist": (28, 28, 1, 10, 60_000),
    "cifar10": (32, 32, 3, 10, 50_000),
    "cifar100": (32, 32, 3, 100, 50_000),
    "camvid": (360, 480, 3, 11, 367),
    "imagenet2012": (0, 0, 3, 1000, 1_281_167),
    "imagenet21k": (0, 0, 3, 21_843, 14_197_122),
    "jft_3b": (0, 0, 3, 29_593, 3_000_000_000),  # Zhai et al. 2022, arXiv:2106.04560: "nearly 3 billion"
}
DEFAULT_SIZE = (224, 224)


@dataclass(frozen=True)
class Planned:
    """A configuration and its data set, as far as the step's shapes depend on it."""

    inputs: Inputs
    assumed: tuple[str, ...]  # what was not looked up but taken as published, or left out


@dataclass(frozen=True)
class Subject:
    """The experiment on a machine that need not be there."""

    experiment: Experiment
    machine: Machine


def prepare(given: Config, *, images: int = 0, classes: int = 0) -> Planned:
    """The configuration with its data set's sizes; `images` to train with and `classes` replace what would be found."""
    data, assumed = _open(given, images, classes)
    stand_in = bool(assumed)
    if given.train.image_sizes:
        raise UserError(
            "a plan is of images of one size, and train.image_sizes has several; leave them out, and plan each size as "
            "data.image_size"
        )
    config = dataclasses.replace(given, data=data.settings)
    check_data(config, data)
    config = with_short_warmup(config, data, Console(quiet=True))
    if given.distill.teacher:
        assumed.append("the teacher is left out: its forward pass and its parameters come on top")
    return Planned(Inputs(config, data, crops_on_host=stand_in and _crops_on_host(config, data)), tuple(assumed))


def _open(given: Config, images: int, classes: int) -> tuple[Data, list[str]]:
    """The data set itself, or a synthetic one of the same sizes."""
    settings = given.data
    default = default_size(given, None) if given.augment.resize else DEFAULT_SIZE
    known = DATA_SETS.get(settings.name)
    if not (images or classes):
        try:
            return open_data(settings, default), []
        except MissingDataset as missing:
            if known is None:
                raise UserError(f"{missing}; or plan without it: --images N --classes K") from missing
    height, width, channels, known_classes, known_images = known or (0, 0, settings.channels or 3, 0, 0)
    images, classes = images or known_images, len(settings.classes) or classes or known_classes
    if not (images and classes):
        lacking = "--images" if classes else "--classes"
        raise UserError(f"data set {settings.name!r} is not one whose published size is known: give {lacking} too")
    size = settings.image_size or (height, width)
    height, width = (size[0], size[-1]) if all(size) else default
    splits = {f: v for f in ("train", "validation", "test") if "validation" not in (v := getattr(settings, f))}
    stand_in = dataclasses.replace(
        settings, name=f"synthetic/{height}x{width}x{channels}/{classes}/{images}", classes=(), **splits
    )
    text = f"data set {settings.name}: {images:,} images of {classes:,} classes, {height}x{width}x{channels}"
    opened = open_data(stand_in)
    fields = ("image", *tasks.chosen(given.task, given.distill).targets)  # masks as good as labels: none is read
    opened = dataclasses.replace(opened, dataset=dataclasses.replace(opened.dataset, fields=fields))
    return opened, [f"{text} (not looked at)"]


def build(planned: Planned, machine: Machine) -> Subject:
    """The run on the machine's mesh; touches no device, and compiles only to choose where `model.remat` is auto."""
    experiment = set_up(planned.inputs, devices=machine.devices, described=True, device_memory=machine.memory)
    return Subject(experiment, machine)


def untimed(subject: Subject) -> tuple[str, ...]:
    """What a run would find out by timing its devices, as an assumption."""
    experiment = subject.experiment
    _, kernels = kernel_choice(experiment.config, experiment.mesh, experiment.task, experiment.loader)
    if not kernels:
        return ()
    return (f"attention is plain: a run takes {' or '.join(kernels)} if that is faster (model.attention to plan it)",)


def _crops_on_host(config: Config, data: Data) -> bool:
    """Whether the host crops a data set that is not here, as `Data.random_crop` decides: its photos differ in size."""
    streamed = data.cache(data.split("train")) == "none"
    return streamed and bool(config.augment.crop_area) and config.data.crop_on == "auto"
