"""Exact metrics of a model over a whole split; also a command.

    python -m vit_jax.evaluate --workdir runs/digits [--config.evaluate.split=test]

Each image counts once, whatever the batch size and the number of devices and processes: batches are padded, the padding
is dropped, and the metrics are computed once from all logits.
"""

import dataclasses
import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from vit_jax import augment, command, config, distributed, log, metrics, run, sharding, step
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.config.sweep import file_name
from vit_jax.data import Feed, open_data
from vit_jax.trees import PyTree

LOGITS_BYTES = 2**31  # more are not kept: of ImageNet-21k's test images 250 GB
MATRIX_CLASSES = 2000  # more have no confusion matrix: of 21,843 classes 4 GB
# Batches that are computed ahead. XLA's CPU client starts 32 on each device, and holds a thread for the next: with two
# devices and two threads, one device then waited for the other for ever.
IN_FLIGHT = 4


@dataclass(frozen=True)
class Predictions:
    """What a model makes of a split: `index` counts its images, those that are broken left out."""

    index: np.ndarray  # [n]
    label: np.ndarray  # [n]
    examples: metrics.Examples
    num_classes: int
    logits: np.ndarray | None  # [n k] float32; None: too many to keep

    def save(self, path: Path) -> None:
        """Writes the logits, or where they are not kept each image's class and its probability."""
        if self.logits is not None:
            np.savez_compressed(path, index=self.index, label=self.label, logits=self.logits)
        else:
            prediction, confidence = self.examples.prediction, self.examples.confidence
            np.savez_compressed(path, index=self.index, label=self.label, prediction=prediction, confidence=confidence)


def predict(
    eval_step: Callable[..., Any], variables: PyTree, feed: Feed, batch_size: int, loss: metrics.Loss = "softmax"
) -> Predictions:
    """What the model makes of every image of the feed, in the split's order; `loss` is what it was trained with."""
    parts: list[Predictions] = []
    waiting: deque[dict[str, jax.Array]] = deque()
    begins = itertools.count(0, batch_size)

    def fetch() -> None:
        """Moves the oldest batch to the host: on a device its logits would fill the memory."""
        label, logits, weight = map(np.asarray, jax.device_get([waiting[0][k] for k in ("label", "logits", "weight")]))
        waiting.popleft()
        index, k = np.flatnonzero(weight > 0), logits.shape[1]
        begin, label, logits = next(begins), label[index], logits[index]
        if not len(index):
            return
        metrics.check_labels(label, k)
        kept = logits if len(feed.split) * k * logits.itemsize <= LOGITS_BYTES else None
        parts.append(Predictions(begin + index, label, metrics.per_example(logits, label, loss), k, kept))

    for batch in feed.evaluation(batch_size):
        waiting.append(eval_step(variables, batch, feed.frozen))
        if len(waiting) > IN_FLIGHT:
            fetch()
    while waiting:
        fetch()
    examples = metrics.Examples(*map(np.concatenate, zip(*(part.examples for part in parts), strict=True)))
    index, label = (np.concatenate([getattr(part, field) for part in parts]) for field in ("index", "label"))
    logits = [part.logits for part in parts if part.logits is not None]
    return Predictions(index, label, examples, parts[0].num_classes, np.concatenate(logits) if logits else None)


def summarize(predictions: Predictions) -> dict[str, float]:
    """Loss, top-1, top-5, macro F1 and ECE."""
    return metrics.of_examples(predictions.examples, predictions.label, predictions.num_classes)


def confusion(predictions: Predictions, class_names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix (rows true, columns predicted) and the accuracy of each class, ready for JSON.

    None instead of the matrix of more than `MATRIX_CLASSES`.
    """
    predicted, k = predictions.examples.prediction, len(class_names)
    per_class = metrics.per_class_accuracy(predicted, predictions.label, k)
    small = k <= MATRIX_CLASSES
    return {
        "classes": list(class_names),
        "matrix": metrics.confusion(predicted, predictions.label, k).tolist() if small else None,
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
        changed = _changed(workdir, given, overrides)
        if not any(text.startswith("data.") for text in changed) and (numbers := run.changed_images(workdir, data)):
            logging.getLogger(__name__).warning(
                "the images of %r are not those that the run in %s began with: %s", data.dataset.name, workdir, numbers
            )
        feed = data.feed(data.split(given.evaluate.split), mesh)
    shards = sharding.batch_shards(mesh)
    batch_size = -(-(given.evaluate.batch_size or given.train.batch_size) // shards) * shards
    eval_step = step.make_eval_step(trained.model, trained.config.augment, given.perturb)
    compiled = run.compile_eval_step(eval_step, trained.variables, mesh)
    predictions = predict(compiled, trained.variables, feed, batch_size, given.task["loss"])
    found = {f"{given.evaluate.split}/{k}": v for k, v in summarize(predictions).items()}
    return {
        "step": trained.step,
        "images": len(predictions.label),
        "with": changed,
        **found,
        **confusion(predictions, trained.class_names),
    }


def _changed(workdir: Path, given: Config, overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that change what is evaluated; the split's name stands by itself."""
    fields = config.differences(run.read_config(workdir), given)
    read = [key for key in fields if not key.startswith("train.")]
    return sorted(text for text in overrides if text.partition("=")[0] in read or text.startswith("perturb."))


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m vit_jax.evaluate", description="Exact metrics of a run over a split.")
    parser.add_argument("--workdir", type=Path, required=True, help="the run")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    given = run.read_config(flags.workdir, overrides)
    config.check_read(overrides, "evaluate", given)
    run.prefer_determinism(given)
    with distributed.joined():
        distributed.check_shared(flags.workdir)
        report = evaluate_run(flags.workdir, overrides)
        if jax.process_index() == 0:
            _publish(report, flags.workdir, given.evaluate.split)
    return command.DONE


def _publish(report: dict[str, Any], workdir: Path, split: str) -> None:
    """Writes the report into the run's folder, in a file of its own for each evaluation, and prints what it holds."""
    name = "-".join([_file_name(split), *([file_name("-".join(report["with"]))] if report["with"] else [])])
    path = workdir / f"evaluation-{name}.json"
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
    return "".join(c if c.isalnum() else "_" for c in text)


if __name__ == "__main__":
    command.run(main)
