"""Do models go by shape or by texture, and do they err on the same images?

    python -m vit_jax.report.texture runs/vit runs/cnn --out texture

Each model sees images with the shape of one class and the texture of another (`augment.cue_conflict`): how often it
takes them for the shape's class (`as shape`), among those that it takes for either, is its shape bias. Error
consistency is Cohen's kappa of two models' mistakes (Tuli et al. 2021, arXiv:2105.07197). --out gets `texture.json`,
and `texture.png`, a sheet of such images.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from rich.console import Console

from vit_jax import augment, command, config, inference, log, metrics
from vit_jax.command import UserError
from vit_jax.data import open_data
from vit_jax.files import write_atomically
from vit_jax.inference import Predictor

SHOWN = 8  # images on the sheet


def conflicting(labels: Int[np.ndarray, " n"], seed: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Pairs of images of two classes: the one that gives its shape, and the one that gives its texture."""
    if len(np.unique(labels)) < 2:
        raise UserError("all images are of one class; a conflict needs two")
    rng = np.random.default_rng(seed)
    while True:  # of two images every other order pairs each with itself
        order = rng.permutation(len(labels))
        different = np.flatnonzero(labels != labels[order])
        if len(different):
            return different, order[different]


def compare(models: dict[str, Predictor], images: int, seed: int) -> tuple[dict[str, Any], Image.Image]:
    """What each model makes of unchanged and of conflicting images of the first one's `evaluate.split`; and a sheet."""
    first = next(iter(models.values()))
    data = open_data(first.config.data, first.preprocessing.size)
    for name, predictor in models.items():
        if predictor.class_names != data.class_names:
            raise UserError(f"{name} learned other classes than {next(iter(models))}; compare models of one data set")
    split = data.split(first.config.evaluate.split)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[: images or len(split)])
    examples = split.read(chosen)
    pictures, labels = examples["image"], examples["label"]
    shape, texture = conflicting(labels, seed)
    pair = (jnp.asarray(pictures[which]) for which in (shape, texture))
    mixed = np.asarray(augment.cue_conflict(jax.random.key(seed), *pair))
    kinds = {"unchanged": (pictures, labels), "conflict": (mixed, labels[shape])}
    predicted = {
        name: {kind: metrics.predict(predictor.predict(shown).probabilities) for kind, (shown, _) in kinds.items()}
        for name, predictor in models.items()
    }
    correct = {name: {kind: found[kind] == kinds[kind][1] for kind in kinds} for name, found in predicted.items()}
    rows = {}
    for name, found in predicted.items():
        taken = found["conflict"]
        rows[name] = {
            "accuracy": float(correct[name]["unchanged"].mean()),
            "taken_for_shape": float(np.mean(taken == labels[shape])),
            "taken_for_texture": float(np.mean(taken == labels[texture])),
            "shape_bias": _defined(metrics.shape_bias(taken, labels[shape], labels[texture])),
        }
    consistency = [
        {"models": [a, b]}
        | {kind: _defined(metrics.error_consistency(correct[a][kind], correct[b][kind])) for kind in kinds}
        for a, b in itertools.combinations(models, 2)
    ]
    report = {"images": len(labels), "conflicts": len(shape), "models": rows, "error_consistency": consistency}
    return report, _sheet(pictures, mixed, shape, texture)


def _defined(value: float) -> float | None:
    """None, which JSON has, for NaN: nothing was taken for either class, or no model made a mistake."""
    return None if np.isnan(value) else value


def _sheet(
    pictures: UInt8[np.ndarray, "n h w c"],
    mixed: UInt8[np.ndarray, "m h w c"],
    shape: Int[np.ndarray, " m"],
    texture: Int[np.ndarray, " m"],
) -> Image.Image:
    rows = {"shape": pictures[shape], "texture": pictures[texture], "both: what the models see": mixed}
    return augment.contact_sheet({caption: images[:SHOWN] for caption, images in rows.items()})


def show(console: Console, found: dict[str, Any]) -> None:
    """Both tables."""
    header = ("model", "accuracy", "as shape", "as texture", "shape bias")
    models = [
        (name, *("" if value is None else log.human_percent(value) for value in row.values()))
        for name, row in found["models"].items()
    ]
    log.fitted_table(console, header, models, important=("shape bias", "accuracy"))
    console.print(f"\nof {found['images']:,} images, and {found['conflicts']:,} with a conflict", style="dim")
    if not found["error_consistency"]:
        return
    console.print()
    pairs = [
        (" and ".join(pair["models"]), *(_kappa(pair[kind]) for kind in ("unchanged", "conflict")))
        for pair in found["error_consistency"]
    ]
    log.fitted_table(console, ("error consistency (kappa)", "unchanged", "conflicting"), pairs)


def _kappa(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.report.texture", description="Shape or texture: what models go by, and where they err."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs on one data set")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of texture.json and texture.png")
    parser.add_argument("--images", type=int, default=0, help="of the split, chosen at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of the pairs (default: 0)")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.images < 0:
        raise UserError(f"--images {flags.images} is negative; 0 means all")
    if flags.seed < 0:
        raise UserError(f"--seed {flags.seed} is negative")
    config.check_read(overrides, "texture")
    names = [Path(address).name for address in flags.runs]
    if len(set(names)) < len(names):
        names = flags.runs
    if len(set(names)) < len(names):
        raise UserError("a run is given twice; give each once")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    opened = [inference.load(address, overrides=overrides) for address in flags.runs]
    models = dict(zip(names, opened, strict=True))
    found, sheet = compare(models, flags.images, flags.seed)
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
        write_atomically(flags.out / "texture.json", json.dumps(found, indent=1) + "\n")
        sheet.save(flags.out / "texture.png")
    except OSError as error:
        raise UserError(f"cannot write to --out {flags.out}: {error}; give a folder") from error
    show(Console(highlight=False), found)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
