"""The story of one run: open the data, build, restore, loop, evaluate, save."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from vit_jax import command, config, distributed, log, run, sharding
from vit_jax.checkpoint import Checkpoints, Damaged, saved_steps
from vit_jax.command import Interruption, UserError
from vit_jax.config import Config
from vit_jax.data import Data, Loader, MissingDataset, open_data
from vit_jax.pretrained import Weights
from vit_jax.run import Arrays, Run
from vit_jax.step import evaluation_variables
from vit_jax.train.loop import CONFUSION, PREDICTIONS, RESULT, Book, Trainer
from vit_jax.trees import PyTree

__all__ = ["CONFUSION", "PREDICTIONS", "RESULT", "Trainer", "train"]


def train(given: Config, workdir: Path, console: Console | None = None) -> int:
    """Trains, or resumes the run that `workdir` holds; the command's exit code."""
    console = console or Console(highlight=False, quiet=jax.process_index() > 0)
    with distributed.same_mistakes():
        finished = check_workdir(given, workdir)
    distributed.check_shared(workdir)
    if finished:
        log.result_table(console, finished)
        done = f"\nThis run is finished. To train again, give another --workdir than {workdir}."
        console.print(done, soft_wrap=True, markup=False)
        return command.DONE
    with distributed.same_mistakes():
        weights = published_weights(given, workdir)
        settings, data = open_images(given, workdir, weights, console)
        check_images(workdir, data)
        if given.data.limit > data.size("train"):
            console.print(f"data.limit={given.data.limit}: all {data.size('train'):,} training images are used")
        run.check_data(settings, data)
        arrays = fit_weights(weights, settings, data, console)

        mesh = run.make_mesh(settings, data)
        run.check_batch(settings, mesh)
        crop = run.host_crop(settings, data)
        loader = data.loader(data.split("train"), mesh, on_device=True, crop=crop).load()
        prepared = run.prepare(settings, data, loader.split)
    forward = add_teacher(prepared, data, loader)
    prepared = choose_attention(run.with_kernel(workdir, prepared), data, loader, console)
    built = build_fitting(prepared, data, loader, forward)
    with distributed.same_mistakes():
        if jax.process_index() == 0:
            run.save_description(workdir, given, prepared, data)

    checkpoints = Checkpoints(
        workdir / run.CHECKPOINTS, keep_last=given.checkpoint.keep_last, keep_best=given.checkpoint.keep_best
    )
    state, book = restore_or_init(built, checkpoints, arrays)
    with Interruption() as interruption, Trainer(built, data, loader, workdir, checkpoints, book, console) as trainer:
        state = trainer.loop(state, interruption)
        checkpoints.finish()
        if interruption.signal and int(state.step) < trainer.length.steps:
            console.print(f"Stopped at step {int(state.step)}, and saved: the same command goes on from there.")
            return interruption.exit_code
        result = trainer.finish(choose_variables(built, checkpoints, state))
    log.result_table(console, result)
    return command.DONE


def check_workdir(given: Config, workdir: Path) -> dict[str, Any] | None:
    """The result of the finished run in `workdir`, if there is one.

    Raises `UserError` if its run is another one, or if it cannot hold a run.
    """
    refused = run.is_run(workdir) and not run.has_begun(workdir)
    if (workdir / run.CONFIG).exists() and not refused:
        changed = config.differences(run.read_config(workdir), given)
        if changed:
            fields = ", ".join(f"{key} ({before} there, {after} now)" for key, (before, after) in changed.items())
            raise UserError(
                f"{workdir} holds a run of another configuration: {fields}; "
                "give another --workdir, or the configuration that it was started with"
            )
        if (workdir / RESULT).exists():
            return json.loads((workdir / RESULT).read_text())
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder")
    if set("[]*?") & set(str(workdir.resolve())):
        raise UserError(f"--workdir {workdir}: checkpoints cannot be kept under a name with [, ], * or ?; give another")
    return None


def check_images(workdir: Path, data: Data) -> None:
    """Raises `UserError` if the run in `workdir` began with other images, or would lie among them."""
    if changed := run.changed_images(workdir, data):
        raise UserError(
            f"the images of {data.dataset.name!r} are not those that the run in {workdir} began with: {changed}; "
            "bring the former ones back, or give another --workdir"
        )
    for folder in data.dataset.folders if not run.has_begun(workdir) else ():
        if workdir.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"--workdir {workdir} lies in {folder}, whose folders are classes; give one elsewhere")


def published_weights(given: Config, workdir: Path) -> Weights | None:
    """The weights that a new run starts from; None if from random ones, or if the run goes on from a checkpoint."""
    if not given.init.weights or saved_steps(workdir / run.CHECKPOINTS):
        return None
    return run.find_weights(given.init.weights)


