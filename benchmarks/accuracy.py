"""accuracy.md: what each published model reaches here, from the results of real runs.

    python -m benchmarks.accuracy                                   # writes accuracy.md anew
    python -m benchmarks.accuracy runs/x configs/a.py:arg [--config.train.seconds=3600 ...]   # adds a finished run
    python -m benchmarks.accuracy runs/y data-size                  # adds a finished comparison: see comparisons.py

A run is added only with the very command that it came from: its configuration is compared, field by field.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import comparisons, machine
from benchmarks.tables import markdown
from vit_jax import command, config, log
from vit_jax.command import UserError
from vit_jax.config.sweep import file_name
from vit_jax.workdir import Workdir

PAGE = Path(__file__).parent / "accuracy.md"
FOLDER = machine.RESULTS / "accuracy"
HEADER = ("model", "published", "here", "training", "device", "time", "command: `python -m vit_jax.main --config ...`")
KEPT = ("steps", "seconds", "images_per_second", "energy_kwh", "device", "parameters", "flops_per_image", "warnings")
INTRODUCTION = """# Accuracy

Test accuracy (top-1, percent) of the models of five published reports and of their papers, and what they reach here.
`python -m benchmarks.accuracy` writes this page from `results/accuracy/`: the metrics, the whole configuration and the
versions of each run. Time is that of the whole run, with compilation and validation. A row with `train.seconds` trained
for so long instead of for the published schedule, which has a row of its own. In so little time recipes made for 300
epochs (`cifar10.py:vit_strong`, `:cnn_strong`) lose to the plain ones: images that are mixed and erased take long to
learn. `small` and `fashion_mnist.py:tiny_strong` are for such a time. CIFAR-10's images were re-encoded as JPEG
(quality 75) before they came here: compare these numbers among themselves. Other programs ran beside many of the runs
on a CPU: how many images they saw says more than their time. The H100's three trainings ran side by side, too.
Where a recipe has changed since, the command says what the run had.
"""


@dataclass(frozen=True)
class Row:
    """A model as somebody published it, or a recipe of ours, and the command that trains it."""

    model: str
    published: str  # test accuracy in percent, or what else there is
    spec: str
    waits: str = "not yet run on a GPU"


WEIGHTS = "not yet run: the published weights were out of reach"
SECTIONS: dict[str, tuple[Row, ...]] = {
    "A. Fashion-MNIST": (
        Row("ViT, patch 6", "93.00", "configs/fashion_mnist.py:vit6"),
        Row("ViT, patch 8", "91.86", "configs/fashion_mnist.py:vit8"),
        Row("CNN", "90.32", "configs/fashion_mnist.py:cnn"),
        Row("small compact transformer (ours)", "", "configs/fashion_mnist.py:small", "not yet run"),
        Row("tiny ViT (ours)", "", "configs/fashion_mnist.py:tiny", "not yet run"),
        Row("the same, on cropped and erased images", "", "configs/fashion_mnist.py:tiny_strong", "not yet run"),
        Row("CCT-7/3x1 (ours)", "", "configs/compact.py:cct_fashion_mnist"),
    ),
    "B. CIFAR-100": (
        Row("ViT of the Keras example", "1.0", "configs/cifar100.py:vit"),
        Row("ResNet101V2", "47.93", "configs/cifar100.py:resnet"),
        Row("CCT-7/3x1, the default", "80.9", "configs/cifar100.py:cct"),
        Row("plain ViT (ours)", "", "configs/cifar100.py:plain"),
        Row("ViT-Lite-7/4", "69.8", "configs/compact.py:vit_lite_cifar100"),
    ),
    "C. Footwear (a private data set; here classes 5, 7 and 9 of Fashion-MNIST), from published weights": (
        Row("ViT-B/16", "99.33", "configs/footwear.py:vit", WEIGHTS),
        Row("ResNet-152", "92.76", "configs/footwear.py:resnet152", WEIGHTS),
        Row("ResNet-50", "80.03", "configs/footwear.py:resnet50", WEIGHTS),
    ),
    "D. CIFAR-10": (
        Row("ViT", "77", "configs/cifar10.py:vit"),
        Row("CNN", "89", "configs/cifar10.py:cnn"),
        Row("the same ViT, our recipe", "", "configs/cifar10.py:vit_strong"),
        Row("the same CNN, our recipe", "", "configs/cifar10.py:cnn_strong"),
        Row("small compact transformer (ours)", "", "configs/cifar10.py:small", "not yet run"),
        Row("tiny ViT (ours)", "", "configs/cifar10.py:tiny", "not yet run"),
        Row("CCT-7/3x1", "96.5", "configs/compact.py:cct_cifar10"),
        Row("ViT-Lite-7/4", "91.4", "configs/compact.py:vit_lite_cifar10"),
    ),
    "E. Visual Transformers: the report, on CIFAR-10": (
        Row("the report's “VT”, a plain ViT", "70.45", "configs/visual_transformer.py:report_vit"),
        Row("the report's CNN", "69.37", "configs/visual_transformer.py:report_cnn"),
        Row("VT-ResNet-18", "", "configs/visual_transformer.py:r18"),
        Row("VT-ResNet-34", "", "configs/visual_transformer.py:r34"),
        Row("VT-ResNet-50", "", "configs/visual_transformer.py:r50"),
        Row("VT-ResNet-101", "", "configs/visual_transformer.py:r101"),
        Row("ResNet-18", "", "configs/visual_transformer.py:resnet18"),
        Row("ResNet-34", "", "configs/visual_transformer.py:resnet34"),
        Row("ResNet-50", "", "configs/visual_transformer.py:resnet50"),
        Row("ResNet-101", "", "configs/visual_transformer.py:resnet101"),
    ),
    "E. Visual Transformers: the paper, on ImageNet-1k": (
        Row("VT-ResNet-18", "72.0", "configs/visual_transformer.py:imagenet_r18"),
        Row("VT-ResNet-34", "74.8", "configs/visual_transformer.py:imagenet_r34"),
        Row("VT-ResNet-50", "", "configs/visual_transformer.py:imagenet_r50"),
        Row("VT-ResNet-101", "", "configs/visual_transformer.py:imagenet_r101"),
        Row("VT-ResNet-18 without projector", "70.9", "configs/visual_transformer.py:imagenet_r18_no_projector"),
        Row("VT-ResNet-34 without projector", "74.1", "configs/visual_transformer.py:imagenet_r34_no_projector"),
        Row("ResNet-18", "69.9", "configs/visual_transformer.py:imagenet_resnet18"),
        Row("ResNet-34", "73.3", "configs/visual_transformer.py:imagenet_resnet34"),
        Row("ResNet-50", "", "configs/visual_transformer.py:imagenet_resnet50"),
        Row("ResNet-101", "", "configs/visual_transformer.py:imagenet_resnet101"),
        Row("VT-ResNet-18, 400 epochs", "76.8", "configs/visual_transformer.py:imagenet_r18_long"),
        Row("VT-ResNet-34, 400 epochs", "79.9", "configs/visual_transformer.py:imagenet_r34_long"),
        Row("VT-ResNet-50, 400 epochs", "80.6", "configs/visual_transformer.py:imagenet_r50_long"),
        Row("VT-ResNet-101, 400 epochs", "82.3", "configs/visual_transformer.py:imagenet_r101_long"),
        Row("ResNet-18, 400 epochs", "73.8", "configs/visual_transformer.py:imagenet_resnet18_long"),
        Row("ResNet-34, 400 epochs", "77.7", "configs/visual_transformer.py:imagenet_resnet34_long"),
        Row("ResNet-50, 400 epochs", "", "configs/visual_transformer.py:imagenet_resnet50_long"),
        Row("ResNet-101, 400 epochs", "", "configs/visual_transformer.py:imagenet_resnet101_long"),
    ),
    "Imagenette at 160 pixels": (
        Row("ViT-S/16", "", "configs/imagenette.py:vit_s16"),
        Row("ResNet-50", "", "configs/imagenette.py:resnet50"),
    ),
}


def add(workdir: Path, spec: str, overrides: list[str]) -> Path:
    """Keeps the result of a finished run that this command trained."""
    found = Workdir(workdir).result()
    known = [row.spec for rows in SECTIONS.values() for row in rows]
    if spec not in known:
        raise UserError(f"{spec} is no row of accuracy.md; choose from {', '.join(known)}")
    given = config.load(spec, overrides)
    different = config.differences(Workdir(workdir).config(), given)
    if different:
        fields = ", ".join(f"{key} ({there} there, {here} here)" for key, (there, here) in different.items())
        raise UserError(f"{workdir} was not trained by this command: {fields}")
    finished = time.strftime("%Y-%m-%d", time.gmtime(Workdir(workdir).result_file.stat().st_mtime))
    versions = machine.describe()["versions"]
    about: dict[str, Any] = {"spec": spec, "overrides": overrides, "date": finished, "versions": versions}
    metrics = {key: value for key, value in found.items() if "/" in key}
    kept = {key: found[key] for key in KEPT}
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = "-".join([Path(spec.partition(":")[0]).stem, spec.partition(":")[2], *overrides])
    path = FOLDER / f"{file_name(name)}-{device(found['device'])}.json"
    path.write_text(json.dumps({**about, **kept, **metrics, "config": config.to_dict(given)}, indent=1) + "\n")
    return path


def device(name: str) -> str:
    """`1 x CPU (AMD EPYC, 2 cores)` as part of a file's name."""
    return "cpu" if "CPU" in name else re.sub(r"\W+", "-", machine.in_table(name)).strip("-").lower()


