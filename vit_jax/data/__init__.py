"""Data sets: opened by name, split, decoded on the host, and batched for the devices.

`open_data(settings)` touches neither a device nor, but for their headers and labels, the images.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from jax.sharding import Mesh

from vit_jax import memory
from vit_jax.command import UserError, data_dir
from vit_jax.data.crop import RandomCrop
from vit_jax.data.feed import Batch, Feed
from vit_jax.data.ops import Interpolation
from vit_jax.data.selection import choose_classes, choose_images
from vit_jax.data.sources import Dataset, MissingDataset, Source, open_dataset
from vit_jax.data.split import Split, View
from vit_jax.setting import setting

__all__ = ["Batch", "Data", "Feed", "MissingDataset", "RandomCrop", "Settings", "Split", "View", "check", "open_data"]

DEVICE_CACHE_BYTES = 2**30
HOST_CACHE_BYTES = 8 * 2**30  # and a quarter of the memory at most
HELD_OUT = 10  # percent of the training split that validates where a data set has no validation split
MANY_TIMES = 4  # photos with sides so many times those of the model's input do not reach the device as they are


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `data`. Splits are written as TFDS does: "train[:90%]", "train+test"."""

    # digits, synthetic/HxWxC/CLASSES/IMAGES, a folder of images, or a TFDS name.
    name: str = setting("digits", read_by="evaluate texture")
    # Of prepared TFDS data sets; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    data_dir: str = setting("", read_by="evaluate texture")
    train: str = setting("", read_by="evaluate texture")  # "": the train split, less what validation takes of it
    # "": the data set's own, else the last 10 % of train; "none": no validation.
    validation: str = setting("", read_by="evaluate texture")
    # "": the test split; without one, the validation split, and validation is taken from train.
    test: str = setting("", read_by="evaluate texture")
    # Only these, by name, labelled in this order; (): all.
    classes: tuple[str, ...] = setting((), read_by="evaluate texture")
    limit: int = setting(0, read_by="train_split")  # training images, chosen at random; 0: all
    # Few-shot: so many training images of each class, chosen at random; 0: all.
    images_per_class: int = setting(0, read_by="train_split")
    # Another number, another random choice of `limit` and `images_per_class`.
    choice: int = setting(0, active_if="data.limit or data.images_per_class", read_by="train_split")
    image_size: tuple[int, ...] = setting((), read_by="weights")  # pixels, on the host; (): as stored
    # crop: shorter side to the size, then the centre.
    resize: Literal["crop", "stretch"] = setting("crop", read_by="weights")
    # Scaled to size / crop_fraction, then the centre is taken; published: often 0.875.
    crop_fraction: float = setting(1.0, read_by="weights")
    interpolation: Interpolation = setting("bilinear", read_by="weights")  # of the resizing to `image_size`
    # JPEG photos many times too large are reduced while they are decoded: faster, a bit different.
    draft: bool = setting(False, read_by="predict")
    channels: int = setting(0, read_by="weights")  # 1: grey; 3: colour, grey images repeated; 0: as stored
    # Where decoded images are kept; none: streamed.
    cache: Literal["auto", "device", "host", "none"] = setting("auto", read_by="evaluate")
    # Where `augment.crop_area` crops. host: the images as stored, while they are decoded for each step; device: what
    # was resized to `image_size`; auto: on the host where training images are streamed and would be resized.
    crop_on: Literal["auto", "host", "device"] = setting("auto", active_if="augment.crop_area")
    repeats: int = 1  # times that a training image comes in a row, each augmented anew; an epoch keeps its length
    threads: int = setting(4, read_by="evaluate texture predict")  # that decode
    # Of a split's images that may be broken, and are then skipped.
    max_bad_fraction: float = setting(0.0, read_by="evaluate texture")


def check(settings: Settings) -> None:
    """Raises `UserError` for values outside their range."""
    if len(settings.image_size) > 2 or any(size < 1 for size in settings.image_size):
        raise UserError(f"data.image_size={settings.image_size} is not one or two positive numbers, e.g. (224,)")
    if not 0 < settings.crop_fraction <= 1:
        raise UserError(f"data.crop_fraction={settings.crop_fraction} is not in (0, 1]")
    if settings.channels not in (0, 1, 3):
        raise UserError(f"data.channels={settings.channels} is not 0 (as stored), 1 (grey) or 3 (colour)")
    if settings.threads < 1:
        raise UserError(f"data.threads={settings.threads} is not positive")
    if settings.repeats < 1:
        raise UserError(f"data.repeats={settings.repeats} is not positive; 1 shows each image once in an epoch")
    if settings.crop_on == "host" and settings.cache in ("device", "host"):
        raise UserError(
            f"data.crop_on='host' crops stored images for each step, but data.cache={settings.cache!r} keeps decoded "
            "ones; set data.cache=none or auto, or data.crop_on=device"
        )
    for field in ("limit", "images_per_class", "choice"):
        if getattr(settings, field) < 0:
            raise UserError(f"data.{field}={getattr(settings, field)} is negative")
    if settings.limit and settings.images_per_class:
        raise UserError("data.limit and data.images_per_class are both given; set one of them to 0")
    if not 0 <= settings.max_bad_fraction < 1:
        raise UserError(f"data.max_bad_fraction={settings.max_bad_fraction} is not in [0, 1)")


