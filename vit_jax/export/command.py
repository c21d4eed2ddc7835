"""The command: writes, reads back, compares, and only then says that it is done."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vit_jax import command, config, inference
from vit_jax.command import UserError
from vit_jax.export import compare, formats
from vit_jax.export.compare import Difference, Images
from vit_jax.export.exported import open_exported
from vit_jax.export.graph import Trained, find_trained, make_graph
from vit_jax.export.quantize import Kind, quantize
from vit_jax.files import write_atomically
from vit_jax.human import human_bytes, human_percent
from vit_jax.workdir import Workdir

COMPARED = 64  # images
CALIBRATION = 256  # images
MEASURED = 2000  # images of the test split that an int8 model is judged by
BATCH_SIZE = 64

Labels = np.ndarray | None


def export(trained: Trained, form: str, file: Path, images: Images, *, with_preprocessing: bool = False) -> Difference:
    """Writes a model in a format, reads it back, and returns how it differs on images uint8 at the predictor's size.

    Raises `UserError` for a format that has no such model or a file that would replace others, and `Differs` for more
    than rounding; then there is no new file.
    """
    _check(trained, form, with_preprocessing)
    with formats.unfinished(form, file) as draft:
        return _draft(trained, form, draft, images, with_preprocessing)


class Differs(Exception):
    """What was exported is not the model."""


def _draft(trained: Trained, form: str, draft: Path, images: Images, with_preprocessing: bool) -> Difference:
    graph = make_graph(trained, with_preprocessing=with_preprocessing, dtype="float32" if form == "onnx" else "")
    formats.write(graph, trained, form, draft)
    again = open_exported(draft, form)
    found = compare.difference(compare.in_batches(again, images, BATCH_SIZE), _expected(trained, images))
    exact = getattr(trained.module, "dtype", "float32") == "float32"
    if not found.is_within(compare.TOLERANCE if exact else compare.ROUNDED):
        raise Differs(f"the {form} export is {found}: this is more than rounding; nothing is kept of it, report it")
    return found


def _check(trained: Trained, form: str, with_preprocessing: bool) -> None:
    """Raises `UserError` where the format cannot hold what is asked for, before anything is computed."""
    if form not in ("safetensors", formats.HUGGINGFACE):
        return
    if with_preprocessing:
        raise UserError(f"--with-preprocessing is for graphs, --format {form} has arrays only; leave it out")
    if trained.module is not trained.predictor.model:
        task = trained.predictor.config.task["name"]
        raise UserError(f"--format {form} cannot hold what task {task!r} puts on its model; use onnx or stablehlo")


def _expected(trained: Trained, images: Images) -> np.ndarray:
    return compare.in_batches(trained, images, BATCH_SIZE)


def main(argv: Sequence[str]) -> int:
    flags, overrides = _parser().parse(argv)
    file = _file(flags.out, flags.format)
    formats.check_target(flags.format, file)
    if flags.quantize and flags.format != "onnx":
        raise UserError(f"--quantize {flags.quantize} is for --format onnx, not {flags.format}")
    config.check_read(overrides, "predict" if flags.workdir else "weights")
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    workdir = Workdir(flags.workdir) if flags.workdir else None
    if workdir and not workdir.is_run():
        raise UserError(f"{workdir} holds no run; give the --workdir of one, or published weights as --weights")
    trained = find_trained(inference.load(flags.workdir or flags.weights, overrides=overrides), workdir)
    _check(trained, flags.format, flags.with_preprocessing)
    images, labels = _images(flags, trained, workdir)
    console = Console(highlight=False, soft_wrap=True)
    try:
        with formats.unfinished(flags.format, file) as draft:
            found = _draft(trained, flags.format, draft, images[:COMPARED], flags.with_preprocessing)
            console.print(f"{file}, {_size(draft)}, read back: {found}", markup=False)
            if flags.quantize:
                found, kind = _quantized(console, flags, trained, draft, images, labels)
                console.print(f"{file}, {_size(draft)}, int8 ({kind}), read back: {found}", markup=False)
                _check_agreement(found)
    except Differs as fault:
        console.print(f"error: {fault}", markup=False)
        return command.FAULT
    console.print("ok")
    return command.DONE


def _quantized(
    console: Console, flags: argparse.Namespace, trained: Trained, file: Path, images: Images, labels: Labels
) -> tuple[Difference, Kind]:
    """Replaces the file by its int8 form, and says what that cost and gained."""
    before = open_exported(file)
    kind: Kind = "static" if flags.quantize == "int8-static" else "dynamic"
    calibration = compare.files(flags.calibrate, before.about.view, 4, CALIBRATION) if flags.calibrate else None
    if calibration is None and kind == "static":
        calibration = _training_images(trained, flags)
    given = images if calibration is None else calibration
    write_atomically(file, quantize(file.read_bytes(), kind, before, given))
    rows = {"float32": before, "int8": open_exported(file)}
    outputs = {name: compare.in_batches(model, images, BATCH_SIZE) for name, model in rows.items()}
    speeds = compare.images_per_second({"vit_jax": trained, **rows}, images[:BATCH_SIZE])
    console.print(_table(outputs, labels, speeds))
    return compare.difference(outputs["int8"], outputs["float32"]), kind


def _check_agreement(found: Difference) -> None:
    if found.agreement < compare.AGREEMENT:
        least = human_percent(compare.AGREEMENT)
        raise Differs(
            f"int8 changes too many classes (fewer than {least} agree): nothing is kept of it; try the other kind"
        )


def _table(outputs: dict[str, np.ndarray], labels: Labels, speeds: dict[str, float]) -> Table:
    table = Table("model", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("accuracy", justify="right")
    table.add_column(f"images/s, {BATCH_SIZE} at once", justify="right")
    for name, speed in speeds.items():
        known = name in outputs and labels is not None and outputs[name].ndim == 2
        share = float((outputs[name].argmax(axis=1) == labels).mean()) if known else float("nan")
        table.add_row(name, human_percent(share) if known else "", f"{speed:,.0f}")
    return table


def _training_images(trained: Trained, flags: argparse.Namespace) -> Images:
    if not flags.workdir:
        raise UserError("--quantize int8-static needs images to calibrate with; give some as --calibrate PATH ...")
    view = trained.predictor.preprocessing
    return compare.split(trained.predictor.config, view, "train", CALIBRATION)[0]


def _images(flags: argparse.Namespace, trained: Trained, workdir: Workdir | None) -> tuple[Images, Labels]:
    """The images that the export is compared on, and their labels where they are known."""
    view, limit = trained.predictor.preprocessing, MEASURED if flags.quantize else COMPARED
    if flags.images:
        return compare.files(flags.images, view, trained.predictor.config.data.threads, limit), None
    if workdir is None:
        raise UserError("give images to compare the export on, e.g. --images photos/: published weights have none")
    return compare.split(trained.predictor.config, view, "test", limit)


def _file(out: Path, form: str) -> Path:
    """The file that --out names: itself, or `model.*` in a folder."""
    suffix = formats.SUFFIXES[form]
    if form == formats.HUGGINGFACE or out.suffix == suffix:
        return out
    if out.suffix in formats.SUFFIXES.values() and out.suffix:
        raise UserError(f"--out {out} is not called as --format {form} is; expected {out.with_suffix(suffix)}")
    return out / f"model{suffix}"


def _size(file: Path) -> str:
    files = [file] if file.is_file() else list(file.iterdir())
    return human_bytes(sum(path.stat().st_size for path in files))


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m vit_jax.export",
        description="Writes a trained model for other programs, reads it back, and compares it on real images.",
        epilog="Fields of the configuration: --config.<group>.<field>=<value>, e.g. --config.evaluate.use=best",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", type=Path, help="a run")
    model.add_argument("--weights", metavar="ADDRESS", help="or published weights: a file, a folder, hf://...")
    parser.add_argument("--format", required=True, choices=list(formats.SUFFIXES))
    parser.add_argument("--out", type=Path, required=True, help="a file (.onnx, .stablehlo, .safetensors) or a folder")
    parser.add_argument(
        "--with-preprocessing", action="store_true", help="the graph takes uint8 images, and normalises them itself"
    )
    parser.add_argument(
        "--quantize",
        default="",
        metavar="int8",
        choices=["int8", "int8-dynamic", "int8-static"],
        help="ONNX: int8 (int8-dynamic), or int8-static, with ranges from calibration images",
    )
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="PATH", help="images for int8-static (default: of the training)"
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", metavar="PATH", help="images to compare on (default: the test split)"
    )
    parser.add_data_dir()
    return parser
