"""One model whose parameters are the means of several: a model soup (Wortsman et al. 2022, arXiv:2203.05482).

    python -m vit_jax.soup runs/a runs/b runs/c --out runs/soup
    python -m vit_jax.soup runs/a --checkpoints --uniform --out runs/soup

It costs as much as one model. It helps models that lie near each other: tuned from the same weights with other
settings, or checkpoints of one run. Of models that were trained from different random weights the mean is none.

Greedy (the paper's recipe 1): the best in validation begins, and the others follow in their order, each of which stays
in if validation does not get worse. The test split meets only the soup and the best of its ingredients. Batch norm's
statistics are averaged, too, though those of the mean differ a little. The folder `--out` is then like that of a run:
other commands read it, and `init.weights` starts from it.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from vit_jax import checkpoint, command, distributed, inference, log, metrics, models, sharding, step, tasks
from vit_jax.command import Failure, UserError
from vit_jax.data import Data, open_data
from vit_jax.inference.opening import variables_at
from vit_jax.metrics import METRICS
from vit_jax.train.evaluation import evaluate_split, evaluation_batch_size
from vit_jax.train.experiment import compile_eval_step, make_task
from vit_jax.trees import PyTree
from vit_jax.workdir import DESCRIPTION, Workdir

Scalars = dict[str, float]
CLASSIFIERS = (tasks.Classification, tasks.Distillation)
TRAINING_ALONE = ("dropout", "stochastic_depth", "stochastic_depth_schedule", "remat")  # fields that end so
IMAGES = ("name", "data_dir", "train", "validation", "test", "classes")  # fields of `data` that choose images


@dataclass
class Ingredient:
    """A trained model, and what validation says of it."""

    name: str
    step: int
    variables: PyTree
    found: Scalars = dataclasses.field(default_factory=dict)


def mean_of(variables: Sequence[PyTree]) -> PyTree:
    """The mean of each number, in float32; of one model its own."""
    return jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0, dtype=np.float32), *variables)


def greedy(ingredients: Sequence[Ingredient], score: Callable[[PyTree], float]) -> list[Ingredient]:
    """The ingredients, the best first, whose mean scores best on the way; each is tried once."""
    chosen, best = [ingredients[0]], score(ingredients[0].variables)
    for ingredient in ingredients[1:]:
        tried = score(mean_of([one.variables for one in (*chosen, ingredient)]))
        if tried >= best:
            chosen, best = [*chosen, ingredient], tried
    return chosen


def find(runs: Sequence[Path], *, checkpoints: bool) -> tuple[inference.Predictor, list[Ingredient]]:
    """The first run's model, and the variables of each run, or of each of their checkpoints.

    Raises `UserError` for models, classes or images that differ.
    """
    found: list[Ingredient] = []
    first: inference.Predictor | None = None
    for run in runs:
        workdir = Workdir(run)
        if not workdir.is_run():
            raise UserError(f"{run} holds no run; give the folders of runs")
        predictor = inference.load(run)
        first = first or predictor
        _check_alike(runs[0], first, run, predictor)
        steps = workdir.saved_steps() if checkpoints else [predictor.step]
        for at in steps:
            try:
                read = variables_at(workdir, predictor, at) if checkpoints else predictor.variables
            except checkpoint.Damaged as damage:
                logging.getLogger(__name__).warning("checkpoint %s of %s is damaged (%s): left out", at, run, damage)
                continue
            found.append(Ingredient(f"{run}, step {at:,}", at, jax.device_get(dict(read))))
    assert first is not None
    if len(found) < 2:
        advice = "more runs, or --checkpoints of one that keeps several (checkpoint.keep_last)"
        raise UserError(f"a soup needs two models and more, and {runs[0]} is one; give {advice}")
    return first, found


def _check_alike(path: Path, one: inference.Predictor, other_path: Path, other: inference.Predictor) -> None:
    """Raises `UserError` where the mean of two runs' parameters, or their validation, would mean nothing."""
    if not other.class_names or tasks.chosen(other.config.task, other.config.distill) not in CLASSIFIERS:
        raise UserError(f"{other_path} is no plain classification: soups are made of classifiers")
    alike = {what: (of_one, _compared(other)[what]) for what, of_one in _compared(one).items()}
    for what, (of_one, of_other) in alike.items():
        if of_one != of_other:
            raise UserError(f"{path} and {other_path} differ in their {what}; give runs of one model and one data set")


def _compared(predictor: inference.Predictor) -> dict[str, Any]:
    """What models of one soup share: all but what they were trained with."""
    given = predictor.config
    return {
        "models": {name: value for name, value in given.model.items() if not name.endswith(TRAINING_ALONE)},
        "classes": predictor.class_names,
        "preprocessing": (predictor.preprocessing, given.augment.mean, given.augment.std),
        "data (config group data)": [getattr(given.data, name) for name in IMAGES],
    }


