"""Exact metrics of a run over a whole split.

    python -m vit_jax.evaluate --workdir runs/digits [--config.evaluate.split=test]
    python -m vit_jax.evaluate --workdir runs/mae-cifar10 --probe knn,linear,fewshot --untrained
    python -m vit_jax.evaluate --weights vit_b16.npz --config.data.name=cifar10 --probe knn

Each image counts once, whatever the batch size and the number of devices and processes: see `train.evaluation`. With
`--probe`, the features of the frozen backbone are asked for the classes instead: see `metrics.probes`.
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from vit_jax import augment, command, config, distributed, inference, log, models, sharding, step, tasks
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import open_data
from vit_jax.inference.opening import load_variables
from vit_jax.metrics import METRICS, PROBES
from vit_jax.text import listed
from vit_jax.train.devices import prefer_determinism
from vit_jax.train.evaluation import evaluate_split, evaluation_batch_size
from vit_jax.train.experiment import compile_eval_step, make_task
from vit_jax.train.probing import FIELDS, Prober
from vit_jax.workdir import PROBED, UNTRAINED, Workdir


def evaluate_run(workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of a run on a split (`evaluate.split`), and what its task tells in detail, e.g. a confusion matrix.

    `overrides` change the run's configuration (`field=value`). The devices of every process share the work, and the
    parameters as in training (`mesh`). Raises `UserError` for images of other classes.
    """
    folder, overrides = Workdir(workdir), config.rename_flags(overrides)
    given = folder.config(overrides)
    mesh = sharding.make_mesh(given.mesh)
    predictor = inference.load(workdir, overrides=overrides, mesh=mesh)
    preprocessing = predictor.preprocessing
    with distributed.raise_on_all_processes():
        data = dataclasses.replace(open_data(given.data, preprocessing.size), preprocessing=preprocessing)
        if predictor.class_names and data.class_names != predictor.class_names:
            raise UserError(
                f"{data.dataset.name!r} has {_few(data.class_names)}, the run in {workdir} learned "
                f"{_few(predictor.class_names)}; evaluate it on images of its own classes"
            )
        augment.check_corrupted(given.corruption, preprocessing.channels)
        changed = _changed(workdir, given, overrides)
        if not any(text.startswith("data.") for text in changed) and (numbers := folder.changed_images(data)):
            logging.getLogger(__name__).warning(
                "the images of %r are not those that the run in %s began with: %s", data.dataset.name, workdir, numbers
            )
        fields = ("image", *tasks.chosen(given.task, tasks.Distill()).targets)
        loader = data.loader(data.split(given.evaluate.split), mesh, fields=fields).load()
    task = make_task(predictor.config, data.class_names, preprocessing.shape)
    variables, rules = predictor.variables, models.naming_of(task.module).rules
    if not task.needs_head:  # it trained more than the backbone that predicts
        _, variables = load_variables(folder, task.module, task.parts.image_shape, predictor.config, mesh=mesh)
    eval_step = compile_eval_step(step.make_eval_step(task, given.corruption), variables, mesh, rules)
    found = evaluate_split(eval_step, variables, loader, evaluation_batch_size(given, mesh), task)
    return {
        "step": predictor.step,
        "images": found.size,
        "with": changed,
        **{f"{given.evaluate.split}/{k}": v for k, v in found.scalars().items()},
        **found.details(),
    }


def probe(
    address: str | Path,
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    weights: bool = False,
    untrained: bool = False,
) -> dict[str, Any]:
    """What the features of a run's or of published weights' frozen backbone tell of a split's classes.

    The data set's training images, without augmentation, are what the probes learn from. `names`: of
    `metrics.PROBES`; `overrides` as in `evaluate_run`, of published weights they name the data set. `untrained`: what
    the same model tells with random parameters, too, under the split's name and "untrained".
    """
    overrides = config.rename_flags(overrides)
    given = config.from_dict({}, overrides) if weights else Workdir(address).config(overrides)
    config.check_probes(names)
    mesh = sharding.make_mesh(given.mesh)
    predictor = inference.load(address, overrides=overrides, mesh=mesh)
    used, preprocessing = predictor.config, predictor.preprocessing
    with distributed.raise_on_all_processes():
        data = dataclasses.replace(open_data(used.data, preprocessing.size), preprocessing=preprocessing)
        train = data.loader(data.split("train"), mesh, fields=FIELDS).load()
        asked = data.loader(data.split(given.evaluate.split), mesh, fields=FIELDS).load()
    shape = augment.input_shape(used.augment, preprocessing.shape)
    parts = tasks.Parts(predictor.model, shape, data.class_names, used.augment, used.augment)
    prober = Prober(used, parts, train, predictor.variables, names)
    found, warnings = prober.measure(predictor.variables, asked)
    split = given.evaluate.split
    scalars = {f"{split}/{name}": value for name, value in found.items()}
    if untrained:
        random = jax.jit(lambda: step.init_variables(predictor.model, used.seed, shape))()
        scalars |= {f"{split} {UNTRAINED}/{name}": value for name, value in prober.measure(random, asked)[0].items()}
    return {
        "step": predictor.step,
        "images": len(asked.split),
        "train_images": len(train.split),
        "with": _changed(Path(address), given, overrides) if not weights else list(overrides),
        **scalars,
        "warnings": warnings,
    }


