"""The config group `augment`: what may happen to a training image, and the ranges of its fields."""

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vit_jax.command import UserError
from vit_jax.setting import setting

Fill = Literal["constant", "nearest", "reflect"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
ErasingFill = Literal["zero", "noise"]
Policy = Literal[
    "none", "randaugment", "randaugment_tf", "autoaugment_imagenet", "autoaugment_cifar10", "trivialaugment"
]

RANDAUGMENT = "augment.policy=randaugment or augment.policy=randaugment_tf"
LEAST, MOST = math.ulp(0.0), sys.float_info.max  # above 0, and below infinity
LARGEST_MAGNITUDE = 30.0  # of RandAugment: as far as its paper goes (arXiv:1909.13719)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The config group `augment`; the defaults change nothing. The operations run in the order of the fields."""

    # Height and width of the model's input in pixels, (size,) for a square; () = as the data.
    resize: tuple[int, ...] = ()
    # Of `resize` and of `crop_area`; bilinear and bicubic (a = -0.5) smooth before they shrink, like Pillow.
    interpolation: Interpolation = setting("bilinear", active_if="augment.resize or augment.crop_area or init.weights")
    # Smallest and largest fraction of the area that a random crop keeps, above 0 to 1, before it is resized to the
    # model's input; () = off. (0.08, 1.0) is the usual range (Szegedy et al. 2014, arXiv:1409.4842, s. 6).
    crop_area: tuple[float, ...] = ()
    # Smallest and largest ratio of that crop's width to its height, above 0; uniform in its logarithm.
    crop_aspect: tuple[float, float] = setting((3 / 4, 4 / 3), active_if="augment.crop_area")
    # Pixels added on each side before a random crop of the old size (He et al. 2015, arXiv:1512.03385, s. 4.2).
    crop_padding: int = 0
    # Probability of a horizontal flip, 0 to 1.
    flip: float = 0.0
    # Instead: a random half of the images is mirrored in even epochs, the others in odd ones (arXiv:2404.00498).
    alternate_flip: bool = False
    # Largest rotation, in degrees, 0 to 180; uniform in both directions.
    rotation: float = 0.0
    # Visible height and width as a factor, uniform in 1 +- zoom (below 1 magnifies), each 0 to below 1. One number: one
    # draw for both, which keeps the aspect; two, for height and width: independent draws, as in Keras; () = off.
    zoom: tuple[float, ...] = ()
    # Largest shift, as a fraction of height and width, 0 to 1; drawn apart; one number serves both; () = off.
    translation: tuple[float, ...] = ()
    # Largest horizontal shear, in degrees, 0 to below 90; uniform in both directions.
    shear: float = 0.0
    # What crop and warp find beyond the edge: black, the edge pixel, or the mirrored image (c b a | a b c | c b a).
    fill: Fill = setting(
        "constant",
        active_if="augment.crop_padding or augment.rotation or augment.zoom or augment.translation or augment.shear",
    )
    # Operations drawn from a published list or table: see `policies`. What they uncover takes the colour `mean`.
    policy: Policy = "none"
    # RandAugment: operations in a row; TrivialAugment has one, AutoAugment two.
    rand_layers: int = setting(2, active_if=RANDAUGMENT)
    # RandAugment: strength of each operation, 0 to 30. Published ranges are for 0 to 10, and go on in a line.
    rand_magnitude: float = setting(9.0, active_if=RANDAUGMENT)
    # RandAugment: standard deviation of the strength, drawn anew for each operation; no draw is above 10, or above
    # `rand_magnitude` where that is larger.
    rand_magnitude_std: float = setting(0.5, active_if=RANDAUGMENT)
    # RandAugment: probability that a drawn operation is done, 0 to 1.
    rand_probability: float = setting(0.5, active_if=RANDAUGMENT)
    # One of grey, solarised and blurred, for every image (3-Augment, Touvron et al. 2022, arXiv:2204.07118, s. 4).
    three_augment: bool = False
    # Colour jitter: each of the three factors is uniform in 1 +- its number, but not negative; 0 = off.
    brightness: float = 0.0
    contrast: float = 0.0  # likewise
    saturation: float = 0.0  # likewise
    # Colour jitter: largest shift of the hue, a fraction of the colour circle, 0 to 0.5. The four have a random order.
    hue: float = 0.0
    # Probability of the four together, 0 to 1.
    jitter_probability: float = setting(
        1.0, active_if="augment.brightness or augment.contrast or augment.saturation or augment.hue"
    )
    # Probability that the colours go, 0 to 1.
    grey: float = 0.0
    # Probability of a Gaussian blur, 0 to 1.
    blur: float = 0.0
    # Smallest and largest standard deviation of the blur, in pixels, above 0; uniform; also of `three_augment`.
    blur_sigma: tuple[float, float] = setting((0.1, 2.0), active_if="augment.blur or augment.three_augment")
    # Probability that values from 128 are inverted, 0 to 1.
    solarize: float = 0.0
    # Mean and standard deviation per channel on the 0..1 scale, one number for all channels;
    # () = the training set's statistics, which the caller computes once and fills in.
    mean: tuple[float, ...] = setting((), read_by="weights")
    std: tuple[float, ...] = setting((), read_by="weights")  # see `mean`
    # Probability of erasing a random rectangle, 0 to 1 (Zhong et al. 2017, arXiv:1708.04896).
    erasing: float = 0.0
    # Smallest and largest erased fraction of the image's area, above 0 to 1; uniform.
    erasing_area: tuple[float, float] = setting((0.02, 0.4), active_if="augment.erasing")
    # Smallest and largest ratio of height to width, above 0; uniform in its logarithm (the paper: in the ratio).
    erasing_aspect: tuple[float, float] = setting((0.3, 1 / 0.3), active_if="augment.erasing")
    # What the rectangle holds after normalisation: the mean colour, or standard normal noise per pixel.
    erasing_fill: ErasingFill = setting("zero", active_if="augment.erasing")
    # Side in pixels, an even number, of a square that takes the mean colour, cut off at the image's edges; 0 = off.
    cutout: int = 0
    # Share of the run's steps, 0 to below 1, before cutout begins.
    cutout_from: float = setting(0.0, active_if="augment.cutout")
    # Operations that `augment.register` added, each at its stage and in this order: see `registry`.
    extra: tuple[str, ...] = ()
    # alpha of the Beta(alpha, alpha) from which MixUp draws a batch's share; 0 = off.
    mixup: float = 0.0
    # The same of CutMix.
    cutmix: float = 0.0
    # Probability that a batch is mixed, 0 to 1.
    mix_probability: float = setting(1.0, active_if="augment.mixup or augment.cutmix")
    # Where both are on: the probability that it is CutMix.
    mix_switch: float = setting(0.5, active_if="augment.mixup and augment.cutmix")


# Lowest and highest value of a field, and the words for it; those of a tuple hold for each of its numbers.
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(
        (
            "flip",
            "rand_probability",
            "jitter_probability",
            "grey",
            "blur",
            "solarize",
            "erasing",
            "mix_probability",
            "mix_switch",
        ),
        (0, 1, "a probability from 0 to 1"),
    ),
    "resize": (1, MOST, "(), (size,) or (height, width) from 1 pixel"),
    "crop_padding": (0, MOST, "0 (off) or a number of pixels"),
    "rotation": (0, 180, "degrees from 0 to 180"),
    "shear": (0, math.nextafter(90, 0), "degrees from 0 to below 90"),
    "zoom": (0, math.nextafter(1, 0), "(), one number or two (height, width), from 0 to below 1"),
    "translation": (0, 1, "(), one fraction or two (height, width), from 0 to 1"),
    "rand_layers": (1, MOST, "a positive number of operations"),
    "rand_magnitude": (0, LARGEST_MAGNITUDE, f"0 to {LARGEST_MAGNITUDE:g}"),
    "rand_magnitude_std": (0, MOST, "0 (always the same) or more"),
    **dict.fromkeys(("brightness", "contrast", "saturation"), (0, MOST, "0 (off) or a positive number")),
    "cutout_from": (0, math.nextafter(1, 0), "a share of the steps from 0 to below 1"),
    "hue": (0, 0.5, "a fraction of the colour circle from 0 to 0.5"),
    "mean": (0, 1, "from 0 to 1; divide numbers of the 0..255 scale by 255"),
    "std": (LEAST, 1, "above 0, to 1; divide numbers of the 0..255 scale by 255"),
    **dict.fromkeys(("mixup", "cutmix"), (0, MOST, "0 (off) or a positive alpha")),
}
# The highest number of an interval, (low, high), above 0.
_INTERVALS = {"crop_area": 1.0, "crop_aspect": MOST, "blur_sigma": MOST, "erasing_area": 1.0, "erasing_aspect": MOST}


