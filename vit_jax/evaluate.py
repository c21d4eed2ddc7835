"""Exact metrics of a model over a whole split; also a command.

    python -m vit_jax.evaluate --workdir runs/digits [--config.evaluate.split=test]

Each image counts once, whatever the batch size and the number of devices and processes: batches are padded, the padding
is dropped, and the metrics are computed once from all logits.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from vit_jax import augment, command, config, distributed, log, metrics, run, sharding, step
from vit_jax.command import UserError
from vit_jax.data import Feed, open_data
from vit_jax.trees import PyTree

# Batches that are computed ahead. XLA's CPU client starts 32 on each device, and holds a thread for the next: with two
# devices and two threads, one device then waited for the other for ever.
IN_FLIGHT = 4
# What changes where and how fast an evaluation computes, not what; the split's name stands by itself.
SAME = r"mesh\.|train\.|evaluate\.(split|batch_size)|data\.(data_dir|cache|threads)|model\.(scan|attention)"


@dataclass(frozen=True)
class Predictions:
    """The logits of a split: `index` counts its images, those that are broken left out."""

    index: np.ndarray  # [n]
    label: np.ndarray  # [n]
    logits: np.ndarray  # [n k] float32

    def save(self, path: Path) -> None:
        np.savez_compressed(path, index=self.index, label=self.label, logits=self.logits)


def predict(eval_step: Callable[..., Any], variables: PyTree, feed: Feed, batch_size: int) -> Predictions:
    """The logits of every image of the feed, in the split's order."""
    found: list[dict[str, jax.Array]] = []
    for batch in feed.evaluation(batch_size):
        found.append(eval_step(variables, batch, feed.frozen))
        if len(found) > IN_FLIGHT:
            jax.block_until_ready(found[-1 - IN_FLIGHT])
    columns = {k: np.concatenate([np.asarray(part[k]) for part in found]) for k in ("logits", "label", "weight")}
    index = np.flatnonzero(columns["weight"] > 0)
    return Predictions(index, columns["label"][index], columns["logits"][index])


def summarize(predictions: Predictions, loss: metrics.Loss) -> dict[str, float]:
    """Loss (`train.loss`), top-1, top-5, macro F1 and ECE."""
    return metrics.summarize(predictions.logits, predictions.label, loss=loss)


def confusion(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix (rows true, columns predicted) and the accuracy of each class, ready for JSON."""
    predicted, k = metrics.predict(predictions.logits), len(class_names)
    per_class = metrics.per_class_accuracy(predicted, predictions.label, k)
    return {
        "classes": list(class_names),
        "matrix": metrics.confusion(predicted, predictions.label, k).tolist(),
        "per_class_accuracy": {
            name: None if np.isnan(share) else float(share) for name, share in zip(class_names, per_class, strict=True)
        },
    }


def evaluate_run(workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of a run on a split (`evaluate.split`), its confusion matrix and the accuracy of each class.

    `overrides` change the run's configuration (`field=value`). The devices of every process share the work, and the
    parameters as in training (`mesh`). Raises `UserError` for images of other classes.
    """
    given = run.read_config(workdir, list(overrides))
    mesh = sharding.make_mesh(given.mesh)
    trained = run.open(workdir, overrides=list(overrides), mesh=mesh)
    with distributed.same_mistakes():
        data = dataclasses.replace(open_data(given.data, trained.view.size), view=trained.view)
        if data.class_names != trained.class_names:
            raise UserError(
                f"{data.dataset.name!r} has {_few(data.class_names)}, the run in {workdir} learned "
                f"{_few(trained.class_names)}; evaluate it on images of its own classes"
            )
        augment.check_perturbed(given.perturb, trained.view.channels)
        changed = not any(text.startswith("data.") for text in overrides) and run.changed_images(workdir, data)
        if changed:
            logging.getLogger(__name__).warning(
                "the images of %r have changed since the run in %s began (%s): some of the split may have trained",
                data.dataset.name,
                workdir,
                changed,
            )
        feed = data.feed(data.split(given.evaluate.split), mesh)
    shards = sharding.batch_shards(mesh)
    batch_size = -(-(given.evaluate.batch_size or given.train.batch_size) // shards) * shards
    eval_step = step.make_eval_step(trained.model, trained.config.augment, given.perturb)
    compiled = run.compile_eval_step(eval_step, trained.variables, mesh)
    predictions = predict(compiled, trained.variables, feed, batch_size)
    found = {f"{given.evaluate.split}/{k}": v for k, v in summarize(predictions, given.train.loss).items()}
    return {
        "step": trained.step,
        "images": len(predictions.label),
        "with": [text for text in overrides if not re.match(SAME, text)],
        **found,
        **confusion(predictions, trained.class_names),
    }


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m vit_jax.evaluate", description="Exact metrics of a run over a split.")
    parser.add_argument("--workdir", type=Path, required=True, help="the run")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    given = run.read_config(flags.workdir, overrides)
    config.check_evaluated(given, overrides)
    run.prefer_determinism(given)
    with distributed.joined():
        distributed.check_shared(flags.workdir)
        report = evaluate_run(flags.workdir, overrides)
        if jax.process_index() == 0:
            _publish(report, flags.workdir, given.evaluate.split)
    return command.DONE


def _publish(report: dict[str, Any], workdir: Path, split: str) -> None:
    """Writes the report into the run's folder, in a file of its own for each evaluation, and prints what it holds."""
    path = workdir / f"evaluation-{'-'.join(_file_name(text) for text in (split, *report['with']))}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console = Console(highlight=False)
    found = {key: value for key, value in report.items() if key.startswith(f"{split}/")}
    log.result_table(console, {**found, "images": report["images"], "workdir": str(workdir)})
    log.class_table(console, report["per_class_accuracy"])
    changed = f", with {' '.join(report['with'])}" if report["with"] else ""
    console.print(
        f"step {report['step']}, {report['images']:,} images{changed}; all of it, with the confusion matrix, in {path}",
        markup=False,
        soft_wrap=True,
    )


def _few(class_names: Sequence[str]) -> str:
    return f"{len(class_names)} classes ({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''})"


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".=" else "_" for c in text)


if __name__ == "__main__":
    command.run(main)