def page() -> str:
    """The text of accuracy.md."""
    results = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    text = [INTRODUCTION]
    for title, rows in SECTIONS.items():
        lines = [line for row in rows for line in _lines(row, [r for r in results if r["spec"] == row.spec])]
        text.append(f"\n## {title}\n\n{markdown(HEADER, lines, len(HEADER))}")
    return "".join(text) + comparisons.sections()


def _lines(row: Row, results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The published schedule first, then what was trained with less."""
    whole = [result for result in results if not result["overrides"]]
    less = sorted((r for r in results if r["overrides"]), key=lambda r: r["test/accuracy"], reverse=True)
    lines = [_line(row, result) for result in (*whole, *less)]
    if not whole:
        lines.insert(0, (row.model, row.published, row.waits, "", "", "", f"`{row.spec}`"))
    return lines


def _line(row: Row, result: dict[str, Any]) -> tuple[str, ...]:
    settings = result["config"]["train"]
    images = result["steps"] * settings["batch_size"]
    length = f"{settings['epochs']:g} epoch{'s' * (settings['epochs'] != 1)}"
    if settings["steps"] or settings["seconds"]:
        length = f"{images:,} images"
    score = f"{100 * result['test/accuracy']:.2f}"
    called = " ".join([row.spec, *(f"--config.{text}" for text in result["overrides"])])
    took = log.human_seconds(result["seconds"])
    return row.model, row.published, f"**{score}**", length, machine.in_table(result["device"]), took, f"`{called}`"


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m benchmarks.accuracy", description="Writes accuracy.md; may add a run to it."
    )
    questions = ", ".join(comparisons.QUESTIONS)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run, or comparison, to add")
    parser.add_argument(
        "spec", nargs="?", metavar="CONFIG[:ARG]", help=f"what it was trained with; of a comparison: {questions}"
    )
    flags, overrides = parser.parse(argv)
    if flags.run and not flags.spec:
        raise UserError(f"which configuration trained {flags.run}? Give it, e.g. configs/cifar10.py:vit")
    if flags.run:
        is_question = flags.spec in comparisons.QUESTIONS and not overrides
        path = comparisons.add(flags.run, flags.spec) if is_question else add(flags.run, flags.spec, overrides)
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    PAGE.write_text(page())
    return command.DONE


if __name__ == "__main__":
    command.run(main)
