"""Batches as the model sees them: a sheet of images, unchanged and augmented by a configuration.

python -m vit_jax.report.augmentations --config configs/cifar100.py --out sheet.png
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax import augment, command, config, inference, sharding, step, tasks
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, open_data
from vit_jax.train.experiment import host_crop, make_task, with_data
from vit_jax.train.start import default_size, follow

QUICK = {"xla_backend_optimization_level": 0}


def sheet(given: Config, images: int, rows: int, height: int) -> Image.Image:
    """The pictures of `pictures` on one sheet."""
    return augment.contact_sheet(pictures(given, images, rows), height)


def pictures(
    given: Config, images: int, rows: int, data: Data | None = None, *, quick: bool = False
) -> dict[str, UInt8[np.ndarray, "n h w c"]]:
    """The first images of the batches of `rows` steps, each unchanged and then as the model sees it, under captions.

    With `train.accumulate` they are the first of a batch's first part. Where the configuration leaves their size open,
    the weights that it starts from decide, as in training; or `data`, which is opened as the run has it. `quick`
    compiles fast: for a single sheet, on a CPU.
    """
    if data is None:
        sized = given.data.image_size or given.augment.resize
        source = inference.find_weights(given.init.weights).preprocessing if given.init.weights and not sized else None
        data = open_data(given.data, default_size(given, source))
        given = follow(given, data, source)
    one_device = sharding.make_mesh(sharding.Settings(), jax.devices()[:1])  # batches are the same on any mesh
    loader = data.loader(data.split("train"), one_device, crop=host_crop(given, data))
    plain = dataclasses.replace(with_data(given, data, loader.split), distill=tasks.Distill())
    task = make_task(plain, data.class_names, data.preprocessing.shape, cropped=loader.crop is not None)
    settings = task.parts.train_augment
    augmented = jax.jit(task.augmented, compiler_options=QUICK) if quick else task.augmented
    part = np.arange(0, given.train.batch_size, given.train.accumulate)
    ends = np.union1d(part[:images], part[-images:])  # MixUp and CutMix mix the first with the last
    shown = {}
    for at in range(rows):
        indices, crops = loader.chosen(given.seed, at, given.train.batch_size, ends)
        unchanged = loader.split.read(indices)["image"]
        cropped = loader.split.read(indices, crops)["image"] if crops else unchanged
        rngs = step.rngs_for(given.seed, at, jnp.asarray(ends))
        seen = augmented({"image": jnp.asarray(cropped), "progress": jnp.ones(len(ends))}, rngs)  # the last step's
        seen, shares = augment.mix(settings, rngs.mix, seen, jnp.eye(len(ends)))
        shown[f"step {at}, unchanged"] = unchanged[:images]
        shown[caption(at, float(shares[0, 0]))] = augment.displayed(settings, np.asarray(seen[:images]))
    return shown


def caption(at: int, share: float) -> str:
    """Of a step whose images keep this share of themselves; their counterparts have the rest."""
    return f"step {at}" if share == 1 else f"step {at}: {share:.0%} of each image, {1 - share:.0%} of its counterpart"


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.report.augmentations", description="Batches as the model sees them, as a picture."
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a file of configs/, or a config.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: .png, .jpg ...")
    parser.add_argument("--images", type=int, default=8, help="in a row (default: 8)")
    parser.add_argument("--rows", type=int, default=5, help="of augmented images, one for each step (default: 5)")
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