def check(settings: Settings) -> None:
    """Raises `UserError`, naming the field, if a value is out of its range."""
    choices = {"interpolation": Interpolation, "fill": Fill, "policy": Policy, "erasing_fill": ErasingFill}
    for name, kind in choices.items():
        _require(getattr(settings, name) in get_args(kind), settings, name, f"one of {', '.join(get_args(kind))}")
    for name, (low, high, expected) in _RANGES.items():
        given = getattr(settings, name)
        values = given if isinstance(given, tuple) else (given,)
        fits = len(values) <= 2 or name in ("mean", "std")
        _require(fits and all(low <= value <= high for value in values), settings, name, expected)
    for name, highest in _INTERVALS.items():
        if settings.crop_area or name != "crop_area":
            _check_interval(settings, name, highest)
    mean, std = settings.mean, settings.std
    _require(bool(mean) == bool(std), settings, "mean", f"given together with augment.std, which is {std}; set both")
    lengths_agree = len(mean) == len(std) or 1 in (len(mean), len(std))
    _require(lengths_agree, settings, "mean", f"as long as augment.std={std}, one number per channel")
    one = not (settings.flip and settings.alternate_flip)
    _require(one, settings, "flip", "0 (off), because augment.alternate_flip=True decides which images are mirrored")
    even = settings.cutout >= 0 and settings.cutout % 2 == 0
    _require(even, settings, "cutout", "0 (off) or an even number of pixels")
    _require(len(set(settings.extra)) == len(settings.extra), settings, "extra", "names of operations, each once")


