"""The accuracy that published models and ours reach here: keeps results of finished runs for docs/results.md.

    python -m benchmarks.accuracy runs/x configs/a.py:arg [--config.train.seconds=3600 ...]   # a run
    python -m benchmarks.accuracy comparison NAME configs/a.py --out runs/y [...]   # as `vit_jax.compare` takes it
    python -m benchmarks.tables   # then shows them

A run is kept only with the very command that it came from: its configuration is compared, field by field. The second
command finishes the comparison if it has to. Models, and the accuracy that their authors published: published.csv.
"""

import csv
import json
import re
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, describe, in_table
from benchmarks.step import finished_run
from vit_jax import command, compare, config
from vit_jax.command import UserError
from vit_jax.config.sweep import file_name
from vit_jax.report.frontier import training_flops

PUBLISHED = Path(__file__).parent / "published.csv"
COUNTED = ("parameters", "flops_per_image", "training_flops")
KEPT = ("steps", "seconds", "images_per_second", "energy_kwh", "device", *COUNTED, "warnings")
RANKED = ("test/accuracy", "test/mean_iou")  # of a classification, of a segmentation
SHOWN = ("parameters", "flops_per_image", "seconds", *RANKED, "test/f1_macro", "test/ece", "test/boundary_f1")
Row = Mapping[str, Any]


def published() -> list[dict[str, str]]:
    """The models: section, name, published test accuracy in percent, configuration, what its whole run waits for."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def keep_run(workdir: Path, spec: str, overrides: Sequence[str], folder: Path = RESULTS) -> Path:
    """Keeps the result of a finished run that this command trained."""
    given, (ran, path) = config.load(spec, overrides), finished_run(workdir)
    if different := config.differences(ran, given):
        fields = ", ".join(f"{key} ({there} there, {here} here)" for key, (there, here) in different.items())
        raise UserError(f"{workdir} was not trained by this command: {fields}")
    found = json.loads(path.read_text())
    about = {"spec": spec, "overrides": overrides, "date": _day(path), "versions": describe()["versions"]}
    metrics = {key: value for key, value in found.items() if "/" in key}
    kept = {key: found[key] for key in KEPT if key in found}  # an earlier version counted no FLOPs of training
    name = "-".join([Path(spec.partition(":")[0]).stem, spec.partition(":")[2], *overrides])
    place = "cpu" if "CPU" in found["device"] else re.sub(r"\W+", "-", in_table(found["device"])).strip("-").lower()
    content = {**about, **kept, **metrics, "config": config.to_dict(given)}
    return _write(folder / "accuracy" / f"{file_name(name)}-{place}.json", content)


def keep_comparison(name: str, words: Sequence[str], folder: Path = RESULTS) -> Path:
    """Keeps the table of a comparison, by the words of its command."""
    if "--out" not in words or compare.main(words) != command.DONE:
        raise UserError(f"`vit_jax.compare {' '.join(words)}` did not end with a table; give it whole, with --out")
    out = Path(words[words.index("--out") + 1])
    newest = max(out.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    content = {
        "command": f"python -m vit_jax.compare {shlex.join(words)}",
        "date": _day(newest),
        "device": json.loads(newest.read_text())["device"],
        "versions": describe()["versions"],
        "rows": json.loads((out / "comparison.json").read_text()),
    }
    return _write(folder / "comparisons" / f"{name}.json", content)


def _day(path: Path) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))


def _write(path: Path, content: Row) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read(folder: Path, kind: str) -> dict[str, Any]:
    """What was kept, by the names of the files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / kind).glob("*.json"))}


def runs(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """The measured runs of each section: of a model the published schedule first, then what was trained with less."""
    results = read(folder, "accuracy").values()
    ordered = sorted(results, key=lambda result: (bool(result["overrides"]), -result["test/accuracy"]))
    rows = published()
    return {
        section: [
            _run(row, r) for row in rows if row["section"] == section for r in ordered if r["spec"] == row["config"]
        ]
        for section in dict.fromkeys(row["section"] for row in rows)
    }


def _run(row: Row, result: Row) -> Row:
    """A row of the tables: the epochs of a schedule, or the images that a run of other length saw."""
    settings = result["config"]["train"]
    training = f"{settings['epochs']:g} epoch{'s' * (settings['epochs'] != 1)}"
    if settings["steps"] or settings["seconds"] or settings.get("flops"):
        training = f"{result['steps'] * settings['batch_size']:,} images"
    called = " ".join([row["config"], *(f"--config.{text}" for text in result["overrides"])])
    about = {"percent": 100 * result["test/accuracy"], "device": in_table(result["device"])}
    about |= {"seconds": result["seconds"], "flops": training_flops(result)}
    return {**row, **about, "training": training, "command": called}


def waiting(folder: Path = RESULTS) -> list[Row]:
    """The models of which no run has had its whole schedule."""
    results = read(folder, "accuracy").values()
    as_given = "model.dtype=auto"  # it depends on the machine, and changes no schedule
    whole = {result["spec"] for result in results if set(result["overrides"]) <= {as_given}}
    return [row for row in published() if row["config"] not in whole]


def comparisons(folder: Path = RESULTS) -> Iterator[tuple[str, str, str, list[dict[str, str]]]]:
    """Of each comparison its name; where, when and how it ran; the columns of its table, and the rows.

    Where all rows have the same seeds, several, they tell how far they are from the first.
    """
    for name, found in read(folder, "comparisons").items():
        first = found["rows"][0]
        shown = [key for key in SHOWN if first.get(key)]
        cells = [f"{compare.title(key)}>{{{key}}}" for key in shown]
        rows = [{"run": row["run"]} | {key: compare.cell(key, row[key]) for key in shown} for row in found["rows"]]
        if len(first["seeds"]) > 1 and all(row["seeds"] == first["seeds"] for row in found["rows"]):
            ranked = next(key for key in RANKED if key in shown)
            words = compare.title(ranked).removeprefix("test ")
            cells.append(f"{words} against the first row, ± standard error>{{against}}")
            for row, given in zip(rows[1:], found["rows"][1:], strict=True):
                row["against"] = _difference(given[ranked], first[ranked])
        columns = " | ".join(["run={run}", *cells])
        yield name, f"{in_table(found['device'])}, {found['date']}: `{found['command']}`", columns, rows


def _difference(accuracies: Sequence[float], others: Sequence[float]) -> str:
    """The mean of what each seed gains, in points, and its standard error."""
    gains = [100 * (one - other) for one, other in zip(accuracies, others, strict=True)]
    return f"{statistics.mean(gains):+.2f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}"


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1 and argv[0] == "comparison":
        print(keep_comparison(argv[1], argv[2:]).name)
        return command.DONE
    parser = command.Parser(prog="python -m benchmarks.accuracy", description="Keeps the result of a finished run.")
    parser.add_argument("run", type=Path, help="folder of the run; `comparison`: see the module")
    parser.add_argument("spec", metavar="CONFIG[:ARG]", help="what it was trained with")
    flags, overrides = parser.parse(argv)
    known = [row["config"] for row in published()]
    if flags.spec not in known:
        raise UserError(f"{flags.spec} is no row of published.csv; choose from {', '.join(known)}, or add a line there")
    print(keep_run(flags.run, flags.spec, overrides).name)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
