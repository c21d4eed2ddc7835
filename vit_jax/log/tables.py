"""What is printed before and after training: the run and its parameters, and its result."""

import itertools
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from clu.parameter_overview import get_parameter_overview
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax import trees
from vit_jax.flops import human as human_count
from vit_jax.human import human_bytes, human_percent, human_seconds
from vit_jax.metrics import METRICS
from vit_jax.trees import PyTree

FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "best_step": ("best validation step", "{:,}".format),
    "steps": ("steps", "{:,}".format),
    "parameters": ("parameters", human_count),
    "flops_per_image": ("FLOPs per image", human_count),
    "training_flops": ("FLOPs of training", human_count),
    "seconds": ("time", human_seconds),
    "images_per_second": ("images per second", "{:,.0f}".format),
    "energy_kwh": ("energy", "{:.3g} kWh".format),
    "device": ("device", str),
    "workdir": ("run", str),
}


class ParameterRow(NamedTuple):
    name: str  # `head`, or `encoderblock_0..11` for equal neighbours
    repeats: int
    each: int


def overview(
    console: Console, *, title: str, rows: Mapping[str, str], parameters: PyTree, every_array: bool = False
) -> None:
    """Prints a run's facts and its parameters by module; `every_array` lists the arrays with their shapes instead."""
    console.print(Text(title, style="bold"))
    console.print(_facts(rows))
    console.print()
    if every_array:
        console.print(Text(get_parameter_overview(parameters, include_stats=False)), soft_wrap=True)
    else:
        console.print(Text("Parameters", style="bold"))
        console.print(_parameters(parameters))
    console.print()


def result_table(console: Console, result: Mapping[str, Any]) -> None:
    """Prints what `result.json` holds, as far as it is there: metrics (`<split>/<name>`) first."""
    known = {key: value for key, value in result.items() if value is not None}
    splits = dict.fromkeys(key.rpartition("/")[0] for key in known if "/" in key)
    rows = {
        f"{split} {metric.label}": metric_value(name, known[f"{split}/{name}"])
        for split in splits
        for name, metric in METRICS.items()
        if f"{split}/{name}" in known
    }
    rows |= {label: text(known[key]) for key, (label, text) in FACTS.items() if key in known}
    console.print()
    console.print(Text("Result", style="bold"))
    console.print(_facts(rows, first="bold green"))


def metric_value(name: str, value: float) -> str:
    """The value of a metric as its registered kind is written: `91.20 %`, `0.3100`."""
    if METRICS[name].percent:
        return human_percent(value)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def metric_text(name: str, value: float) -> str:
    """The metric and its value: `accuracy 91.20 %`."""
    return f"{METRICS[name].label} {metric_value(name, value)}"


def weights_table(console: Console, title: str, rows: Sequence[tuple[str, str, str, int]]) -> None:
    """Prints what became of the arrays of weights: rows of action, name, detail and parameters, in their order.

    `pretrained.Report.groups` gives them. Whatever is not simply loaded stands out.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for action, name, detail, parameters in rows:
        style = "default" if action == "loaded" else "yellow"
        size = human_count(parameters) if parameters else ""  # statistics are no parameters
        table.add_row(Text(f"  {action}", style=style), Text(name, overflow="fold"), size, Text(detail, style="dim"))
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def class_table(console: Console, accuracies: Mapping[str, float | None], title: str = "Accuracy by class") -> None:
    """Prints a share for each class, worst first; None: the class has no image. Long lists keep their worst 20."""
    known = sorted((share, name) for name, share in accuracies.items() if share is not None)
    console.print()
    console.print(Text(title + (", the worst 20" if len(known) > 20 else ""), style="bold"))
    console.print(_facts({name: human_percent(share) for share, name in known[:20]}))


def parameter_rows(parameters: PyTree) -> list[ParameterRow]:
    """The modules of nested dicts of arrays; equal neighbours (`block_0`, `block_1` ...) are one row, scanned ones too.

    A module with more than half of all parameters is opened: its children are listed in its place.
    """
    return list(_rows(parameters, "", trees.count(parameters)))


def _rows(tree: Mapping[str, PyTree], prefix: str, total: int) -> Iterator[ParameterRow]:
    for names in _runs(tree):
        name, child, size = names[0], tree[names[0]], trees.count(tree[names[0]])
        if name == trees.SCANNED:
            layers = jax.tree.leaves(child)[0].shape[0]
            yield ParameterRow(f"{prefix}{name}_0..{layers - 1}", layers, size // layers)
        elif len(names) == 1 and 2 * size > total and any(isinstance(part, Mapping) for part in child.values()):
            yield from _rows(child, f"{prefix}{name}/", total)
        else:
            end = f"..{_number(names[-1])}" if len(names) > 1 else ""
            yield ParameterRow(f"{prefix}{name}{end}", len(names), size)


def _runs(tree: Mapping[str, PyTree]) -> Iterator[list[str]]:
    """The keys, those with successive numbers and equally many parameters together."""
    stems: dict[str, list[str]] = {}
    for name in tree:
        stems.setdefault(name.rstrip(string.digits), []).append(name)
    for names in stems.values():
        names.sort(key=_number)
        run = names[:1]
        for before, name in itertools.pairwise(names):
            if _number(name) != _number(before) + 1 or trees.count(tree[name]) != trees.count(tree[before]):
                yield run
                run = []
            run.append(name)
        yield run


def _number(name: str) -> int:
    """The number at the end of a name: 11 for `encoderblock_11`, -1 without one."""
    digits = name[len(name.rstrip(string.digits)) :]
    return int(digits) if digits else -1


def _facts(rows: Mapping[str, str], first: str = "default") -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in rows.items():
        style = "default" if table.row_count else first
        table.add_row(Text(f"  {label}", style="dim", no_wrap=True), Text(value, style=style, overflow="fold"))
    return table


def _parameters(parameters: PyTree) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    total = max(1, trees.count(parameters))
    for name, repeats, each in parameter_rows(parameters):
        product = f"{repeats} x {human_count(each)}" if repeats > 1 else ""
        size = repeats * each
        table.add_row(Text(f"  {name}", overflow="fold"), product, human_count(size), human_percent(size / total))
    memory = human_bytes(trees.num_bytes(parameters))
    table.add_row(Text("  total"), memory, human_count(trees.count(parameters)), "", style="bold")
    return table
