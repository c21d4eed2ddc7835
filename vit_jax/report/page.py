"""A report: one page about one run or several, that needs nothing but itself.

    python -m vit_jax.report runs/digits --out report.html
    python -m vit_jax.report runs/vit runs/cnn --out report.html
    python -m vit_jax.report runs/digits --out report.html --watch

RUN is the folder of a run, finished or not, or a folder of runs, as `compare` makes it.
"""

import dataclasses
import datetime
import logging
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from vit_jax import augment, command, config, log
from vit_jax.command import UserError
from vit_jax.data import Data
from vit_jax.files import write_atomically
from vit_jax.human import human_bytes
from vit_jax.log import metric_value
from vit_jax.metrics import METRICS
from vit_jax.report import augmentations, classified, compared, curves, pictures, tables
from vit_jax.report.pictures import Album, said
from vit_jax.report.runs import COLORS, Run, find, flops_label, group_name, groups, read_runs
from vit_jax.tasks import Section, chosen
from vit_jax.workdir import Workdir

MOST_CLASSIFIED = 12  # runs whose predictions are shown
MOST_SHEETS = 4  # different augmentations
IMAGES = 10  # in a row that shows one
WATCH_SECONDS = 10


def render(
    runs: Sequence[Run],
    folders: Sequence[Path] = (),
    *,
    album: Album | None = None,
    refresh: int = 0,
) -> str:
    """The page of these runs; `folders` of comparisons add what their tables hold.

    album: reads their images; None: the page goes without. refresh: after so many seconds the page loads itself anew.
    """
    faults: list[tuple[str, str]] = []
    if album:
        album.faults.clear()  # those of an earlier page
    found = classifications(runs, album, faults)
    sections, strips = own_sections(runs, faults), sheets(runs, album)
    if album:
        faults += [(name, f"images are missing: {fault}") for name, fault in album.faults.items()]
    data = {
        "runs": [curve_data(run, i) for i, run in enumerate(runs)],
        "charts": curves.charts(runs),
        "flops": flops_label(runs),
        "plots": compared.plots(runs, folders),
        "classified": found,
        "images": album.uris if album else {},
    }
    return _template().render(
        title=title(runs),
        subtitle=subtitle(runs),
        runs=runs,
        colors=COLORS,
        legend=[
            {"number": number, "name": group_name(members), "runs": len(members), "color": number % COLORS}
            for number, members in groups(runs).items()
        ],
        headline=tables.headline(runs[0]) if len(runs) == 1 else [],
        summary=tables.summary(runs) if len(runs) > 1 else None,
        sections=sections,
        sheets=strips,
        texture=[row for folder in folders for row in compared.texture(folder)],
        differences=differences(runs),
        differing=[group_name(members) for members in groups(runs).values()],
        how=[tables.how(run) for run in runs],
        configuration=config.to_json(runs[0].config) if len(runs) == 1 else "",
        faults=faults,
        data=data,
        refresh=refresh,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def title(runs: Sequence[Run]) -> str:
    """The names of the runs, where they are few."""
    names = [group_name(members) for members in groups(runs).values()]
    return " · ".join(names) if len(names) <= 3 and sum(map(len, names)) < 60 else f"{len(runs)} runs"


def subtitle(runs: Sequence[Run]) -> str:
    """The models and the data sets."""
    models, data = (dict.fromkeys(names) for names in ((r.config.model["name"] for r in runs), map(_data_name, runs)))
    return f"{', '.join(models)} on {', '.join(data)}"


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The fields in which the groups differ: those that all have, and those that are of some models alone."""
    found = compared.differences([members[0] for members in groups(runs).values()])
    own = [item for item in found.items() if None in item[1]]
    return {"shared": [item for item in found.items() if item not in own], "own": own}


def _data_name(run: Run) -> str:
    name = run.config.data.name
    return Path(name).name if Path(name).is_absolute() else name


def curve_data(run: Run, number: int) -> dict[str, Any]:
    """What the page draws of a run's `metrics.jsonl`."""
    return {
        "name": run.name,
        "number": number,
        "group": run.group,
        "color": run.group % COLORS,
        "series": curves.series(run),
        "seconds": curves.seconds(run),
        "steps_per_epoch": run.steps_per_epoch,
        "flops_per_step": run.flops_per_step,
        "best": {"key": f"val/{run.monitor}", "step": run.best[0], "value": run.best[1]} if run.best else None,
    }


def classifications(runs: Sequence[Run], album: Album | None, faults: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Of each run with predictions: what `classified` says, and the images that it needs; `faults` gets the rest."""
    found = []
    for number, run in list(enumerate(runs))[:MOST_CLASSIFIED]:
        try:
            predictions = classified.read(run)
            if predictions is None:
                continue
            about = classified.describe(predictions)
            shown = {**classified.cards(predictions), "cells": classified.cells(predictions, about["shown"])}
        except Exception as fault:  # a damaged file: the rest of the page is whole
            faults.append((run.name, f"predictions are missing: {said(fault)}"))
            continue
        if album is not None:
            _add_images(album, run, shown)
        found.append({"run": number, "name": run.name, "ece": _ece(run), **about, **shown})
    return found


def _ece(run: Run) -> str:
    value = run.scalar("test", "ece")
    return metric_value("ece", value) if value is not None and np.isfinite(value) else ""


def _add_images(album: Album, run: Run, shown: dict[str, Any]) -> None:
    """Reads the images of cards and cells, and puts their keys in place of their places in the split."""
    cards = [card for name in ("mistakes", "hits") for card in shown[name]]
    places = [place for cell in shown["cells"].values() for place in cell]
    album.add(run, [*(card["place"] for card in cards), *places])
    if album.uris:
        for card in cards:
            card["image"] = album.key(run, card["place"])
        shown["cells"] = {cell: [album.key(run, i) for i in places] for cell, places in shown["cells"].items()}


def own_sections(runs: Sequence[Run], faults: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """What only the task of a run shows; `faults` gets what cannot be read."""
    found = []
    for run in runs[:MOST_CLASSIFIED]:
        try:
            own = chosen(run.config.task, run.config.distill).sections(run.workdir.path)
            sections = [_filled(s) for s in [*own, *tables.probed(run.workdir)]]
        except Exception as fault:  # a damaged file: the rest of the page is whole
            faults.append((run.name, f"what its task shows is missing: {said(fault)}"))
            continue
        found += [{"run": run.name if len(runs) > 1 else "", **section} for section in sections]
    return found


def _filled(section: Section) -> dict[str, Any]:
    columns = [METRICS[name].label if name in METRICS else name for name in section.columns]
    rows = [
        [
            metric_value(name, value) if name in METRICS and isinstance(value, float) else value
            for name, value in zip(section.columns, row, strict=True)
        ]
        for row in section.rows
    ]
    picture = pictures.of_file(section.picture) if section.picture and section.picture.is_file() else ""
    return {"title": section.title, "text": section.text, "picture": picture, "columns": columns, "rows": rows}


def sheets(runs: Sequence[Run], album: Album | None) -> list[dict[str, Any]]:
    """Training images before and after augmentation, of each way in which the runs augment."""
    found: dict[str, dict[str, Any]] = {}
    if album is None:
        return []
    for run in runs:
        key = repr((run.config.data, run.config.augment))
        if key not in found and len(found) < MOST_SHEETS and (rows := augmented(run, album)):
            strips = {caption: [pictures.thumbnail(image) for image in images] for caption, images in rows.items()}
            found[key] = {"name": run.name, "rows": strips}
    return list(found.values())


def augmented(run: Run, album: Album) -> dict[str, np.ndarray]:
    """Rows of training images under captions; {} where the data set cannot be opened, or there is no time.

    To compile flips, crops and turns takes 2 s of a CPU the first time, a policy several times as long.
    """
    if run.workdir.path in album.rows:
        return album.rows[run.workdir.path]
    hurry = album.has_deadline and run.config.augment.policy != "none"
    data = album.data(run) if not (album.out_of_time or hurry) else ""
    if isinstance(data, str):
        if data:
            album.faults[run.name] = data
        return {}
    _, used = run.workdir.preprocessing(run.config.augment)
    train = dataclasses.replace(run.config.train, accumulate=1)
    prepared = dataclasses.replace(run.config, train=train, augment=used)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            found = augmentations.pictures(prepared, IMAGES, 2, data, quick=True)
    except Exception as fault:  # a page without them is better than none
        logging.getLogger(__name__).debug("no augmented images: %s", fault)
        found = {}
    album.rows[run.workdir.path] = found
    return found


@cache
def _template() -> Any:
    import jinja2  # not before there is a page to write

    loader = jinja2.PackageLoader("vit_jax.report", "template")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["json"] = _json
    return environment.get_template("page.html")


def _json(value: Any) -> Any:
    """JSON that may stand in a script element."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False)


def write(addresses: Sequence[str | Path], out: Path, *, refresh: int = 0, album: Album | None = None) -> list[Run]:
    """Writes the page of the runs at these addresses, as `render`; the runs."""
    folders, compared_in = find(addresses)
    runs = read_runs(folders, watched=refresh > 0)
    unfinished = any(not run.finished for run in runs)
    text = render(runs, compared_in, album=album, refresh=refresh if unfinished else 0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}; give another file") from error
    return runs


def watch(addresses: Sequence[str], out: Path, console: Console, album: Album | None) -> None:
    """Writes the page again and again, until every run is finished."""
    first = True
    while not all(run.finished for run in write(addresses, out, refresh=WATCH_SECONDS, album=album)):
        if first:
            console.print(f"{out} follows the runs; Ctrl-C ends it", soft_wrap=True, markup=False)
        first = False
        time.sleep(WATCH_SECONDS)


def write_report(workdir: str | Path, data: Data | None = None, seconds: int | float = 1) -> None:
    """Writes `report.html` into the folder of a run that has just ended. What goes wrong is logged, and no more.

    data: as the run opened it. seconds: how long it may read images.
    """
    folder = Workdir(workdir)
    try:
        album = Album(seconds, {folder.path: data} if data is not None else None)
        [run] = read_runs([folder])
        write_atomically(folder.report_file, render([run], album=album))
    except Exception as fault:  # the run itself is whole
        logging.getLogger(__name__).warning("%s could not be written: %s", folder.report_file, fault)
        return
    try:
        log_pictures(run, album)
    except Exception as fault:
        logging.getLogger(__name__).warning("the pictures of %s could not be logged: %s", folder, fault)


def write_comparison_report(folder: Path) -> None:
    """Writes `report.html` into the folder of a comparison; what goes wrong is logged, and no more."""
    out = folder / Workdir(folder).report_file.name
    try:
        write([folder], out, album=Album())
    except Exception as fault:  # the runs and their table are whole
        logging.getLogger(__name__).warning("%s could not be written: %s", out, fault)


def log_pictures(run: Run, album: Album) -> None:
    """Adds what `drawn` draws to TensorBoard and the trackers of the run."""
    settings = run.config.log
    trackers = log.chosen_trackers(settings)
    if settings.tensorboard or trackers:
        found = drawn(run, album)
        log.write_pictures(
            run.workdir.path,
            run.step,
            found,
            tensorboard=settings.tensorboard,
            trackers=trackers,
            ending="finished" if run.finished else "stopped",
        )


def drawn(run: Run, album: Album) -> dict[str, Image.Image]:
    """What TensorBoard and the trackers get to see of the page: the augmented images, and the confusion matrix."""
    found = {}
    if rows := album.rows.get(run.workdir.path):
        found["augmentation"] = augment.contact_sheet(rows)
    if (predictions := classified.read(run)) and len(predictions.class_names) <= classified.SHOWN_CLASSES:
        found["confusion"] = classified.picture(predictions)
    return found


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m vit_jax.report", description="One page about one run or several.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or of comparisons")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page: report.html")
    parser.add_argument("--watch", action="store_true", help="write it again every ten seconds until all are finished")
    parser.add_argument("--no-images", action="store_true", help="leave out images of the data set")
    flags = parser.parse_args(argv)
    if flags.out.is_dir():
        raise UserError(f"--out {flags.out} is a folder; give a file, e.g. {flags.out / 'report.html'}")
    jax.config.update("jax_platforms", "cpu")  # it may run beside a training that has the GPU's memory
    console, album = Console(highlight=False), None if flags.no_images else Album()
    if flags.watch:
        watch(flags.runs, flags.out, console, album)
    else:
        write(flags.runs, flags.out, album=album)
    size = human_bytes(flags.out.stat().st_size)
    console.print(f"wrote {flags.out}, {size}", soft_wrap=True, markup=False)
    return command.DONE
