"""Tiles with captions, heat over images, and scatter plots, drawn by Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vit_jax import augment

GAP = 8  # pixels between tiles
LINE = 16  # pixels, height of a line of text
INK, MUTED, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)
# Matplotlib's inferno, at even steps.
HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
SIGNED = np.array([(33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43)])  # blue, red
SERIES = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")


@dataclass(frozen=True)
class Tile:
    """A picture and the line below it."""

    image: Image.Image
    caption: str = ""


def font(size: int = 12) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def colours(values: Float[np.ndarray, "h w"], ramp: np.ndarray = HEAT) -> UInt8[np.ndarray, "h w 3"]:
    """Values in 0..1 as colours of a ramp."""
    at = np.clip(values, 0, 1) * (len(ramp) - 1)
    channels = [np.interp(at, np.arange(len(ramp)), ramp[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def scaled(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Divided by the largest absolute value, less the few that stand out."""
    return values / max(float(np.percentile(np.abs(values), 99.5)), 1e-12)


def resized(values: Float[np.ndarray, "h w"], width: int, height: int) -> Float[np.ndarray, "H W"]:
    """A map at another size, interpolated."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def at_height(image: UInt8[np.ndarray, "h w c"], height: int) -> Image.Image:
    """An image in colour, of this height."""
    picture = augment.in_colour(image)
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def heat_over(picture: Image.Image, heat: Float[np.ndarray, "h w"]) -> Image.Image:
    """Heat over a grey copy of the picture: dark to yellow; where some of it is negative, blue and red."""
    signed = bool((heat < 0).any())
    values = resized(scaled(heat), picture.width, picture.height)
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32)
    if signed:
        share = np.clip(np.abs(values), 0, 1)[..., None] ** 0.7 * 0.85
        mixed = (0.5 * grey + 120) * (1 - share) + share * colours((np.clip(values, -1, 1) + 1) / 2, SIGNED)
    else:
        mixed = 0.4 * grey + 0.6 * colours(values)
    return Image.fromarray(np.round(np.clip(mixed, 0, 255)).astype(np.uint8))


def heat_tile(heat: Float[np.ndarray, "h w"], width: int, height: int) -> Image.Image:
    """Heat alone: each value a square."""
    tile = Image.fromarray(colours(scaled(heat)))
    return tile.resize((width, height), Image.Resampling.NEAREST)


def sheet(rows: Sequence[Sequence[Tile]], labels: Sequence[str] = (), gap: int = GAP) -> Image.Image:
    """The tiles in rows, with their captions below and the rows' labels on the left."""
    left = GAP + (max(round(font().getlength(label)) for label in labels) + GAP if labels else 0)
    captioned = any(tile.caption for row in rows for tile in row)
    heights = [max(tile.image.height for tile in row) + (LINE if captioned else 0) + gap for row in rows]
    width = left + max(sum(tile.image.width + gap for tile in row) for row in rows) + GAP - gap
    paper = Image.new("RGB", (width, sum(heights) + 2 * GAP - gap), PAPER)
    draw, y = ImageDraw.Draw(paper), GAP
    for i, row in enumerate(rows):
        x = left
        if labels:
            middle = y + max(tile.image.height for tile in row) // 2
            draw.text((left - GAP, middle), labels[i], fill=MUTED, font=font(), anchor="rm")
        for tile in row:
            paper.paste(tile.image, (x, y))
            draw.text((x, y + tile.image.height + 1), fitted(tile.caption, tile.image.width), fill=INK, font=font())
            x += tile.image.width + gap
        y += heights[i]
    return paper


def fitted(text: str, width: int) -> str:
    """The text, cut where it is longer than so many pixels."""
    if font().getlength(text) <= width:
        return text
    while text and font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined if `line`; the name stands in the legend."""

    name: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    line: bool = False


def plot(
    series: Sequence[Series], x_label: str = "", y_label: str = "", size: tuple[int, int] = (520, 320)
) -> Image.Image:
    """A scatter plot with a legend on the right; without labels the axes have no numbers."""
    scale = 2  # drawn larger, then reduced: smooth edges
    width, height = size
    legend = max(round(font().getlength(one.name)) for one in series) + 4 * GAP
    box = (52 if y_label else GAP, GAP + 2 * LINE, width - legend, height - (44 if x_label else GAP))
    xs, ys = (np.concatenate([np.asarray(getattr(one, axis), float) for one in series]) for axis in "xy")
    x_ticks, y_ticks = (_ticks(v, bool(label)) for v, label in ((xs, x_label), (ys, y_label)))
    paper = Image.new("RGB", (width * scale, height * scale), PAPER)
    draw = ImageDraw.Draw(paper)

    def place(x: float | int, y: float | int) -> tuple[Any, Any]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return scale * (box[0] + across * (box[2] - box[0])), scale * (box[3] - up * (box[3] - box[1]))

    def text(at: tuple[Any, Any], words: str, anchor: str, fill: tuple[int, int, int] = MUTED) -> None:
        draw.text((at[0], at[1]), words, fill=fill, font=font(12 * scale), anchor=anchor)

    for tick in y_ticks if y_label else []:
        draw.line([place(x_ticks[0], tick), place(x_ticks[-1], tick)], fill=(228, 228, 228), width=scale)
        text((scale * (box[0] - 6), place(0, tick)[1]), f"{tick:g}", "rm")
    for tick in x_ticks if x_label else []:
        text((place(tick, 0)[0], scale * (box[3] + 6)), f"{tick:g}", "mt")
    text((scale * GAP, scale * GAP), y_label, "la")
    text((scale * (box[0] + box[2]) / 2, scale * (height - GAP)), x_label, "mb")
    for i, one in enumerate(series):
        colour, points = SERIES[i % len(SERIES)], [place(x, y) for x, y in zip(one.x, one.y, strict=True)]
        if one.line and len(points) > 1:
            draw.line(points, fill=colour, width=2 * scale, joint="curve")
        for x, y in points:
            draw.circle((x, y), 3.5 * scale, fill=colour, outline=PAPER, width=scale // 2)
        at = scale * (box[2] + 2 * GAP), scale * (box[1] + LINE * (i + 0.5))
        draw.circle(at, 4 * scale, fill=colour)
        text((at[0] + scale * GAP, at[1]), one.name, "lm", INK)
    return paper.resize(size, Image.Resampling.LANCZOS)


def _ticks(values: np.ndarray, round_numbers: bool) -> list[float]:
    """Where an axis begins and ends; with round numbers, from 0, about five of them."""
    low, high = float(values.min()), float(values.max())
    if not round_numbers:
        margin = 0.05 * (high - low) or 1.0
        return [low - margin, high + margin]
    low, step = min(low, 0.0), 10.0 ** np.floor(np.log10(max(high - min(low, 0.0), 1e-9)))
    step *= next(part for part in (0.2, 0.5, 1.0, 2.0) if (high - low) / (step * part) <= 6)
    return [float(step * i) for i in range(int(np.floor(low / step)), int(np.ceil(high / step)) + 1)]
