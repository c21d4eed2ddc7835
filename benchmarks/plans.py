"""The tables of what `vit_jax.plan` and `benchmarks.tpu_plan` compiled for machines that are not there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax import log

Row = dict[str, Any]


def read(folder: Path) -> list[Row]:
    """A row for each plan, and for each comparison with the textbook's model."""
    rows = []
    for path in sorted(folder.glob("plan-*.json")):
        content = json.loads(path.read_text())
        for row in content if isinstance(content, list) else [content]:
            rows.append(row | {"kind": "textbook" if "textbook" in row else "plan"})
    return rows


def plans(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; of GPUs, whose time is a bound, `kernels` and `checks` tell."""
    header = ["machine", "configuration", "cores", "images a core", "memory of a core", "of it state", "step"]
    header += ["images/s", "MFU", "date"]
    cells = [
        [
            row["topology"],
            _configuration(row),
            str(row["devices"]),
            f"{row['images_per_core']:g}",
            log.human_bytes(row["memory"]["total"]) + ("" if row["memory"]["fits"] else ": too much"),
            log.human_bytes(row["memory"]["state"]),
            f"{1000 * row['step_seconds']:,.0f} ms" if row["step_seconds"] else "",
            f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "",
            f"{100 * row['mfu']:.1f} %" if row["mfu"] else "",
            _date(row),
        ]
        for row in rows
        if row["kind"] == "plan" and not (row["measured"] or row.get("kernels"))
    ]
    return header, cells


def checks(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: what was predicted for this CPU, and what then was measured on it."""
    header = ["machine", "configuration", "batch", "data set", "step, predicted", "measured"]
    header += ["memory, predicted", "measured", "date"]
    cells = [
        [
            row["topology"],
            _configuration(row),
            str(row["batch_size"]),
            "its published size" if row["assumed"] else "at hand",
            f"{1000 * row['step_seconds']:,.0f} ms",
            f"{1000 * row['measured']['step_seconds']:,.0f} ms",
            log.human_bytes(row["memory"]["total"] * row["devices"]),  # what is measured is of all devices together
            log.human_bytes(row["measured"]["peak_bytes"]),
            _date(row),
        ]
        for row in rows
        if row["kind"] == "plan" and row["measured"]
    ]
    return header, cells


def kernels(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: of each step that a GPU was measured with, what its kernels do, and those of newer code."""
    header = ["machine", "configuration", "batch", "read and written by all but products and attention", "now"]
    header += ["kernels", "now", "step, predicted", "now"]
    same = ("topology", "config", "overrides", "batch_size")
    cells = []
    for row in [row for row in rows if row["kind"] == "plan" and row["measured"] and row.get("kernels")]:
        newer = [r for r in rows if r["kind"] == "plan" and not r["measured"] and all(r[k] == row[k] for k in same)]
        for now in newer[-1:]:
            pair = (row, now)
            traffic = (log.human_bytes(each["kernels"]["bytes"]) for each in pair)
            numbers = (f"{each['kernels']['number']:,}" for each in pair)
            times = (f"{1000 * each['step_seconds']:,.1f} ms" for each in pair)
            cells.append([row["topology"], _configuration(row), str(row["batch_size"]), *traffic, *numbers, *times])
    return header, cells


def textbook(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: ViT-B/16's modelled step beside that of a textbook's ViT."""
    header = ["machine", "images a core", "textbook's step", "ours", "ratio", "textbook's memory", "ours"]
    cells = [
        [
            row["topology"],
            str(row["images_per_core"]),
            *(f"{1000 * row[whose]['step_seconds']:.1f} ms" for whose in ("textbook", "ours")),
            f"{row['step_seconds_ratio']:.3f}",
            *(log.human_bytes(row[whose]["memory"]) for whose in ("textbook", "ours")),
        ]
        for row in rows
        if row["kind"] == "textbook"
    ]
    return header, cells


def _configuration(row: Row) -> str:
    """The file, and what was changed in it; what `auto` chose."""
    changes = [text for text in (*row["overrides"], *row["sweep"]) if not text.startswith("data.data_dir=")]
    words = [f"`{text}`" + (f" ({row['remat']})" if text == "model.remat=auto" else "") for text in changes]
    return " ".join([row["config"].removeprefix("configs/"), *words])


def _date(row: Row) -> str:
    """The day; empty for results from before they said it."""
    return row.get("date", "")[:10]
