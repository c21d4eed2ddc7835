"""Curves in the terminal: loss and the monitored metric over the steps, in dots of Braille, or in stars.

By hand: plotext 6 takes 1.6 s to import, 1.7 MB, and its interface is another one than that of version 5.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax.log.tables import metric_value
from vit_jax.metrics import METRICS

HEIGHT = 8  # lines of text
WIDEST = 54  # characters of a plot
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a Braille letter, from U+2800
SPLITS = {"train": "dim", "val": "bold cyan"}
Points = tuple[np.ndarray, np.ndarray]


def print_curves(console: Console, lines: Sequence[Mapping[str, int | float]], monitor: str) -> None:
    """Prints the loss and the metric that ranks checkpoints, of training and validation; nothing of a single point."""
    names = [name for name in dict.fromkeys(("loss", monitor)) if name in METRICS]
    known = {name: {split: _points(lines, f"{split}/{name}") for split in SPLITS} for name in names}
    shown = {name: splits for name, splits in known.items() if max(len(x) for x, _ in splits.values()) > 1}
    if not shown:
        return
    side_by_side = console.width >= 90
    width = min(WIDEST, (console.width - 4) // 2 if side_by_side else console.width)
    plots = [_plot(console, name, splits, width) for name, splits in shown.items()]
    table = Table.grid(padding=(0, 4, 0, 0))
    for row in [plots] if side_by_side else [[plot] for plot in plots]:
        table.add_row(*row)
    console.print()
    console.print(table)


def _points(lines: Sequence[Mapping[str, int | float]], key: str) -> Points:
    """Steps and values that are finite."""
    found = [(line["step"], line[key]) for line in lines if key in line and np.isfinite(line[key])]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _plot(console: Console, name: str, splits: Mapping[str, Points], width: int) -> Text:
    """Title, axes, and the curves of the splits, one over another."""
    unicode = console.encoding.startswith("utf")
    every = [points for points in splits.values() if len(points[0])]
    ends = [
        (min(x.min() for x in found), max(x.max() for x in found))
        for found in (list(c) for c in zip(*every, strict=True))
    ]
    (x0, x1), (y0, y1) = ends
    labels = [metric_value(name, y1), metric_value(name, y0)]
    margin = max(map(len, labels)) + 1
    text = Text(f"{METRICS[name].label:<{margin}}", style="bold")
    for split, style in SPLITS.items():
        text.append(f" {split}" if len(splits[split][0]) else "", style=style)
    canvases = {split: _canvas(points, (x0, x1), (y0, y1), width - margin, unicode) for split, points in splits.items()}
    for row in range(HEIGHT):
        text.append(f"\n{labels[0] if row == 0 else labels[1] if row == HEIGHT - 1 else '':>{margin - 1}} ", "dim")
        for column in range(width - margin):
            cells = [(canvas[row, column], SPLITS[split]) for split, canvas in canvases.items()]
            style = next((style for dots, style in reversed(cells) if dots), "")
            dots = int(np.bitwise_or.reduce([dots for dots, _ in cells]))
            text.append((chr(0x2800 + dots) if unicode else "*") if dots else " ", style)
    ticks = f"{x0:,.0f}", f"{x1:,.0f}"
    return text.append(f"\n{'':{margin}}{ticks[0]}{ticks[1]:>{width - margin - len(ticks[0])}}", "dim")


def _canvas(points: Points, xs: tuple[float, float], ys: tuple[float, float], width: int, unicode: bool) -> np.ndarray:
    """The dots of each letter, as bits: 2 x 4 of them in Braille, one without."""
    down, across = DOTS.shape if unicode else (1, 1)
    grid: Bool[np.ndarray, "y x"] = np.zeros((HEIGHT * down, width * across), bool)
    if len(points[0]):
        at = np.linspace(*xs, grid.shape[1])
        inside = (at >= points[0][0]) & (at <= points[0][-1])
        height = (np.interp(at, *points) - ys[0]) / ((ys[1] - ys[0]) or 1)
        rows = np.round((1 - height) * (len(grid) - 1)).astype(int)
        for column in np.flatnonzero(inside):
            before = rows[column - 1] if column and inside[column - 1] else rows[column]
            low, high = sorted((rows[column], before))
            grid[low + (low < before) if low != high else low : high + 1, column] = True
    letters = grid.reshape(HEIGHT, down, width, across)
    return np.einsum("hdwa,da->hw", letters.astype(int), DOTS[:down, :across])
