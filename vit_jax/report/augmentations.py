"""A batch as the model sees it: a sheet of images, unchanged and augmented by a configuration.

python -m vit_jax.report.augmentations --config configs/cifar100.py --out sheet.png
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vit_jax import augment, command, config, run, step
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import open_data


def sheet(given: Config, images: int, rows: int, height: int) -> Image.Image:
    """The first images of the training split, then `rows` rows of them as the first steps would see them.

    They stand for the batch of each step: its keys are theirs, and MixUp and CutMix mix the first with the last.
    """
    data = open_data(given.data, (224, 224))
    split = data.split("train")
    view = run.prepare(given, data, split).augment
    pictures, _ = split.read(np.arange(min(images, len(split))))
    n = len(pictures)
    shown = {"unchanged": pictures}
    for at in range(rows):
        seen, shares = step.augmented(
            view, jnp.asarray(pictures), jnp.eye(n), seed=given.seed, step=at, rows=jnp.arange(n)
        )
        shown[caption(at, float(shares[0, 0]))] = augment.displayed(view, np.asarray(seen))
    return augment.contact_sheet(shown, height)


def caption(at: int, share: float) -> str:
    """Of a step whose images keep this share of themselves; their counterparts have the rest."""
    return f"step {at}" if share == 1 else f"step {at}: {share:.0%} of each image, {1 - share:.0%} of its counterpart"


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.report.augmentations", description="A batch as the model sees it, as a picture."
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file of configs/, or a config.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: .png, .jpg ...")
    parser.add_argument("--images", type=int, default=8, help="in a row (default: 8)")
    parser.add_argument("--rows", type=int, default=5, help="of augmented images (default: 5)")
    parser.add_argument("--height", type=int, default=96, help="of an image on the sheet, in pixels (default: 96)")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if min(flags.images, flags.rows, flags.height) < 1:
        raise UserError("--images, --rows and --height must be positive")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    picture = sheet(config.load(flags.config, overrides), flags.images, flags.rows, flags.height)
    try:
        picture.save(flags.out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --out {flags.out}: {error}; give a file that ends in .png or .jpg") from error
    return command.DONE


if __name__ == "__main__":
    command.run(main)
