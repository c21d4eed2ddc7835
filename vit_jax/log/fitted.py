"""A table of named rows, as wide as the terminal allows."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = 2  # blanks between columns
BESIDE = 3  # columns that must fit beside the names; else each name gets a line of its own


def fitted_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    important: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> None:
    """Prints rows whose first cell is a name, which is never split, and whose other cells are aligned to the right.

    Where not all columns fit, those in `important` (titles, the most important first) stay, then those further left;
    a last line tells what is left out. `styles`: rich's, one a row.
    """
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    rank = {title: number for number, title in enumerate(important)}
    order = sorted(range(1, len(header)), key=lambda i: rank.get(header[i], len(rank)))
    shown = _fitting(order, widths, console.width - widths[0])
    if stacked := len(shown) < min(BESIDE, len(order)):
        shown = _fitting(order, widths, console.width) or order[:1]
    styled = ("bold", *(styles or [""] * len(rows)))
    for cells, style in zip((header, *rows), styled, strict=True):
        name = cells[0] + "\n" if stacked else _padded(cells[0], -widths[0])
        values = "".join(" " * GAP + _padded(cells[i], widths[i]) for i in shown)
        console.print(Text(name + values, style=style), soft_wrap=True)
    if left_out := [header[i] for i in range(1, len(header)) if i not in shown]:
        console.print(Text(f"left out for lack of width: {', '.join(left_out)}", style="dim"), soft_wrap=True)


def _fitting(order: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    """The columns that fit into `room`, as many as there are from the beginning of `order`; from left to right."""
    fitting = []
    for i in order:
        room -= GAP + widths[i]
        if room < 0:
            break
        fitting.append(i)
    return sorted(fitting)


def _padded(text: str, width: int) -> str:
    """The text at the right of so many cells; at the left, if `width` is negative."""
    blanks = " " * (abs(width) - cell_len(text))
    return blanks + text if width > 0 else text + blanks