def open_images(given: Config, workdir: Path, weights: Weights | None, console: Console) -> tuple[Config, Data]:
    """The data set, and the configuration that prepares images as the run in `workdir`, or its weights, want them."""
    if run.has_begun(workdir):
        view, used = run.read_preprocessing(workdir, given.augment)
        return dataclasses.replace(given, augment=used), open_or_prepare(given, console, view.size)
    source = weights.preprocessing if weights else None
    data = open_or_prepare(given, console, run.default_size(given, source))
    return run.follow(given, data, source), data


def open_or_prepare(given: Config, console: Console, size: tuple[int, int]) -> Data:
    """The data set; one that is missing, and that needs no TensorFlow, is downloaded and converted first.

    `size` is that of images which differ in size, where the configuration gives none.
    """
    from vit_jax.data import prepare  # also a command: imported late so that `python -m` finds it unloaded

    try:
        return open_data(given.data, size)
    except MissingDataset:
        if given.data.name not in prepare.PREPARABLE:
            raise
    data_dir = command.data_dir(given.data.data_dir)
    console.print(
        f"The data set {given.data.name} is not in {data_dir}: preparing it, once.", soft_wrap=True, markup=False
    )
    prepare.prepare(given.data.name, data_dir)
    return open_data(given.data, size)


def fit_weights(weights: Weights | None, settings: Config, data: Data, console: Console) -> Arrays:
    """The arrays of the weights that the model takes, with a table of what became of each; none without weights."""
    if weights is None:
        return {}
    arrays, report = run.fit_weights(weights, settings, data)
    if jax.process_index() == 0:
        log.weights_table(console, f"{weights.address} ({weights.layout_name})", report.groups())
    return arrays


def add_teacher(prepared: Config, data: Data, loader: Loader) -> Callable[..., jax.Array] | None:
    """The forward pass of the teacher, whose variables join what every step reads; None without a teacher."""
    if not prepared.distill.teacher:
        return None
    with distributed.same_mistakes():
        teacher = run.open_teacher(prepared.distill.teacher, prepared, data.class_names)
    everywhere = sharding.replicated(loader.mesh)
    loader.constants["teacher"] = jax.tree.map(lambda array: sharding.put(array, everywhere), teacher.variables)
    return teacher.forward


def choose_attention(prepared: Config, data: Data, loader: Loader, console: Console) -> Config:
    """The configuration with the attention kernel that the devices run fastest, where `model.attention` is auto."""
    chosen, seconds = run.fastest_attention(prepared, loader.mesh, run.input_shape(prepared, data.preprocessing.shape))
    if seconds:
        times = ", ".join(f"{kernel} {1000 * of_all:.3g} ms" for kernel, of_all in seconds.items())
        console.print(f"A layer's attention takes {times}: {chosen.model['attention']} is taken", soft_wrap=True)
    return chosen


def build_fitting(prepared: Config, data: Data, loader: Loader, teacher: Callable[..., jax.Array] | None) -> Run:
    """The run on the loader's mesh; with `model.remat='auto'` it recomputes what the devices cannot keep."""
    mesh = loader.mesh

    def build(chosen: Config) -> Run:
        shape, size, cropped = data.preprocessing.shape, len(loader.split), loader.crop is not None
        return run.build(chosen, mesh, image_shape=shape, train_images=size, cropped=cropped, teacher=teacher)

    frozen = {**loader.constants, "total_steps": jax.ShapeDtypeStruct((), "int32")}
    return run.fitting(prepared, build, loader.spec(prepared.train.batch_size), frozen, run.device_memory(mesh))


def restore_or_init(built: Run, checkpoints: Checkpoints, arrays: Arrays) -> tuple[PyTree, Book]:
    """The newest usable checkpoint's state, or a new one that starts from published arrays, where there are any."""
    restored = checkpoints.restore_newest(built.abstract_state, built.mesh)
    if restored is None:
        if built.config.init.weights and not arrays:
            raise UserError(
                f"no checkpoint in {checkpoints.directory} is usable; to start again from "
                f"{built.config.init.weights}, give another --workdir"
            )
        state = built.init_state()
        return run.start_from(state, arrays) if arrays else state, Book()
    state, about = restored
    return state, Book(**about["book"])


def choose_variables(built: Run, checkpoints: Checkpoints, state: PyTree) -> PyTree:
    """The variables that meet the test split: the last, or those that validated best."""
    best = json.loads(distributed.said_by_first(json.dumps(checkpoints.best_step())))  # all read the same one
    if built.config.evaluate.use == "best" and best is not None and best != int(state.step):
        try:
            state, _ = checkpoints.restore(best, built.abstract_state, built.mesh)
        except Damaged as damage:
            logging.getLogger(__name__).warning(
                "the best checkpoint, %s, is damaged (%s): using the last", best, damage
            )
    return evaluation_variables(state)
