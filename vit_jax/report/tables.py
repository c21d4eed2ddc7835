"""The tables of a report: the summary of all runs, what differs between them, and how each was run."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.human import human_seconds
from vit_jax.log import human_count, metric_value
from vit_jax.metrics import METRICS
from vit_jax.report.curves import finite
from vit_jax.report.runs import COLORS, Run, group_name, groups
from vit_jax.tasks import Section
from vit_jax.workdir import Workdir

# Facts of a run: the title of the column, how it is written, whether more is better.
FACTS: dict[str, tuple[str, Callable[[Any], str], bool]] = {
    "parameters": ("parameters", human_count, False),
    "flops_per_image": ("FLOPs / image", human_count, False),
    "training_flops": ("training FLOPs", human_count, False),
    "images_per_second": ("images/s", "{:,.0f}".format, True),
    "seconds": ("time", human_seconds, False),
    "energy_kwh": ("energy (kWh)", "{:.3g}".format, False),
}


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The table of all runs, and where several have the same configuration that of their means."""
    gathered = groups(runs)
    found = {"runs": _table([(run.name, [run]) for run in runs])}
    if len(gathered) < len(runs):
        found["groups"] = _table([(group_name(members), members) for members in gathered.values()])
    return found


def _table(rows: Sequence[tuple[str, Sequence[Run]]]) -> dict[str, Any]:
    """Columns that hold a value, and the rows; the best value of a column of several is marked."""
    everyone = [run for _, members in rows for run in members]
    kept = [column for column in _columns(everyone) if any(column["of"](run) is not None for run in everyone)]
    cells = [[_cell(column, members) for column in kept] for _, members in rows]
    for at, column in enumerate(kept):
        known = [row[at] for row in cells if row[at]["value"] is not None]
        if len({cell["value"] for cell in known}) > 1:
            best = (max if column["higher"] else min)(cell["value"] for cell in known)
            for cell in known:
                cell["best"] = cell["value"] == best
    return {
        "columns": [{"title": column["title"], "about": column["about"]} for column in kept],
        "rows": [
            {
                "name": name,
                "color": members[0].group % COLORS,
                "model": members[0].config.model["name"],
                "seeds": len(members),
                "status": next((run.status for run in members if not run.finished), ""),
                "cells": row,
            }
            for (name, members), row in zip(rows, cells, strict=True)
        ],
    }


def _columns(runs: Sequence[Run]) -> list[dict[str, Any]]:
    monitors = dict.fromkeys(run.monitor for run in runs)
    names = dict.fromkeys([*monitors, *METRICS])  # first what ranks checkpoints: of masks the mean IoU, not the loss
    wanted = [("test", name) for name in names] + [("best_val", name) for name in monitors]
    wanted += [("before", name) for name in monitors]
    splits = {"test": "test", "best_val": "best val", "before": "untrained"}
    metrics = [
        {
            "title": f"{splits[split]} {METRICS[name].short}",
            "about": f"{splits[split]} {METRICS[name].label}",
            "of": lambda run, split=split, name=name: run.scalar(split, name),
            "text": lambda value, name=name: metric_value(name, value),
            "percent": METRICS[name].percent,
            "higher": METRICS[name].higher_is_better,
        }
        for split, name in wanted
        if name in METRICS
    ]
    facts = [
        {
            "title": title,
            "about": title,
            "of": lambda run, key=key: run.fact(key),
            "text": text,
            "percent": False,
            "higher": higher,
        }
        for key, (title, text, higher) in FACTS.items()
    ]
    return [*metrics, *facts]


def _cell(column: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The mean of what is finite; where runs lack it, or diverged, the cell says how many it stands for."""
    found = [value for run in runs if (value := column["of"](run)) is not None]
    values = finite(found)
    if not values:
        return {"value": None, "text": column["text"](found[0]) if found else "", "spread": "", "best": False}
    value = float(np.mean(values))
    notes = []
    if len(values) > 1 and column["about"] not in (title for title, *_ in FACTS.values()):
        deviation = float(np.std(values, ddof=1))
        notes.append(f"± {100 * deviation:.2f}" if column["percent"] else f"± {deviation:.4f}")
    if len(values) < len(runs):
        notes.append(f"{len(values)} of {len(runs)} seeds")
    return {"value": value, "text": column["text"](value), "spread": ", ".join(notes), "best": False}


def headline(run: Run) -> list[dict[str, str]]:
    """The numbers that stand in large letters above the page of one run: metrics, then facts."""
    table = _table([(run.name, [run])])
    pairs = zip(table["columns"], table["rows"][0]["cells"], strict=True)
    return [{"label": column["about"], "text": cell["text"]} for column, cell in pairs if cell["text"]]


def probed(workdir: Workdir) -> list[Section]:
    """What `evaluate --probe` found of a run's frozen features, a row for each time."""
    found = workdir.probes()
    asked = [(report, split) for report in found for split in _splits(report)]
    names = [name for name in METRICS if any(f"{split}/{name}" in report for report, split in asked)]
    rows = [
        (
            " ".join([split, *report["with"]]),
            f"{report['train_images']:,}",
            *(report.get(f"{split}/{name}", "") for name in names),
        )
        for report, split in asked
    ]
    text = "Classes, read off the frozen features: training images without augmentation taught."
    return [Section("Probes", text, columns=("asked", "training images", *names), rows=rows)] if rows else []


def _splits(report: dict[str, Any]) -> list[str]:
    """The splits that a report has metrics of; that of random parameters comes last."""
    return list(dict.fromkeys(key.rpartition("/")[0] for key in report if "/" in key))


def how(run: Run) -> dict[str, Any]:
    """How a run was made: command, time, versions, hardware, data, warnings."""
    last = run.starts[-1] if run.starts else {}
    versions = last.get("versions", {})
    images = ", ".join(f"{purpose} {number:,}" for purpose, number in run.images.items() if number)
    rows = {
        "status": run.status,
        "command": last.get("command"),
        "started": " · ".join(_when(start["time"]) for start in run.starts if "time" in start),
        "device": run.fact("device"),
        "data": f"{run.config.data.name}{f': {images} images' if images else ''}",
        "steps": f"{run.step:,}" + (f", {run.steps_per_epoch:,} an epoch" if run.steps_per_epoch else ""),
        "seed": str(run.config.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "broken images": str(run.result["skipped_images"]) if run.result.get("skipped_images") else "",
        "folder": str(run.workdir),
    }
    return {
        "name": run.name,
        "color": run.group % COLORS,
        "rows": {key: value for key, value in rows.items() if value},
        "warnings": run.fact("warnings") or [],
    }


def _when(time: str) -> str:
    return datetime.datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M UTC")