def _changed(workdir: Path, given: Config, overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that change what is evaluated; the split's name stands by itself."""
    fields = config.differences(Workdir(workdir).config(), given)
    read = [key for key in fields if not key.startswith("train.")]
    return sorted(text for text in overrides if text.partition("=")[0] in read or text.startswith("corruption."))


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m vit_jax.evaluate", description="Exact metrics of a run over a split.")
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--workdir", type=Path, help="the run")
    subject.add_argument("--weights", help="published weights: a file, a folder or an address; needs --probe")
    names = ",".join(PROBES)
    parser.add_argument("--probe", default="", help=f"ask the frozen features for classes instead, e.g. {names}")
    parser.add_argument("--untrained", action="store_true", help="probe the same model with random parameters, too")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if flags.data_dir:
        overrides.append(f"data.data_dir={flags.data_dir}")
    if flags.untrained and not flags.probe:
        raise UserError(f"--untrained belongs to --probe; add --probe {names}")
    if flags.probe:
        return _probe(flags, overrides)
    if flags.weights:
        raise UserError(f"--weights {flags.weights} have no evaluation of their own; add --probe {names}")
    given = Workdir(flags.workdir).config(overrides)
    config.check_read(overrides, "evaluate", given)
    prefer_determinism(given)
    with distributed.joined():
        distributed.check_shared(flags.workdir)
        report = evaluate_run(flags.workdir, overrides)
        if jax.process_index() == 0:
            _publish(report, flags.workdir, given.evaluate.split)
    return command.DONE


def _probe(flags: argparse.Namespace, overrides: list[str]) -> int:
    given = config.from_dict({}, overrides) if flags.weights else Workdir(flags.workdir).config(overrides)
    config.check_read([*overrides, "evaluate.split=train"], "evaluate", given)  # whose images are read, too
    prefer_determinism(given)
    with distributed.joined():
        if flags.workdir:
            distributed.check_shared(flags.workdir)
        address, names, split = flags.weights or flags.workdir, flags.probe.split(","), given.evaluate.split
        report = probe(address, names, overrides, weights=bool(flags.weights), untrained=flags.untrained)
        if jax.process_index() == 0:
            _publish_probes(report, flags.workdir, split, str(address))
    return command.DONE


def _publish_probes(report: dict[str, Any], workdir: Path | None, split: str, address: str) -> None:
    """Prints what probes found, and writes it into the folder of a run, beside evaluations."""
    console = Console(highlight=False)
    found = {key: value for key, value in report.items() if key.startswith((f"{split}/", f"{split} {UNTRAINED}/"))}
    log.result_table(console, {**found, "images": report["images"], "workdir": address})
    for name in (name for name, metric in METRICS.items() if f"{split} {UNTRAINED}/{name}" in found and metric.percent):
        gained = 100 * (found[f"{split}/{name}"] - found[f"{split} {UNTRAINED}/{name}"])
        console.print(f"{METRICS[name].label}: {gained:+.1f} points over random parameters", markup=False)
    for text in report["warnings"]:
        console.print(f"warning: {text}", markup=False, soft_wrap=True)
    images = f"{report['train_images']:,} training images taught, {report['images']:,} were asked"
    where = f"; in {Workdir(workdir).write_evaluation(report, split, report['with'], PROBED)}" if workdir else ""
    console.print(f"step {report['step']}, {images}{where}", markup=False, soft_wrap=True)


def _publish(report: dict[str, Any], workdir: Path, split: str) -> None:
    """Writes the report into the run's folder, in a file of its own for each evaluation, and prints what it holds."""
    path = Workdir(workdir).write_evaluation(report, split, report["with"])
    console = Console(highlight=False)
    found = {key: value for key, value in report.items() if key.startswith(f"{split}/")}
    log.result_table(console, {**found, "images": report["images"], "workdir": str(workdir)})
    if "per_class_accuracy" in report:
        log.class_table(console, report["per_class_accuracy"])
    if "iou_per_class" in report:
        log.class_table(console, report["iou_per_class"], "IoU by class")
    changed = f", with {' '.join(report['with'])}" if report["with"] else ""
    console.print(
        f"step {report['step']}, {report['images']:,} images{changed}; all of it, with the confusion matrix, in {path}",
        markup=False,
        soft_wrap=True,
    )


def _few(class_names: Sequence[str]) -> str:
    return f"{len(class_names)} classes ({listed(class_names)})"


if __name__ == "__main__":
    command.run(main)
