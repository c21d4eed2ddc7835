"""What several runs tell together: accuracy against what was swept, against compute, and under corruption."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.config.schema import schema_of, value_of
from vit_jax.config.sweep import plain_name
from vit_jax.metrics import METRICS
from vit_jax.report.curves import chart, finite, numbers
from vit_jax.report.runs import COLORS, Run, flops_label, group_name, groups
from vit_jax.workdir import COMPARISON

LOGARITHMIC = 8  # a field whose values span more than this factor gets a logarithmic axis
IGNORED = ("seed", "data.choice")


def plots(runs: Sequence[Run], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every plot that the runs and the folders of comparisons give."""
    return [*swept(runs), *compute(runs), *(plot for folder in folders for plot in corrupted(folder, runs))]


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """The fields in which the runs differ, with the value of each run; None where its model has no such field."""
    values = [_values(run) for run in runs]
    keys = dict.fromkeys(key for known in values for key in known)
    return {
        key: [str(known[key]) if key in known else None for known in values]
        for key in keys
        if key not in IGNORED and len({repr(known.get(key)) for known in values}) > 1
    }


def _values(run: Run) -> dict[str, Any]:
    return {key: value_of(run.config, key) for key in schema_of(run.config)}


def _number(run: Run, key: str, value: Any) -> float | None:
    """The number that a field stands for: of one number in brackets that number, of no limit all images."""
    if key == "data.limit" and value == 0:
        return float(run.images["train"]) if run.images else None
    if isinstance(value, tuple | list) and len(set(value)) == 1:
        value = value[0]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tested(runs: Sequence[Run]) -> tuple[str, dict[int, list[float]]]:
    """The metric that the runs have in common, and its finite values on the test split, by group."""
    monitor = runs[0].monitor
    found = {
        number: finite(value for run in members if (value := run.scalar("test", monitor)) is not None)
        for number, members in groups(runs).items()
    }
    return monitor, {number: values for number, values in found.items() if values}


def swept(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each field that alone distinguishes some of the runs, and is a number: the test metric against it."""
    monitor, tested = _tested(runs)
    firsts = {number: members[0] for number, members in groups(runs).items() if number in tested}
    values = {number: _values(run) for number, run in firsts.items()}
    found = []
    for key in differences(list(firsts.values())):
        families: dict[str, list[tuple[float, int]]] = {}
        for number, run in firsts.items():
            x = _number(run, key, values[number].get(key))
            if x is not None:
                rest = {name: repr(value) for name, value in values[number].items() if name not in (key, *IGNORED)}
                families.setdefault(json.dumps(rest), []).append((x, number))
        lines = [sorted(members) for members in families.values() if len({x for x, _ in members}) > 1]
        if not lines:
            continue
        drawn = [
            _line(_family_name([firsts[number] for _, number in line]), i, line, tested) for i, line in enumerate(lines)
        ]
        found.append(_plot(f"sweep-{key}", monitor, f"against {key}", key, drawn))
    return found


def _family_name(members: Sequence[Run]) -> str:
    """What the names of the runs begin with."""
    return group_name(members).rstrip("-_ =.0123456789") or members[0].name


def _line(
    label: str, number: int, members: Sequence[tuple[float, int]], tested: Mapping[int, list[float]]
) -> dict[str, Any]:
    """A line through the means over the seeds, and a point for each seed."""
    points = [(x, value) for x, group in members for value in tested[group]]
    return {
        "label": label,
        "color": number % COLORS,
        "x": numbers(x for x, _ in members),
        "y": numbers(float(np.mean(tested[group])) for _, group in members),
        "points": [numbers(pair) for pair in points],
    }


def compute(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The test metric against the floating-point operations of training, of two groups or more."""
    monitor, tested = _tested(runs)
    lines = []
    for number, members in groups(runs).items():
        spent = [run.flops_per_step * run.step for run in members if run.flops_per_step]
        if number in tested and len(spent) == len(members):
            lines.append(_line(group_name(members), number, [(float(np.mean(spent)), number)], tested))
    differ = len({line["x"][0] for line in lines}) > 1
    return [_plot("compute", monitor, "against compute", f"{flops_label(runs)} of training", lines)] if differ else []


def corrupted(folder: Path, runs: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """The test metric against the severity of each kind of corruption, from the table of a comparison.

    Lines have the colours of the runs of their configuration.
    """
    rows = _read(folder / f"{COMPARISON}.json") or []
    variants: dict[str, dict[str, list[tuple[float, list[float]]]]] = {}
    clean: dict[str, list[float]] = {}
    monitor = ""
    for row in rows:
        chosen = dict(text.split("=", 1) for text in row.get("with", []) if "=" in text)
        if "corruption.kind" not in chosen:
            continue
        monitor = row["monitor"]
        values, kind = finite(row.get(f"test/{monitor}", [])), chosen["corruption.kind"]
        if not values:
            continue
        if kind == "none":
            clean[row["variant"]] = values
        else:
            kinds = variants.setdefault(row["variant"], {})
            kinds.setdefault(kind, []).append((float(chosen.get("corruption.severity", 1)), values))
    lines = []
    dashes = list(dict.fromkeys(kind for kinds in variants.values() for kind in kinds))
    for i, (variant, kinds) in enumerate(variants.items()):
        own = (run.group for run in runs if run.workdir.path.name.startswith(f"{plain_name(variant)}-seed"))
        color = next(own, i)
        for kind, found in kinds.items():
            members = sorted([*([(0.0, clean[variant])] if variant in clean else []), *found])
            tested = {at: values for at, (_, values) in enumerate(members)}
            line = _line(f"{variant}: {kind}", color, [(x, at) for at, (x, _) in enumerate(members)], tested)
            lines.append(line | {"dash": dashes.index(kind) % 4})
    return [_plot("corruption", monitor, "under corruption", "severity", lines)] if lines else []


def _plot(identity: str, monitor: str, about: str, label: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    xs = [x for line in lines for x in line["x"] if x is not None]
    drawn = chart(monitor)
    return {
        "id": identity,
        "title": f"Test {METRICS[monitor].label if monitor in METRICS else monitor} {about}",
        "x": label,
        "log_x": bool(xs) and min(xs) > 0 and max(xs) >= LOGARITHMIC * min(xs),
        "percent": drawn["percent"],
        "lines": list(lines),
    }


def texture(folder: Path) -> list[dict[str, Any]]:
    """The rows of `texture.json`, of `vit_jax texture`, where the folder or one in it has such a file."""
    for path in (folder / "texture.json", *sorted(folder.glob("*/texture.json"))):
        if found := _read(path):
            rows = found["models"].items()
            return [
                {"name": name, **{key: None if _missing(value) else value for key, value in row.items()}}
                for name, row in rows
            ]
    return []


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _read(path: Path) -> Any:
    """The content of a JSON file; None where it is missing or damaged: the page then does without."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
