"""The config group `data`."""

from dataclasses import dataclass
from typing import Literal

from vit_jax.command import UserError
from vit_jax.data.resizing import Interpolation
from vit_jax.setting import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `data`. Splits are written as TFDS does: "train[:90%]", "train+test"."""

    # digits, synthetic/HxWxC/CLASSES/IMAGES, a folder of images, a TFDS name, webdataset/PLACE or hf/PLACE.
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
    # Power by which rare classes come more often in training: 0 as they are, 1 all alike (arXiv:1910.09217, s. 3.2).
    balance: float = 0.0
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
    if not 0 <= settings.balance <= 1:
        raise UserError(f"data.balance={settings.balance} is not in [0, 1]; 0 means off, 1 all classes alike")
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
