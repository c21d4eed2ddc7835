"""The curves of a run, thinned out for a page: what a person sees stays, peaks included."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vit_jax.metrics import METRICS
from vit_jax.report.runs import Run

POINTS = 800  # of a curve at most: more than a screen has pixels for
OTHERS = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "images_per_second": "images per second",
}
MORE = {
    "param_norm": "parameter norm",
    "gradient_noise_scale": "gradient noise scale",
    "input_wait_fraction": "share of time waiting for images",
    "skipped_updates": "skipped updates",
}
LOGARITHMIC = ("loss", "grad_norm", "gradient_noise_scale")  # of a positive quantity whose ratios tell


def series(run: Run) -> dict[str, list[list[Any]]]:
    """Steps and values of every scalar that the run logged; None where a value is not finite."""
    names = dict.fromkeys(name for line in run.lines for name in line if name != "step")
    found = {}
    for name in names:
        rows = [(line["step"], line[name]) for line in run.lines if name in line]
        steps, values = (np.asarray(column, np.float64) for column in zip(*rows, strict=True))
        kept = thinned(values)
        found[name] = [steps[kept].astype(int).tolist(), numbers(values[kept])]
    return found


def thinned(values: Float[np.ndarray, " n"], points: int = POINTS) -> Bool[np.ndarray, " n"]:
    """Which values stay: the first and the last, and the least and the largest of each of equal parts."""
    n = len(values)
    if n <= points:
        return np.ones(n, bool)
    kept = np.zeros(n, bool)
    kept[[0, -1]] = True
    ends = np.linspace(0, n, points // 2 + 1).astype(int)
    for begin, end in zip(ends[:-1], ends[1:], strict=True):
        part = np.nan_to_num(values[begin:end], posinf=np.finfo(float).max)
        kept[begin + part.argmin()] = kept[begin + part.argmax()] = True
    return kept


def seconds(run: Run) -> list[list[Any]]:
    """Steps and the seconds of training until then, evaluations left out; [[], []] where nothing tells."""
    rows = [
        (line["step"], line["train/images_per_second"]) for line in run.lines if line.get("train/images_per_second")
    ]
    if not rows:
        return [[], []]
    steps, speeds = (np.asarray(column, np.float64) for column in zip(*rows, strict=True))
    passed = np.cumsum(np.diff(steps, prepend=0) * run.config.train.batch_size / speeds)
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS // 2)).astype(int))
    return [[0, *steps[kept].astype(int).tolist()], [0, *numbers(passed[kept])]]


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The charts of the page in their order; those with `more` stand behind a fold."""
    logged = {name for run in runs for line in run.lines for name in line}
    kinds = [name.partition("/")[2] for name in sorted(logged - {"step"})]
    monitors = dict.fromkeys(run.monitor for run in runs)
    wanted = ["loss", *monitors, *METRICS, *OTHERS, *MORE, *kinds]
    return [chart(name) for name in dict.fromkeys(wanted) if name in kinds]


def chart(name: str) -> dict[str, Any]:
    """How a metric, or another scalar of training, is drawn."""
    metric = METRICS.get(name)
    title = metric.label if metric else OTHERS.get(name) or MORE.get(name) or name.replace("_", " ")
    return {
        "key": name,
        "title": title[:1].upper() + title[1:],
        "percent": bool(metric and metric.percent),
        "logarithmic": name in LOGARITHMIC,
        "more": not (metric or name in OTHERS),
    }


def finite(values: Iterable[int | float]) -> list[int | float]:
    """Those of the values that are neither NaN nor infinite, as of runs that diverged."""
    return [value for value in values if np.isfinite(value)]


def numbers(values: Iterable[float]) -> list[float | None]:
    """The values with five digits, as JSON takes them: None for what is not finite."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
