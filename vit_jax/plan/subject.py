"""What is planned: a configuration's real train step on some machine, and the shapes that it takes.

Nothing of the data set is read but its sizes; where it is not at hand, published sizes stand in, and are named.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import run, sharding
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, MissingDataset, RandomCrop, open_data
from vit_jax.plan.topology import Machine
from vit_jax.run import Run

# Height, width (0: the images differ in size), channels, classes, training images, as their authors published them.
DATA_SETS = {
    "mnist": (28, 28, 1, 10, 60_000),
    "fashion_mnist": (28, 28, 1, 10, 60_000),
    "cifar10": (32, 32, 3, 10, 50_000),
    "cifar100": (32, 32, 3, 100, 50_000),
    "imagenet2012": (0, 0, 3, 1000, 1_281_167),
    "imagenet21k": (0, 0, 3, 21_843, 14_197_122),
    "jft_3b": (0, 0, 3, 29_593, 3_000_000_000),  # Zhai et al. 2022, arXiv:2106.04560: "nearly 3 billion"
}
DEFAULT_SIZE = (224, 224)


@dataclass(frozen=True)
class Given:
    """A configuration and its data set, as far as the step's shapes depend on it."""

    config: Config  # prepared
    data: Data
    assumed: tuple[str, ...]  # what was not looked up but taken as published, or left out
    stand_in: bool  # the data set is not here: synthetic images of its sizes are in its place


@dataclass(frozen=True)
class Subject:
    """The train step on a machine, and the shapes of its arguments (state, batch, frozen)."""

    run: Run
    machine: Machine
    arguments: tuple[Any, Any, Any]


def prepare(given: Config, *, images: int = 0, classes: int = 0) -> Given:
    """The configuration with its data set's sizes; `images` to train with and `classes` replace what would be found."""
    data, assumed = _open(given, images, classes)
    stand_in = bool(assumed)
    view, channels = given.augment, data.preprocessing.channels
    if not view.mean:  # any will do: the work is the same
        view = dataclasses.replace(view, mean=(0.5,) * channels, std=(0.5,) * channels)
    given = dataclasses.replace(given, augment=view, data=data.settings)
    run.check_data(given, data)
    if given.distill.teacher:
        assumed.append("the teacher is left out: its forward pass and its parameters come on top")
    return Given(run.prepare(given, data, data.split("train")), data, tuple(assumed), stand_in)


def _open(given: Config, images: int, classes: int) -> tuple[Data, list[str]]:
    """The data set itself, or a synthetic one of the same sizes."""
    settings = given.data
    default = run.default_size(given, None) if given.augment.resize else DEFAULT_SIZE
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
    return open_data(stand_in), [f"{text} (not looked at)"]


def build(given: Given, machine: Machine) -> Subject:
    """The run on the machine's mesh; touches no device, and compiles only to choose where `model.remat` is auto."""
    train = given.data.split("train")
    mesh = sharding.make_mesh(given.config.mesh, machine.devices)
    n, shape, cropped = given.config.train.batch_size, given.data.preprocessing.shape, _cropped(given)
    shown = run.input_shape(given.config, shape) if cropped else shape
    crop = RandomCrop(shown[:2], shown[2], (1.0, 1.0), (1.0, 1.0)) if cropped else None
    loader = given.data.loader(train, mesh, on_device=True, crop=crop)
    length = jax.ShapeDtypeStruct((), jnp.int32)  # read where `train.seconds` decides
    batch, frozen = loader.spec(n), {**loader.constants_spec(), "total_steps": length}

    def build(config: Config) -> Run:
        return run.build(config, mesh, image_shape=shape, train_images=len(train), cropped=cropped)

    built = run.fitting(given.config, build, batch, frozen, machine.memory)
    return Subject(built, machine, (built.abstract_state, batch, frozen))


def untimed(planned: Subject) -> tuple[str, ...]:
    """What a run would find out by timing its devices, as an assumption."""
    config = planned.run.config
    _, kernels = run.kernel_choice(config, planned.run.mesh, run.input_shape(config, planned.run.image_shape))
    if not kernels:
        return ()
    return (f"attention is plain: a run takes {' or '.join(kernels)} if that is faster (model.attention to plan it)",)


def _cropped(given: Given) -> bool:
    """Whether the host crops, as `Data.random_crop` decides; photos of a data set that is not here differ in size."""
    if run.host_crop(given.config, given.data) is not None:
        return True
    streamed = given.data.cache(given.data.split("train")) == "none"
    return given.stand_in and streamed and bool(given.config.augment.crop_area) and given.config.data.crop_on == "auto"
