"""The preprocessing that a preprocessor_config.json of `transformers` describes."""

from collections.abc import Mapping
from typing import Any, Literal

from vit_jax.command import UserError
from vit_jax.data.resizing import covering
from vit_jax.pretrained.layout import Preprocessing, pair, per_channel

FILE = "preprocessor_config.json"
INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Processors for which a size of one number is that of the shorter side, not of a square.
BY_SHORTER_SIDE = ("Bit", "CLIP", "ConvNext")
WITHOUT_CROP = 384  # from this size on ConvNext's processor stretches instead of cropping
# A crop fraction that cuts nothing, but has the whole image scaled before it is cut, as these processors do: of the
# longer side they drop the fraction of a pixel, where our bilinear "crop" keeps the aspect.
AS_A_WHOLE = 1 - 1e-6


def read(given: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """What the file describes; of fields that it does not have, and for an empty one, the default."""
    if not given:
        return default
    size, resize, crop_fraction = _geometry(given, default)
    resample = given.get("resample")
    if resample is not None and resample not in INTERPOLATIONS:
        raise UserError(f"{FILE}: resample={resample!r} is not supported; expected 2 (bilinear) or 3 (bicubic)")
    interpolation = default.interpolation if resample is None else INTERPOLATIONS[resample]
    if (resize, crop_fraction, interpolation) == ("crop", 1.0, "bilinear"):
        crop_fraction = AS_A_WHOLE
    return Preprocessing(size, resize, crop_fraction, interpolation, *_statistics(given, default))


def _geometry(
    given: Mapping[str, Any], default: Preprocessing
) -> tuple[tuple[int, int], Literal["crop", "stretch"], float]:
    """Size, kind of resizing and crop fraction."""
    crops = bool(given.get("do_center_crop"))
    inner = _sides(given["crop_size"]) if crops and given.get("crop_size") else None
    if not given.get("do_resize", True):
        if inner:
            raise UserError(f"{FILE}: it cuts {inner} out of images as they are; set do_resize and size in it")
        return default.size, "stretch", 1.0  # images that have the size already are taken as they are
    if "size" not in given:
        return inner or default.size, default.resize, default.crop_fraction
    resize, outer = _resizing(given)
    if resize == "crop" and ("crop_pct" in given or _kind(given).startswith("ConvNext")):
        if outer[0] >= WITHOUT_CROP:
            return outer, "stretch", 1.0
        return outer, "crop", outer[0] / int(outer[0] / given.get("crop_pct", 224 / 256))
    inner = inner or outer
    if inner[0] > outer[0] or inner[1] > outer[1]:
        raise UserError(f"{FILE}: crop_size={inner} exceeds size={outer}; padded images are not supported")
    fraction = max(inner[0] / outer[0], inner[1] / outer[1])
    if (resize == "crop" and inner[0] != inner[1]) or covering(inner, fraction) != outer:
        of = f"a shorter side of {outer[0]}" if resize == "crop" else f"size={outer}"
        raise UserError(
            f"{FILE}: crop_size={inner} of {of} is not supported: expected the same share of both sides, "
            "and of photos that keep their aspect a square; change crop_size or size in it"
        )
    return inner, resize, fraction


def _resizing(given: Mapping[str, Any]) -> tuple[Literal["crop", "stretch"], tuple[int, int]]:
    """Whether the aspect is kept, and the size before any crop."""
    size = given["size"]
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return "crop", pair(size["shortest_edge"])
    if isinstance(size, int) and (_kind(given).startswith(BY_SHORTER_SIDE) or "crop_pct" in given):
        return "crop", pair(size)
    return "stretch", _sides(size)


def _kind(given: Mapping[str, Any]) -> str:
    """The processor's class."""
    return given.get("image_processor_type") or given.get("feature_extractor_type") or ""


def _sides(size: Any) -> tuple[int, int]:
    """(height, width) of a field."""
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    if isinstance(size, int | list | tuple):
        return pair(size)
    raise UserError(f"{FILE}: the size {size} is not supported; expected a number, shortest_edge, or height and width")


def _statistics(given: Mapping[str, Any], default: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation on the 0..1 scale of what the file does with values from 0 to 255."""
    channels = len(default.mean)
    mean, std = default.mean, default.std
    if not given.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean = per_channel(given.get("image_mean", mean), channels)
        std = per_channel(given.get("image_std", std), channels)
    if given.get("do_rescale", True) and "rescale_factor" not in given:
        return mean, std
    scale = 255 * (given["rescale_factor"] if given.get("do_rescale", True) else 1.0)
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale  # 1/255 as a decimal fraction
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)
