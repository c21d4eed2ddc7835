"""What an evaluation sees of an image beside the image itself: test-time augmentation.

`flip_scales` is that of segmentations, see `tasks.segmentation`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

TestTime = Literal["none", "flip", "flip_shift", "flip_scales"]


def other_views(kind: TestTime, images: Float[Array, "n h w c"]) -> list[tuple[float, Float[Array, "n h w c"]]]:
    """Views of normalised images, and the weight of each in a mean of which the images themselves have the rest.

    Mirrored; with `flip_shift` a half of the weight goes to the images and their mirror images one pixel up and left,
    and down and right, the mirrored image beyond the edge (Jordan 2024, arXiv:2404.00498, s. 3.5).
    """
    if kind == "none":
        return []
    if kind == "flip":
        return [(0.5, images[:, :, ::-1])]
    _, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    shifted = [padded[:, at : at + h, at : at + w] for at in (0, 2)]
    both = [view for x in shifted for view in (x, x[:, :, ::-1])]
    return [(0.25, images[:, :, ::-1]), *((0.125, view) for view in both)]
