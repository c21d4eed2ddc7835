"""Accuracy against the operations of training: runs beside published models, as a picture in SVG.

    vit_jax frontier RUN ... --out frontier.svg

A RUN is a folder of a run, a result file (`result.json`, or one of `benchmarks/results/accuracy`), or a folder that
holds some. The published points are `frontier.csv`: accuracies as their sources state them, collected in November 2026;
operations by the rule of `train.flops`, 3 forward passes for each image, 2 for each multiply-add.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from vit_jax import command
from vit_jax.command import UserError
from vit_jax.human import human_percent
from vit_jax.log import human_count

PUBLISHED = Path(__file__).with_suffix(".csv")
LETTER = 5.8  # pixels of a letter, about
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 58, 20, 40, 54  # pixels
COLORS = {"ViT": "#2563a8", "CNN": "#b3541e"}
CNNS = ("cnn", "resnet", "resnetv2", "bit", "whitened_cnn")  # families without attention


@dataclass(frozen=True)
class Point:
    """A trained model."""

    model: str
    kind: str  # of `COLORS`
    flops: float
    accuracy: float  # of the test split, 0 to 1; without test-time augmentation where that is known
    ours: bool
    about: str  # source or folder


def published(data: str, table: Path = PUBLISHED) -> list[Point]:
    """The published points of a data set; raises `UserError` for a table that cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["data"] == data]
        return [
            Point(
                row["model"],
                row["kind"],
                float(row["flops"]),
                float(row["accuracy"] or row["accuracy_tta"]) / 100,
                False,
                row["source"] + ("" if row["accuracy"] else "; with test-time augmentation"),
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--published {table} cannot be read: {error!r}; expected the columns of {PUBLISHED}"
        ) from error


def trained(paths: Iterable[Path], data: str) -> list[Point]:
    """The finished runs of a data set that lie in these files and folders; raises `UserError` where there is no run."""
    points = []
    for path in paths:
        files = [path] if path.is_file() else [path / "result.json"] * (path / "result.json").is_file()
        files = files or sorted([*path.glob("*/result.json"), *path.glob("*.json")])
        results = [result for file in files if (result := _result(file))]
        if not results:
            raise UserError(f"{path} holds no finished run of a classification; give its folder, or its result.json")
        points += [_point(result) for result in results if result["config"]["data"]["name"].partition("/")[0] == data]
    return points


def _result(file: Path) -> dict[str, Any] | None:
    """The content of a result file; None of another file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    needed = {"test/accuracy", "flops_per_image", "steps", "config"}
    return found if isinstance(found, dict) and found.keys() >= needed else None


def _point(result: Mapping[str, Any]) -> Point:
    name = result["config"]["model"]["name"]
    kind = "CNN" if name.partition("/")[0] in CNNS else "ViT"
    about = result.get("spec") or result.get("workdir", "")
    label = Path(str(about)).name.partition(".py:")[2] or Path(str(about)).name or name
    return Point(label, kind, training_flops(result), result["test/accuracy"], True, str(about))


def training_flops(result: Mapping[str, Any]) -> float:
    """Of a run's training; by the rule above where the result of an earlier version does not say."""
    given = result["config"]
    batch, passes = given["train"]["batch_size"], 6 if given["optim"].get("sam_rho") else 3
    return float(result.get("training_flops") or passes * result["flops_per_image"] * result["steps"] * batch)


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no other point beats with as many operations or fewer."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.flops, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def draw(points: Sequence[Point], title: str) -> str:
    """The picture, an SVG document: operations on a logarithmic axis; ours are full, published ones hollow.

    A line joins the best ViTs, and another the best CNNs, ours and published together. The axis begins below the worst
    of these; points under it are counted.
    """
    best = {kind: frontier(p for p in points if p.kind == kind) for kind in COLORS}
    low = math.floor(20 * min(p.accuracy for found in best.values() for p in found)) / 20
    shown = [p for p in points if p.accuracy >= low]
    decades = [
        math.floor(math.log10(min(p.flops for p in points))),
        math.ceil(math.log10(max(p.flops for p in points))),
    ]
    rows = range(round(100 * low), 101, 10 if low < 0.6 else 5)

    def x(flops: float) -> float:
        share = (math.log10(flops) - decades[0]) / max(decades[1] - decades[0], 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(accuracy: float) -> float:
        return round(TOP + (1 - accuracy) / (1 - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" fill="#222">{escape(title)}</text>',
    ]
    for power in range(decades[0], decades[1] + 1):
        parts.append(_line(x(10.0**power), TOP, x(10.0**power), HEIGHT - BOTTOM))
        label = f"1e<tspan>{power}</tspan>"
        parts.append(f'<text x="{x(10.0**power)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>')
    for row in rows:
        parts.append(_line(LEFT, y(row / 100), WIDTH - RIGHT, y(row / 100)))
        parts.append(f'<text x="{LEFT - 6}" y="{y(row / 100) + 4}" text-anchor="end">{row} %</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">FLOPs of training</text>')
    if len(shown) < len(points):
        below = f"{len(points) - len(shown)} more below {human_percent(low)}"
        parts.append(f'<text x="{LEFT + 6}" y="{HEIGHT - BOTTOM - 6}" fill="#777">{below}</text>')
    parts += _legend()
    for kind, color in COLORS.items():
        path = " ".join(f"{x(p.flops)},{y(p.accuracy)}" for p in best[kind])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-opacity="0.45"/>')
    places = {p: (x(p.flops), y(p.accuracy)) for p in shown}
    parts += [_mark(p, *place) for p, place in places.items()]
    parts += _names(places, [p for found in best.values() for p in found])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float | int, y1: float | int, x2: float | int, y2: float | int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#ddd"/>'


def _legend() -> list[str]:
    names = [(color, kind, True) for kind, color in COLORS.items()] + [("#555", "hollow: published", False)]
    return [
        f'<circle cx="{WIDTH - 330 + 60 * i}" cy="18" r="5" fill="{color if full else "#fff"}" stroke="{color}"/>'
        f'<text x="{WIDTH - 320 + 60 * i}" y="22">{name}</text>'
        for i, (color, name, full) in enumerate(names)
    ]


def _mark(point: Point, x: float, y: float) -> str:
    """A point; all that is known of it stands in a tooltip."""
    color = COLORS[point.kind]
    told = f"{point.model}: {human_percent(point.accuracy)}, {human_count(point.flops)}FLOP ({point.about})"
    return (
        f'<circle cx="{x}" cy="{y}" r="5" fill="{color if point.ours else "#fff"}" stroke="{color}" stroke-width="1.5" '
        f"data-model={quoteattr(point.model)}><title>{escape(told)}</title></circle>"
    )


def _names(places: Mapping[Point, tuple[float, float]], named: Iterable[Point]) -> list[str]:
    """The names of these points beside them, where there is room between the other points and names."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    texts = []
    for point in named:
        (x, y), width = places[point], LETTER * len(point.model)
        for left, base in ((x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y - 10), (x - width / 2, y + 19)):
            box = (left, base - 10, left + width, base + 3)
            inside = left > LEFT and left + width < WIDTH and TOP < base < HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                text = escape(point.model)
                texts.append(f'<text x="{left:.1f}" y="{base:.1f}" fill="{COLORS[point.kind]}">{text}</text>')
                break
    return texts


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m vit_jax.report.frontier", description="Accuracy against FLOPs of training.")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="runs: folders, result files, folders of such"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: frontier.svg")
    parser.add_argument("--data", default="cifar10", help="the data set, as data.name up to its first slash")
    parser.add_argument("--published", type=Path, default=PUBLISHED, metavar="FILE", help="a table of published points")
    flags = parser.parse_args(argv)
    if flags.out.suffix != ".svg":
        raise UserError(
            f"--out {flags.out}: the picture is an SVG; give a file such as {flags.out.with_suffix('.svg')}"
        )
    points = published(flags.data, flags.published) + trained(flags.runs, flags.data)
    if not points:
        raise UserError(f"--data {flags.data}: no run and no published point of it; choose another, e.g. cifar10")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(draw(points, f"{flags.data}: test accuracy against FLOPs of training"), encoding="utf-8")
    for point in sorted(points, key=lambda p: p.flops):
        whose = "ours" if point.ours else "published"
        print(
            f"{human_count(point.flops):>9}FLOP {human_percent(point.accuracy):>8} {point.kind} {whose:9} {point.model}"
        )
    print(f"wrote {flags.out}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
