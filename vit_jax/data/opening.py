"""An opened data set: which split serves what, in which shape its images leave the host, and where they are kept."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jax.sharding import Mesh

from vit_jax import memory
from vit_jax.command import UserError, data_dir
from vit_jax.data.crop import RandomCrop
from vit_jax.data.loader import Loader
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.selection import choose_classes, choose_images
from vit_jax.data.settings import Settings, check
from vit_jax.data.sources import Dataset, Source, open_dataset
from vit_jax.data.split import Split

DEVICE_CACHE_BYTES = 2**30
HOST_CACHE_BYTES = 8 * 2**30  # and a quarter of the memory at most
HELD_OUT = 10  # percent of the training split that validates where a data set has no validation split
MANY_TIMES = 4  # photos with sides so many times those of the model's input do not reach the device as they are


@dataclass(frozen=True)
class Data:
    """An opened data set: its classes, the shape in which images leave the host, and its splits by purpose."""

    settings: Settings
    dataset: Dataset
    preprocessing: Preprocessing
    specs: dict[str, str]  # train, validation (missing without one), test -> TFDS split

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    def size(self, purpose: str) -> int:
        """The number of images of `train`, `validation`, `test` (0 without it), or of a TFDS split."""
        if purpose == "validation" and purpose not in self.specs:
            return 0
        if purpose == "train" and (self.settings.limit or self.settings.images_per_class):
            return len(self._training)
        return self.dataset.size(self.specs.get(purpose, purpose))

    def split(self, purpose: str) -> Split:
        """The images of `train`, `validation`, `test`, or of any split in TFDS syntax."""
        if purpose == "validation" and purpose not in self.specs:
            raise UserError("data.validation='none': there is no validation split to evaluate; choose another split")
        spec = self.specs.get(purpose, purpose)
        source = self._training if purpose == "train" else self.dataset.source(spec)
        allowed, threads = self.settings.max_bad_fraction, self.settings.threads
        return Split(spec, source, self.preprocessing, allowed, threads, self.dataset.fields)

    @cached_property
    def _training(self) -> Source:
        limit, per_class, seed = self.settings.limit, self.settings.images_per_class, self.settings.choice
        source = self.dataset.source(self.specs["train"])
        return choose_images(source, self.class_names, limit=limit, per_class=per_class, seed=seed)

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
        resized = self.dataset.image_shape[:2] != self.preprocessing.size
        on_host = self.settings.crop_on == "host" or (self.settings.crop_on == "auto" and streamed and resized)
        if not (area and on_host):
            return None
        return RandomCrop(size, self.preprocessing.channels, area, aspect, self.preprocessing.interpolation)

    def loader(
        self,
        split: Split,
        mesh: Mesh,
        *,
        on_device: bool = False,
        crop: RandomCrop | None = None,
        alternates: bool = False,
        fields: Sequence[str] = ("image", "label"),
    ) -> Loader:
        """The split's way to the devices, cached as the settings say; on the device itself only if that is allowed.

        Training allows it. Evaluation does not: each split on the device has its own shape, and compiles its own step.
        With `crop`, of `random_crop`, training images are streamed, and cropped on the host. Nothing is decoded before
        `Loader.load`, or the first batch.
        """
        cache = "none" if crop else self.cache(split)
        return Loader(
            split,
            mesh,
            on_device=on_device and cache == "device",
            in_memory=cache != "none",
            threads=self.settings.threads,
            repeats=self.settings.repeats,
            crop=crop,
            alternates=alternates,
            balance=self.settings.balance,
            fields=fields,
        )


def open_data(settings: Settings, default_size: tuple[int, int] = (0, 0)) -> Data:
    """The data set that the settings describe; raises `MissingDataset` or `UserError` where it cannot be read.

    `default_size` (h, w), of the model: what images that differ in size, or are `MANY_TIMES` as large and more, are
    brought to where `image_size` does not say. (0, 0): nothing says it.
    """
    check(settings)
    dataset = open_dataset(settings.name, data_dir(settings.data_dir))
    if (settings.classes or settings.images_per_class or settings.balance) and "label" not in dataset.fields:
        raise UserError(
            f"{dataset.name!r} has no labels: leave out data.classes, data.images_per_class and data.balance"
        )
    if settings.classes:
        dataset = choose_classes(dataset, settings.classes)
    specs = _specs(settings, dataset)
    for spec in specs.values():
        dataset.size(spec)  # raises for a split that does not exist
    if settings.draft and not isinstance(dataset.source(specs["train"]).read(0)["image"], bytes):
        raise UserError(f"data.draft changes nothing: the images of {dataset.name!r} are no files; leave it out")
    return Data(settings, dataset, _preprocessing(settings, dataset, default_size), specs)


def _preprocessing(settings: Settings, dataset: Dataset, default_size: tuple[int, int]) -> Preprocessing:
    *stored, stored_channels = dataset.image_shape
    size = settings.image_size or (tuple(stored) if all(stored) else default_size)
    many = all(side >= MANY_TIMES * wanted > 0 for side, wanted in zip(stored, default_size, strict=True))
    if many and not settings.image_size:  # photos of one camera are no other than mixed ones
        size = default_size
    if 0 in size:
        raise UserError(
            f"the images of {dataset.name!r} differ in size: set the size to bring them to, e.g. data.image_size=(224,)"
        )
    channels, crop_fraction = settings.channels or stored_channels, settings.crop_fraction
    interpolation, draft = settings.interpolation, settings.draft
    return Preprocessing((size[0], size[-1]), settings.resize, channels, crop_fraction, interpolation, draft)


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
    for first, second in itertools.combinations(specs, 2):
        if shared := dataset.overlap(specs[first], specs[second]):
            raise UserError(
                f"{shared} images are both in data.{first}={specs[first]!r} and data.{second}={specs[second]!r}; "
                f"set data.{first} to a split without them"
            )
    return specs
