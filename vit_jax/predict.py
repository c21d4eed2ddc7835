"""What a trained model takes images for: a table, JSON lines or CSV.

    python -m vit_jax.predict --workdir runs/flowers photos/ more.jpg
    python -m vit_jax.predict --weights hf://google/vit-base-patch16-224 photos/ --out predictions.csv

Folders are searched at any depth. JSON lines and CSV are written as the images are read, so there may be any number,
and nothing else is on stdout. Of a segmentation, --out is a folder: each image gets a PNG of its mask, with a palette,
and one of the image under its mask. A broken file is named on stderr, the others go on, and the exit code is 1.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax import command, config, download, inference, log
from vit_jax.command import NO_ROOM, Failure, UserError
from vit_jax.data.files import find_images
from vit_jax.inference import Predictor
from vit_jax.inference.masks import Segmented
from vit_jax.tasks.segmentation import pictures
from vit_jax.workdir import Workdir

Result = tuple[str, list[tuple[str, float]]]  # file, and its best classes with their probabilities, best first
SUFFIXES = {".jsonl": "json", ".csv": "csv"}  # of --out
MASKS_AT_ONCE = 8  # images at most: each is kept at its own size
WIDE = 10_000  # columns of a table that no terminal limits


def write_json(results: Iterable[Result], out: IO[str], top: int) -> None:
    """For each image a line `{"file": ..., "top": [{"class": ..., "probability": ...}, ...]}`, best class first."""
    for file, best in results:
        found = [{"class": name, "probability": probability} for name, probability in best]
        print(json.dumps({"file": file, "top": found}, ensure_ascii=False), file=out, flush=True)


def write_csv(results: Iterable[Result], out: IO[str], top: int) -> None:
    """A header, then for each image a row: file, class, probability, class 2, probability 2 ... up to `top`."""
    rows = csv.writer(out, lineterminator="\n")
    numbers = ["", *(f" {i}" for i in range(2, top + 1))]
    rows.writerow(["file", *(f"{name}{number}" for number in numbers for name in ("class", "probability"))])
    for file, best in results:
        rows.writerow([file, *(value for pair in best for value in pair)])
        out.flush()


def write_table(results: Iterable[Result], out: IO[str], top: int) -> None:
    """For people: all images in one table, once all are there."""
    table = Table("file", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    if top > 1:
        table.add_column("next")
    for file, ((name, probability), *others) in results:
        next_ones = ", ".join(f"{other} {log.human_percent(share)}" for other, share in others)
        cells = [Text(file, overflow="fold"), Text(name, style="bold"), Text(log.human_percent(probability))]
        # Cut off where the terminal ends: the column itself may shrink, so that the others need not.
        rest = [Text(next_ones, style="dim", no_wrap=True, overflow="ellipsis")] if top > 1 else []
        table.add_row(*cells, *rest)
    if table.row_count:
        Console(file=out, highlight=False, width=None if out.isatty() else WIDE).print(table)


WRITERS = {"table": write_table, "json": write_json, "csv": write_csv}


def predict(
    model: Predictor, files: Sequence[Path], top: int, batch_size: int, broken: dict[str, str], *, draft: bool = False
) -> Iterator[Result]:
    """The result of each file, in order; those that cannot be read go into `broken` with what is wrong, and to stderr.

    Says at the end, on stderr, how many images a second that were.
    """
    start = time.monotonic()
    first, done, ready = 0, 0, start
    with download.progress("predicting", "images") as show:
        show(0, len(files))
        for predictions, faults in model.predict_files(files, batch_size, draft=draft):
            broken |= faults
            for file, fault in faults.items():
                print(f"{file} is left out: {fault}", file=sys.stderr)
            if not done:  # the first batch had to be compiled
                first, ready = len(predictions), time.monotonic()
            done += len(predictions)
            yield from zip(predictions.files, predictions.top(top), strict=True)
            show(done + len(broken), len(files))
    end = time.monotonic()
    pace = f", then {(done - first) / (end - ready):,.0f} images/s" if done > first else ""
    if done:
        print(f"{done:,} images; the first {first:,} took {log.human_seconds(ready - start)}{pace}", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    flags, overrides = _parser().parse(argv)
    for name in ("top", "batch_size"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} {getattr(flags, name)} is not positive")
    if flags.workdir and not (workdir := Workdir(flags.workdir)).is_run():
        raise UserError(
            f"{workdir} holds no run: it has no {workdir.config_file.name} and {workdir.preprocessing_file.name}; "
            "give the --workdir of a training run, or published weights as --weights"
        )
    config.check_read(overrides, "predict" if flags.workdir else "weights")
    files = find_images(flags.paths)
    if flags.workdir and inference.predicts_masks(workdir.config(overrides)):
        return _predict_masks(flags, overrides, files)
    form = _form(flags)
    predictor = inference.load(flags.workdir or flags.weights, overrides=overrides)
    top, broken = min(flags.top, len(predictor.class_names)), dict[str, str]()
    with _opened(flags.out) as out:
        WRITERS[form](predict(predictor, files, top, flags.batch_size, broken, draft=flags.draft), out, top)
    if broken:
        print(f"{len(broken):,} of {len(files):,} files could not be read", file=sys.stderr)
    return command.FAULT if broken else command.DONE


def _predict_masks(flags: argparse.Namespace, overrides: Sequence[str], files: Sequence[Path]) -> int:
    """Writes the mask of each file, and the image under its mask, into the folder --out.

    With --json stdout gets a line for each: the file, its mask and overlay, and the share of each class in its pixels.
    """
    if flags.out is None or flags.csv or flags.out.suffix:
        raise UserError("this run predicts masks: give --out FOLDER for them, and --json for a line on each, not --csv")
    targets = _mask_files(files, flags.out)
    model, broken = inference.load_masks(flags.workdir, overrides=overrides), 0
    for found, faults in model.predict_files(files, min(flags.batch_size, MASKS_AT_ONCE)):
        for file, fault in faults.items():
            print(f"{file} is left out: {fault}", file=sys.stderr)
        broken += len(faults)
        for one in found:
            line = _write_mask(one, targets[one.name], model.class_names)
            if flags.json:
                print(json.dumps(line, ensure_ascii=False), flush=True)
    print(f"{len(files) - broken:,} masks in {flags.out}", file=sys.stderr)
    return command.FAULT if broken else command.DONE


def _mask_files(files: Sequence[Path], out: Path) -> dict[str, Path]:
    """Where the mask of each file goes: `NAME.png`, or of two files that differ in their endings alone `NAME.jpg.png`.

    Below `out` as the images are below the folder that has them all. Raises `UserError` where a mask or an overlay
    would take the place of an image, or of another mask or overlay.
    """
    places = {str(path): Path(os.path.abspath(path)) for path in files}  # `..` would lead out of the folder
    root = os.path.commonpath([place.parent for place in places.values()])
    plain = {name: out / os.path.relpath(place.with_suffix(""), root) for name, place in places.items()}
    twice = {path for path, count in Counter(plain.values()).items() if count > 1}
    targets = {
        name: path.with_name(f"{Path(name).name}.png" if path in twice else f"{path.name}.png")
        for name, path in plain.items()
    }
    given, taken = {path.resolve() for path in files}, dict[Path, str]()
    for name, path in targets.items():
        for file in (path, _overlay_file(path)):
            if file.resolve() in given:
                raise UserError(f"--out {out}: the mask of {name} would replace an image, {path}; give another folder")
            if file in taken:
                raise UserError(f"{taken[file]} and {name} would both be written to {file}; give one of them at a time")
            taken[file] = name
    return targets


def _overlay_file(mask: Path) -> Path:
    return mask.with_name(f"{mask.stem}-overlay.png")


def _write_mask(one: Segmented, mask: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """Writes the mask and the overlay; what --json tells of them."""
    mask.parent.mkdir(parents=True, exist_ok=True)
    overlay, k = _overlay_file(mask), len(class_names)
    pictures.save_mask(mask, one.mask, k)
    Image.fromarray(pictures.overlay(one.image, one.mask, k)).save(overlay)
    shares = np.bincount(one.mask.reshape(-1), minlength=k) / one.mask.size
    of_class = {name: float(share) for name, share in zip(class_names, shares, strict=True) if share}
    return {"file": one.name, "mask": str(mask), "overlay": str(overlay), "shares": of_class}


def _parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m vit_jax.predict",
        description="What a trained model takes images for: a table, JSON lines or CSV.",
        epilog="Fields of the configuration: --config.<group>.<field>=<value>, e.g. --config.evaluate.use=best, "
        "--config.data.threads=16",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, and folders that are searched for them")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", type=Path, help="a run")
    model.add_argument(
        "--weights", metavar="ADDRESS", help="or published weights: a file, a folder, https://, hf://..."
    )
    parser.add_argument("--top", type=int, default=5, help="classes to name for each image (default: 5)")
    parser.add_argument("--batch_size", type=int, default=128, help="images computed at once (default: 128)")
    parser.add_argument("--draft", action="store_true", help="decode large JPEG photos faster, a little less exactly")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON lines: one object for each image")
    form.add_argument("--csv", action="store_true", help="a header, and a row for each image")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="instead of stdout: a file .jsonl or .csv; of masks a folder"
    )
    return parser


def _form(flags: argparse.Namespace) -> str:
    """The format: as a flag says, or as the file is called."""
    if flags.json or flags.csv:
        return "json" if flags.json else "csv"
    if flags.out and flags.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {flags.out} does not end in {', '.join(SUFFIXES)}; rename it, or add --json or --csv")
    return SUFFIXES[flags.out.suffix.lower()] if flags.out else "table"


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    """The file, or stdout; names of files that are not UTF-8 are written as they are."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    plain = not path.exists() or path.is_file()  # not a pipe, nor a device
    target = path.resolve() if plain else path  # a link stays one
    unfinished = target.with_name(f"{target.name}.part") if plain else target
    stopped = False
    try:
        file = unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise UserError(f"cannot write --out {path}: {error.strerror}; give another file") from error
    try:
        with file:
            yield file
        if plain:
            os.replace(unfinished, target)
    except KeyboardInterrupt:
        stopped = True
        if plain:
            print(f"what was finished is in {unfinished}", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise Failure(f"--out {path} cannot be written: {error.strerror}; make room, or give another file") from error
    finally:
        if plain and not stopped:
            unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
