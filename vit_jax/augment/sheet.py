"""A picture of what augmentation does: rows of images under captions."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vit_jax.augment.settings import Settings

GAP = 4  # pixels between images
CAPTION = 18  # pixels, height of a line of text


def displayed(settings: Settings, view: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """A view's images as they look: normalisation undone, cut off at black and white."""
    mean, std = (np.asarray(values, np.float32) for values in (settings.mean, settings.std))
    return np.round(np.clip(np.asarray(view) * std + mean, 0, 1) * 255).astype(np.uint8)


def in_colour(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Pillow's image of grey or colour pixels, always RGB."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")


def contact_sheet(rows: Mapping[str, UInt8[np.ndarray, "n _ _ c"]], height: int = 96) -> Image.Image:
    """One row of images for each caption, all `height` pixels high: small images as visible pixels, large ones reduced.

    The rows may have images of different sizes and numbers; put the unchanged images first.
    """
    strips = [[_resized(image, height) for image in images] for images in rows.values()]
    width = max(sum(image.width + GAP for image in strip) for strip in strips) + GAP
    sheet = Image.new("RGB", (width, (CAPTION + height + GAP) * len(strips) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=CAPTION * 2 / 3)
    for i, (caption, strip) in enumerate(zip(rows, strips, strict=True)):
        x, y = GAP, GAP + i * (CAPTION + height + GAP)
        draw.text((x, y), caption, fill="black", font=font)
        for image in strip:
            sheet.paste(image, (x, y + CAPTION))
            x += image.width + GAP
    return sheet


def _resized(image: UInt8[np.ndarray, "h w c"], height: int) -> Image.Image:
    picture = in_colour(image)
    width = max(1, round(picture.width * height / picture.height))
    larger = height > picture.height
    return picture.resize((width, height), Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