def _check_interval(settings: Settings, name: str, highest: float) -> None:
    values: Any = getattr(settings, name)
    _require(len(values) == 2, settings, name, "two numbers, (low, high)")
    limit = f" <= {highest:g}" if highest < MOST else ""
    _require(0 < values[0] <= values[1] <= highest, settings, name, f"0 < low <= high{limit}")


def _require(holds: bool, settings: Settings, name: str, expected: str) -> None:
    if not holds:
        raise UserError(f"augment.{name}={getattr(settings, name)!r}: expected {expected}")


def check_channels(settings: Settings, channels: int) -> None:
    """Raises `UserError` unless `mean` and `std` hold one number, or one per channel of the images."""
    for name in ("mean", "std"):
        values = getattr(settings, name)
        fits = len(values) in (1, channels)
        _require(fits, settings, name, f"one number or {channels}, for images of {channels} channels; fill it in")


def input_shape(settings: Settings, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels as the model gets them, of images of this shape."""
    height, width = (settings.resize * 2)[:2] or image_shape[:2]
    return height, width, image_shape[2]


def check_masks(settings: Settings) -> None:
    """Raises `UserError` for a setting that cannot keep masks and images together: `mix` mixes targets of classes."""
    for name in ("mixup", "cutmix"):
        _require(not getattr(settings, name), settings, name, "0 (off), since it mixes classes, and these are masks")
