"""What a trained model looks at: a picture of images, or the arrays.

python -m vit_jax.explain --workdir D photo.jpg --method rollout --out x.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import command, config, inference
from vit_jax.command import UserError
from vit_jax.data.files import find_images
from vit_jax.explain.methods import METHODS, find_method
from vit_jax.explain.pictures import Explained, explained
from vit_jax.inference import Predictor
from vit_jax.workdir import Workdir

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npy")
OPTIONS: dict[str, dict[str, Any]] = {
    "query": {"type": int, "nargs": 2, "metavar": ("ROW", "COLUMN"), "help": "of attention: the patch that asks"},
    "layer": {"metavar": "PATH", "help": "of grad_cam, receptive_field: a module, e.g. stage3_block1"},
    "steps": {"type": int, "help": "of integrated_gradients (default: 32)"},
    "baseline": {"help": "of integrated_gradients: mean or black (default: mean)"},
    "window": {"type": int, "help": "of occlusion: the square's side in pixels"},
    "stride": {"type": int, "help": "of occlusion: from one square to the next"},
}


def main(argv: Sequence[str]) -> int:
    flags, overrides = _parser().parse(argv)
    method = find_method(flags.method)
    if flags.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {flags.out} does not end in {', '.join(SUFFIXES)}; rename it")
    if not 0 <= flags.colours <= 256:
        raise UserError(f"--colours {flags.colours} is not in 0..256; 0 keeps all")
    if method.images and not flags.paths:
        raise UserError(f"no image is given, which method {flags.method!r} needs; name files or folders")
    files = find_images(flags.paths) if flags.paths else []
    options = {name: value for name in OPTIONS if (value := getattr(flags, name)) is not None}
    predictor = _load(flags, overrides)
    beside = inference.load(flags.beside) if flags.beside else None
    it = explained(predictor, files, flags.method, flags.target, beside, **options)
    try:
        _save(it, flags.out, flags.colours)
    except OSError as error:
        raise UserError(f"cannot write --out {flags.out}: {error.strerror or error}; give another file") from error
    print("\n".join([*it.notes(), f"wrote {flags.out}: {flags.method}, {list(it.found.shape)} [{method.result}]"]))
    return command.DONE


def _save(it: Explained, path: Path, colours: int) -> None:
    if path.suffix.lower() == ".npy":
        np.save(path, it.found)
    elif path.suffix.lower() == ".png":
        drawn = it.picture()
        (drawn.quantize(colours) if colours else drawn).save(path, optimize=True)
    else:
        it.picture().save(path)


def _load(flags: argparse.Namespace, overrides: Sequence[str]) -> Predictor:
    if flags.workdir and not (workdir := Workdir(flags.workdir)).is_run():
        raise UserError(
            f"{workdir} holds no run: it has no {workdir.config_file.name} and {workdir.preprocessing_file.name}; "
            "give the --workdir of a training run, or published weights as --weights"
        )
    config.check_read(overrides, "predict" if flags.workdir else "weights")
    return inference.load(flags.workdir or flags.weights, overrides=overrides)


def _parser() -> command.Parser:
    methods = "\n".join(f"  {name:21} {method.about}" for name, method in METHODS.items())
    parser = command.Parser(
        prog="python -m vit_jax.explain",
        description="What a trained model looks at, and what it learned.",
        epilog=f"methods:\n{methods}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="IMAGE", help="image files, and folders that are searched for them")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", type=Path, help="a run")
    model.add_argument(
        "--weights", metavar="ADDRESS", help="or published weights: a file, a folder, https://, hf://..."
    )
    parser.add_argument("--method", required=True, help="one of those below")
    parser.add_argument("--target", help="the class to explain, by name or number (default: the most probable one)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a picture, or the array: .npy")
    parser.add_argument(
        "--colours", type=int, default=256, help="of a .png, which keep it small; 0: all (default: 256)"
    )
    parser.add_argument("--beside", type=Path, metavar="WORKDIR", help="of distance: the run of a CNN to compare with")
    for name, settings in OPTIONS.items():
        parser.add_argument(f"--{name}", **settings)
    return parser
