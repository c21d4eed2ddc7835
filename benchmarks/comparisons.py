"""The published reports' questions, each answered by one command of `vit_jax.compare`: the lower half of accuracy.md.

    python -m benchmarks.accuracy runs/patch-size patch-size   # keeps a finished comparison

A comparison is kept only if its folder holds every run of the question's command.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.tables import markdown
from vit_jax import compare
from vit_jax.command import UserError
from vit_jax.workdir import Workdir

FOLDER = machine.RESULTS / "comparisons"
SHORT = ("train.batch_size=64", "train.steps=1688", "evaluate.every_steps=844")
SHOWN = ("parameters", "flops_per_image", "seconds", "test/accuracy", "test/f1_macro", "test/ece")


@dataclass(frozen=True)
class Question:
    """What is asked, and the arguments of the command that answers."""

    title: str
    specs: tuple[str, ...]
    sweeps: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    seeds: int = 1
    note: str = ""  # below the table

    def command(self, name: str) -> str:
        words = ["python -m vit_jax.compare", *self.specs, f"--out runs/{name}"]
        words += [f"--sweep {text}" for text in self.sweeps] + [f"--evaluate {text}" for text in self.evaluations]
        words += [f"--seeds {self.seeds}"] * (self.seeds > 1) + [f"--config.{text}" for text in self.overrides]
        return " ".join(words)


NOTE_ON_TEACHERS = (
    "The gain is five standard errors, nine tenths of the way to the teacher, which saw the images as the ViT does: "
    "`python -m vit_jax.main --config configs/fashion_mnist.py:cnn --workdir runs/teacher-cnn "
    "--config.model.norm=batch --config.data.limit=5400 --config.augment.flip=0.5 --config.augment.crop_padding=2 "
    "--config.augment.mixup=0.8 --config.optim.schedule=cosine --config.optim.lr=2e-3 --config.optim.weight_decay=0.05 "
    "--config.optim.warmup_epochs=1 --config.optim.clip_norm=1 --config.evaluate.use=last "
    "--config.train.batch_size=64 --config.train.steps=6752 --config.evaluate.every_steps=1688`. Time counts: in half "
    "the steps it brings 88.23 ± 0.08 to 88.81 ± 0.04 % (three seeds), two fifths of the way, and weight 1 at "
    "temperature 1 no more (88.84 %, one seed); in an eighth 85.10 to 85.74 % (one seed), a seventh. A teacher of "
    "87.97 %, which saw no mirrored or mixed image, brings 84.79 ± 0.35 to 85.56 ± 0.28 % in an eighth (three seeds); "
    "in half of the steps the ViT passes that by itself. In a thirty-second, on images that are only mirrored, three "
    "seeds have 82.92 ± 0.23 % without and 83.16 ± 0.36 % with that teacher. That a good teacher is a patient one is "
    "known (Beyer et al. 2022, arXiv:2106.05237)."
)
FASHION = ("configs/fashion_mnist.py:tiny", "configs/fashion_mnist.py:cnn")
QUESTIONS = {
    "patch-size": Question("Patch size", FASHION[:1], ("model.patch_size=4,7,14",), overrides=SHORT),
    "data-size": Question(
        "1, 10, 50 and 100 % of the training images", FASHION, ("data.limit=540,5400,27000,54000",), overrides=SHORT
    ),
    "perturbations": Question(
        "ViT and CNN on perturbed images",
        FASHION,
        ("data.limit=54000",),
        ("perturb.kind=none,noise,blur,contrast,patch_shuffle", "perturb.severity=3"),
        SHORT,
    ),
    "norm": Question("Batch norm, layer norm, none", FASHION[1:], ("model.norm=batch,layer,none",), overrides=SHORT),
    "distillation": Question(
        "With and without a teacher (a CNN that saw the same 10 % of the images: 89.65 %)",
        FASHION[:1],
        ("distill.teacher=,runs/teacher-cnn",),
        overrides=(
            "model.patch_size=7",
            "data.limit=5400",
            "augment.crop_padding=2",
            "augment.mixup=0.8",
            "distill.kind=soft",
            "distill.weight=0.9",
            "distill.temperature=2",
            "train.batch_size=64",
            "train.steps=54016",
            "evaluate.every_steps=13504",
        ),
        seeds=3,
        note=NOTE_ON_TEACHERS,
    ),
}
INTRODUCTION = """
## The reports' questions, in small

On Fashion-MNIST, with 1,688 steps of 64 images (two epochs of the whole set), or as many as the command says: long
before any of these models has learnt what it can, so that what is learnt fast shows first. Each model has its own
recipe: the ViT smoothed labels, mirrored images and a cosine schedule after an epoch of warm-up (half of those steps,
where it sees all images), the CNN none of it, and the checkpoint that validated best; that shows in the calibration
error above all. One seed, but where there is a deviation: the ViT on all images, trained by the code of two days and of
a third, had 84.50, 84.15 and 84.67 %, so that differences of half a point say nothing.
`python -m benchmarks.accuracy FOLDER NAME` keeps a finished comparison. Other programs ran on the machine meanwhile:
the times say little.
"""


def add(folder: Path, name: str) -> Path:
    """Keeps the results of a finished comparison."""
    question = QUESTIONS[name]
    variants = compare.plan(question.specs, question.sweeps, question.seeds, question.overrides, folder)
    missing = [w.name for v in variants for given, w in v.runs if not compare.is_finished(given, w)]
    if missing:
        raise UserError(f"{folder} does not hold {missing[0]} as `{question.command(name)}` trains it; run that first")
    rows = compare.rows(variants, question.evaluations, ())
    results = [Workdir(workdir).result_file for variant in variants for _, workdir in variant.runs]
    about: dict[str, Any] = {
        "question": asdict(question),
        "date": time.strftime("%Y-%m-%d", time.gmtime(max(path.stat().st_mtime for path in results))),
        "device": json.loads(results[0].read_text())["device"],
        "versions": machine.describe()["versions"],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return path


def sections() -> str:
    """The part of the page with every question, answered or not."""
    return INTRODUCTION + "".join(
        f"\n### {question.title}\n\n{_section(name, question)}" for name, question in QUESTIONS.items()
    )


def _section(name: str, question: Question) -> str:
    command = f"`{question.command(name)}`"
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return f"Not yet run: {command}\n"
    found = json.loads(path.read_text())
    header = ["run", *(compare.COLUMNS[key] for key in SHOWN)]
    cells = [[row["run"], *(compare.cell(key, row[key]) for key in SHOWN)] for row in found["rows"]]
    table = markdown(header, cells, 1)
    note = f"\n{question.note}\n" if question.note else ""
    return f"{machine.in_table(found['device'])}, {found['date']}: {command}\n\n{table}{note}"
