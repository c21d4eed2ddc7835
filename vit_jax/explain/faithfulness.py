"""Which heat maps are right: deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421, s. 3.2) on a run's images.

python -m vit_jax.explain.faithfulness --workdir D [--images 200] [--config.evaluate.split=test]
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vit_jax import command, config, inference
from vit_jax.command import UserError
from vit_jax.data import open_data
from vit_jax.explain.methods import METHODS, compute, network_of, obstacle
from vit_jax.explain.network import Network, picked
from vit_jax.inference.predictor import Predictor

STEPS = 32
BLUR = 16  # insertion begins with the image, blurred by a Gaussian of this part of its height
CHANCE = "random"
# These say for each place how much it counts for what the model answers.
RANKED = ("rollout", *(name for name, method in METHODS.items() if method.class_specific))


def blurred(x: Float[Array, "n H W c"]) -> Float[Array, "n H W c"]:
    """Little more than its colours."""
    sigma = x.shape[1] / BLUR
    reach = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    kernel = jnp.float32(weights / weights.sum())

    def along(line: Array) -> Array:
        padded = jnp.pad(line, len(reach) // 2, mode="edge")
        return jnp.convolve(padded, kernel, mode="valid")

    for axis in (1, 2):
        x = jnp.apply_along_axis(along, axis, x)
    return x


def curves(
    network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"], heat: Float[Array, "n h w"]
) -> Float[Array, "2 s n"]:
    """The class's probability while the hottest pixels go first: as they are deleted, and as they are inserted.

    After 0, 1 ... `STEPS` equal parts of the pixels. A deleted pixel has the mean colour; insertion begins with the
    blurred image. A coarser map is interpolated.
    """
    n, height, width, _ = x.shape
    fine = jax.image.resize(heat, (n, height, width), "linear").reshape(n, -1)
    rank = jnp.argsort(jnp.argsort(-fine, axis=1), axis=1).reshape(n, height, width, 1)
    start = blurred(x)

    def at(part: Array) -> tuple[Array, Array]:
        hot = rank < part * (height * width)
        shown = jnp.where(hot, 0.0, x), jnp.where(hot, x, start)
        found = [picked(network.probabilities(image), targets) for image in shown]
        return found[0], found[1]

    return jnp.stack(jax.lax.map(at, jnp.linspace(0, 1, STEPS + 1)))


def areas(curves: Float[np.ndarray, "2 s n"]) -> Float[np.ndarray, "2 n"]:
    """Below each image's curve, over the share of pixels."""
    return np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)


def measure(
    predictor: Predictor, pixels: UInt8[np.ndarray, "n h w c"], methods: Sequence[str], batch_size: int = 16
) -> dict[str, Float[np.ndarray, "2 n"]]:
    """Areas below the deletion and the insertion curve of each image, for each method and for random heat.

    What is explained is the class that the model finds most probable in the whole image.
    """
    network = network_of(predictor)
    targets = predictor.logits(pixels).argmax(axis=1).astype(np.int32)
    functions: dict[str, Callable[..., Array]] = {name: METHODS[name].compute for name in methods}
    found = {}
    for name, function in {**functions, CHANCE: _random}.items():
        both = compute(partial(_curves, function), network, pixels, targets, batch_size)
        found[name] = areas(np.moveaxis(both, 0, -1))
    return found


def _curves(function: Callable[..., Array], network: Network, x: Array, targets: Array) -> Float[Array, "n 2 s"]:
    return jnp.moveaxis(curves(network, x, targets, function(network, x, targets)), -1, 0)


def _random(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n h w"]:
    """Of 8 x 8 places: as coarse as the maps that it is compared with."""
    return jax.random.uniform(jax.random.key(0), (len(x), 8, 8))


def table(found: dict[str, Float[np.ndarray, "2 n"]]) -> str:
    """In Markdown, a row for each method: means and their standard errors."""
    lines = ["| method | deletion (lower is better) | insertion (higher is better) |", "|---|---:|---:|"]
    for name, both in found.items():
        errors = both.std(axis=1, ddof=1) / np.sqrt(both.shape[1])
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(both.mean(axis=1), errors, strict=True)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.explain.faithfulness",
        description="Deletion and insertion of the pixels that each method finds most important.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="the run of a classifier")
    parser.add_argument("--images", type=int, default=200, help="of the split, chosen at random (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.images < 2 or flags.seed < 0:
        raise UserError(f"--images {flags.images} --seed {flags.seed}: give two images at least, and a seed from 0 on")
    config.check_read(overrides, "texture")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    predictor = inference.load(flags.workdir, overrides=overrides)
    methods = [name for name in RANKED if not obstacle(METHODS[name], predictor)]
    if not predictor.class_names or not methods:
        raise UserError(f"{flags.workdir} holds no classifier of images; give the run of one")
    pixels, labels = _images(predictor, flags.images, flags.seed)
    accuracy = float((predictor.logits(pixels).argmax(axis=1) == labels).mean())
    print(table(measure(predictor, pixels, methods)))
    print(f"\n{len(pixels)} images of {predictor.config.evaluate.split}, of which the model knows {accuracy:.0%}")
    return command.DONE


def _images(predictor: Predictor, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    data = open_data(predictor.config.data, predictor.preprocessing.size)
    data = dataclasses.replace(data, preprocessing=predictor.preprocessing)
    split = data.split(predictor.config.evaluate.split)
    chosen = np.random.default_rng(seed).permutation(len(split))[:images]
    found = split.read(np.sort(chosen))
    return found["image"], found["label"]


if __name__ == "__main__":
    command.run(main)