def open_images(predictor: inference.Predictor) -> Data:
    """The data set, its images prepared as the model wants them."""
    data = open_data(predictor.config.data, predictor.preprocessing.size)
    return dataclasses.replace(data, preprocessing=predictor.preprocessing)


def make_evaluation(predictor: inference.Predictor, data: Data) -> Callable[[PyTree, str], Scalars]:
    """`(variables, "validation" or "test") -> metrics`, compiled once."""
    given = predictor.config
    mesh = sharding.make_mesh(given.mesh)
    task = make_task(given, data.class_names, predictor.preprocessing.shape)
    fields = ("image", *tasks.chosen(given.task, tasks.Distill()).targets)
    loaders = {name: data.loader(data.split(name), mesh, fields=fields) for name in ("validation", "test")}
    rules = models.naming_of(task.module).rules
    eval_step = compile_eval_step(step.make_eval_step(task), predictor.variables, mesh, rules)
    places = sharding.tree_shardings(dict(predictor.variables), mesh, rules)

    def evaluate(variables: PyTree, split: str) -> Scalars:
        loader, size = loaders[split].load(), evaluation_batch_size(given, mesh)
        placed = jax.tree.map(sharding.put, variables, places)
        return evaluate_split(eval_step, placed, loader, size, task).scalars()

    return evaluate


def write(folder: Path, like: Path, predictor: inference.Predictor, soup: Ingredient, data: Data) -> None:
    """A folder as a run leaves it, but for what only training reads: the description, and a checkpoint."""
    given, workdir = Workdir(like).config(), Workdir(folder)
    # There is nothing beside the averages.
    optim = dataclasses.replace(given.optim, ema_decay=0.0, ema_warmup=False, schedule_free=0.0)
    evaluated = dataclasses.replace(given.evaluate, use="last")
    workdir.write_description(dataclasses.replace(given, optim=optim, evaluate=evaluated), predictor.config, data)
    checkpoints = checkpoint.Checkpoints(workdir.checkpoints)
    checkpoints.save(jax.tree.map(jax.numpy.asarray, soup.variables), soup.step, {DESCRIPTION: workdir.description})
    checkpoints.close()
    if checkpoints.fault:
        raise Failure(f"the soup could not be saved in {folder} ({checkpoints.fault}); make room, and try again")


def cook(runs: Sequence[Path], folder: Path, console: Console, *, checkpoints: bool, uniform: bool) -> dict[str, Any]:
    """Makes the soup and writes it; what is in it, and what it and its best ingredient reach in the test."""
    predictor, ingredients = find(runs, checkpoints=checkpoints)
    data = open_images(predictor)
    evaluate, monitor = make_evaluation(predictor, data), predictor.config.evaluate.metric
    monitor = "accuracy" if monitor == "auto" else monitor

    def score(found: Scalars) -> float:
        return metrics.score(monitor, {f"val/{monitor}": found[monitor]}, "val")

    for ingredient in ingredients:
        ingredient.found = evaluate(ingredient.variables, "validation")
    ingredients.sort(key=lambda one: -score(one.found))
    chosen = ingredients if uniform else greedy(ingredients, lambda x: score(evaluate(x, "validation")))
    soup = Ingredient("soup", max(one.step for one in chosen), mean_of([one.variables for one in chosen]))
    soup.found = evaluate(soup.variables, "validation")
    write(folder, runs[0], predictor, soup, data)
    tested = {one.name: evaluate(one.variables, "test")[monitor] for one in (soup, ingredients[0])}
    console.print(_table([*ingredients, soup], chosen, tested, monitor))
    console.print(
        f"the mean of {len(chosen)} of {len(ingredients)} models is in {folder}", soft_wrap=True, markup=False
    )
    return {"chosen": [one.name for one in chosen], "monitor": monitor, "test": tested}


def _table(rows: Sequence[Ingredient], chosen: Sequence[Ingredient], tested: Scalars, monitor: str) -> Table:
    table = Table("model", "in it", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for split in ("val", "test"):
        table.add_column(f"{split} {METRICS[monitor].short}", justify="right")
    for row in rows:
        values = (row.found[monitor], tested.get(row.name))
        texts = ["" if value is None else log.metric_text(monitor, value) for value in values]
        table.add_row(row.name, "yes" if row in chosen else "", *texts)
    return table


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(
        prog="python -m vit_jax.soup", description="Averages the parameters of several runs into one model."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs of one model and data set")
    parser.add_argument("--checkpoints", action="store_true", help="each kept checkpoint of them, not one of each run")
    parser.add_argument("--uniform", action="store_true", help="all of them (default: greedy, by validation)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes: a new folder")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]} changes nothing in a soup; leave it out")
    if flags.out.exists():
        raise UserError(f"--out {flags.out} is there already; give a new folder")
    with distributed.joined():
        if jax.process_count() > 1:
            raise UserError(f"this is one of {jax.process_count()} processes; start it once")
    cook(flags.runs, flags.out, Console(highlight=False), checkpoints=flags.checkpoints, uniform=flags.uniform)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
