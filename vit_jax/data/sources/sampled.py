"""What a few images of a data set tell of all."""

from collections.abc import Sequence

import numpy as np

from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.sources.dataset import Source

IMAGES = 16  # of each split


def sampled_shape(name: str, sources: Sequence[Source]) -> tuple[int, int, int]:
    """What the headers of some images say, evenly spaced: h, w, c, or (0, 0, c) where sizes differ."""
    shapes: set[tuple[int, int, int]] = set()
    broken = None
    for source in sources:
        for row in np.unique(np.linspace(0, len(source) - 1, IMAGES).astype(int)):
            try:
                image = source.read(int(row))["image"]
                shapes.add(decoding.header_shape(image) if isinstance(image, bytes) else image.shape)
            except decoding.BrokenImage as fault:  # reported when the image is read
                broken = f"{source.describe(int(row))}: {fault}"
            except OSError as fault:
                raise UserError(f"cannot read {source.describe(int(row))}: {fault}") from fault
    if not shapes:
        raise UserError(f"{name}: none of the images looked at can be read, such as {broken}")
    sizes = {shape[:2] for shape in shapes}
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    return height, width, max(channels for *_, channels in shapes)