@dataclass(frozen=True)
class Data:
    """An opened data set: its classes, the shape in which images leave the host, and its splits by purpose."""

    settings: Settings
    dataset: Dataset
    view: View
    specs: dict[str, str]  # train, validation (missing without one), test -> TFDS split

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    def size(self, purpose: str) -> int:
        """The number of images of `train`, `validation`, `test` (0 without it), or of a TFDS split."""
        if purpose == "validation" and purpose not in self.specs:
            return 0
        chosen = self.settings.limit or self.settings.images_per_class
        if purpose == "train" and chosen:
            return len(self._training)
        return self.dataset.size(self.specs.get(purpose, purpose))

    def split(self, purpose: str) -> Split:
        """The images of `train`, `validation`, `test`, or of any split in TFDS syntax."""
        if purpose == "validation" and purpose not in self.specs:
            raise UserError("data.validation='none': there is no validation split to evaluate; choose another split")
        spec = self.specs.get(purpose, purpose)
        source = self._training if purpose == "train" else self.dataset.source(spec)
        return Split(spec, source, self.view, self.settings.max_bad_fraction, self.settings.threads)

    @cached_property
    def _training(self) -> Source:
        settings, spec = self.settings, self.specs["train"]
        return choose_images(
            self.dataset.source(spec),
            self.class_names,
            limit=settings.limit,
            per_class=settings.images_per_class,
            seed=settings.choice,
        )

    def cache(self, split: Split) -> str:
        """Where this split is kept: `device`, `host` or `none`."""
        if self.settings.cache != "auto":
            return self.settings.cache
        if split.num_bytes <= DEVICE_CACHE_BYTES:
            return "device"
        return "host" if split.num_bytes <= min(HOST_CACHE_BYTES, memory.installed() // 4) else "none"

    def random_crop(
        self, *, size: tuple[int, int], area: tuple[float, ...], aspect: tuple[float, float]
    ) -> RandomCrop | None:
        """How the host crops training images, to the model's `size` (h, w); None where the device does, or nothing.

        `area`, () = no crop, and `aspect` are `crop_area` and `crop_aspect` of `augment.Settings`. Where the host
        crops, the device must neither crop nor resize.
        """
        streamed = self.cache(self.split("train")) == "none"
        resized = self.dataset.image_shape[:2] != self.view.size
        on_host = self.settings.crop_on == "host" or (self.settings.crop_on == "auto" and streamed and resized)
        if not (area and on_host):
            return None
        return RandomCrop(size, self.view.channels, area, aspect, self.view.interpolation)

    def feed(self, split: Split, mesh: Mesh, *, on_device: bool = False, crop: RandomCrop | None = None) -> Feed:
        """The split's way to the devices, cached as the settings say; on the device itself only if that is allowed.

        Training allows it. Evaluation does not: each split on the device has its own shape, and compiles its own step.
        With `crop`, of `random_crop`, training images are streamed, and cropped on the host.
        """
        cache = "none" if crop else self.cache(split)
        if cache != "none":
            split.load()
        settings = self.settings
        return Feed(
            split,
            mesh,
            on_device=on_device and cache == "device",
            threads=settings.threads,
            repeats=settings.repeats,
            crop=crop,
        )


def open_data(settings: Settings, default_size: tuple[int, int] = (0, 0)) -> Data:
    """The data set that the settings describe; raises `MissingDataset` or `UserError` where it cannot be read.

    `default_size` (h, w), of the model: what images that differ in size, or are `MANY_TIMES` as large and more, are
    brought to where `image_size` does not say. (0, 0): nothing says it.
    """
    check(settings)
    dataset = open_dataset(settings.name, data_dir(settings.data_dir))
    if settings.classes:
        dataset = choose_classes(dataset, settings.classes)
    specs = _specs(settings, dataset)
    for spec in specs.values():
        dataset.size(spec)  # raises for a split that does not exist
    if settings.draft and not isinstance(dataset.source(specs["train"]).read(0)[0], bytes):
        raise UserError(f"data.draft changes nothing: the images of {dataset.name!r} are no files; leave it out")
    return Data(settings, dataset, _view(settings, dataset, default_size), specs)


def _view(settings: Settings, dataset: Dataset, default_size: tuple[int, int]) -> View:
    *stored, stored_channels = dataset.image_shape
    size = settings.image_size or (tuple(stored) if all(stored) else default_size)
    many = all(side >= MANY_TIMES * wanted > 0 for side, wanted in zip(stored, default_size, strict=True))
    if many and not settings.image_size:  # photos of one camera are no other than mixed ones
        size = default_size
    if 0 in size:
        raise UserError(
            f"the images of {dataset.name!r} differ in size: set the size to bring them to, e.g. data.image_size=(224,)"
        )
    channels = settings.channels or stored_channels
    return View(
        (size[0], size[-1]),
        settings.resize,
        channels,
        settings.crop_fraction,
        settings.interpolation,
        settings.draft,
    )


def _specs(settings: Settings, dataset: Dataset) -> dict[str, str]:
    """The splits by purpose; test images never train or validate, and validation images never train."""
    splits = dataset.splits
    if not (settings.test or "test" in splits or "validation" in splits):
        raise UserError(
            f"{dataset.name!r} has no test split; divide train, e.g. data.train='train[:80%]', "
            "data.validation='train[80%:90%]', data.test='train[90%:]'"
        )
    test = settings.test or ("test" if "test" in splits else "validation")
    validation, train = settings.validation, settings.train
    if not validation:
        own = "validation" in splits and "validation" not in test
        validation = "validation" if own else f"train[{100 - HELD_OUT}%:]"
        train = train or ("train" if own else f"train[:{100 - HELD_OUT}%]")
    specs = {"train": train or "train", "validation": validation, "test": test}
    if validation == "none":
        del specs["validation"]
    purposes = list(specs)
    for i, first in enumerate(purposes):
        for second in purposes[i + 1 :]:
            shared = dataset.overlap(specs[first], specs[second])
            if shared:
                raise UserError(
                    f"{shared} images are both in data.{first}={specs[first]!r} and data.{second}={specs[second]!r}; "
                    f"set data.{first} to a split without them"
                )
    return specs
