"""The story of one run: open what it needs, set up, restore, loop, evaluate, save."""

import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console

from vit_jax import command, config, distributed, inference, log, sharding, trees
from vit_jax.checkpoint import Checkpoints, Damaged
from vit_jax.command import Interruption, UserError
from vit_jax.config import Config
from vit_jax.data import Data
from vit_jax.inference.precision import choose_dtype
from vit_jax.lock import Lock, held
from vit_jax.step import evaluation_variables
from vit_jax.train.experiment import Experiment, set_up
from vit_jax.train.initial import arrays_of_images
from vit_jax.train.inputs import Inputs, check_images, open_inputs
from vit_jax.train.loop import Trainer
from vit_jax.train.saving import SAVED_AS, TrainerState
from vit_jax.train.start import Arrays, start_from
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir

if TYPE_CHECKING:
    from vit_jax.inference import Predictor

__all__ = [
    "Experiment",
    "Inputs",
    "Result",
    "Trainer",
    "check_images",
    "check_workdir",
    "open_inputs",
    "set_up",
    "train",
]


@dataclass(frozen=True)
class Result:
    """A run that ended, or was interrupted."""

    workdir: Path
    exit_code: int  # of the command: 0 done; 130, 143: interrupted and saved
    metrics: dict[str, Any]  # as in result.json; {} of a run that was interrupted
    data: Data | None = field(default=None, repr=False)  # as training opened it; None where it only read the result

    @property
    def finished(self) -> bool:
        """Whether the run has met its test split."""
        return self.exit_code == command.DONE

    def predictor(self) -> "Predictor":
        """The trained model, ready to use."""
        return inference.load(self.workdir)


def train(given: Config, workdir: Path, console: Console | None = None) -> Result:
    """Trains, or resumes the run that `workdir` holds; what is finished already is only read."""
    folder = Workdir(workdir)
    console = console or Console(highlight=False, quiet=jax.process_index() > 0)
    with distributed.raise_on_all_processes():
        finished = check_workdir(given, folder)
        log.check_trackers(log.chosen_trackers(given.log))
    distributed.check_shared(workdir)
    if finished:
        log.result_table(console, finished)
        done = f"\nThis run is finished. To train again, give another --workdir than {workdir}."
        console.print(done, soft_wrap=True, markup=False)
        return Result(workdir, command.DONE, finished)
    with distributed.raise_on_all_processes():
        given = choose_dtype(given, folder, console)
        inputs = open_inputs(given, folder, console)  # before there is a folder, which may lie among the images
    with contextlib.ExitStack() as stack:
        with distributed.raise_on_all_processes():
            lock = stack.enter_context(held(folder.path)) if jax.process_index() == 0 else None
        return _train(given, folder, inputs, console, lock)


def _train(given: Config, folder: Workdir, inputs: Inputs, console: Console, lock: Lock | None) -> Result:
    """As `train`, in a folder that no other process trains in."""
    with distributed.raise_on_all_processes():
        check_workdir(given, folder)  # what another process may have written in the meantime
        kernel = folder.kernel(given)
    experiment = set_up(inputs, kernel=kernel, console=console)
    with distributed.raise_on_all_processes():
        if jax.process_index() == 0:
            folder.write_description(given, experiment.config, experiment.data)
            folder.write_start(facts(experiment))

    keep = {"keep_last": given.checkpoint.keep_last, "keep_best": given.checkpoint.keep_best}
    checkpoints = Checkpoints(folder.checkpoints, **keep, wait=given.checkpoint.wait)
    state, so_far = restore_or_init(experiment, checkpoints, inputs)
    with Interruption() as interruption, Trainer(experiment, folder, checkpoints, so_far, console) as trainer:
        trainer.saver.lock = lock
        state = trainer.loop(state, interruption)
        trainer.saver.ensure_saved(state)
        if interruption.signal and int(state.step) < trainer.length.steps:
            console.print(f"Stopped at step {int(state.step)}, and saved: the same command goes on from there.")
            return Result(folder.path, interruption.exit_code, {}, experiment.data)
        result = trainer.finish(*choose_variables(experiment, checkpoints, state))
    log.result_table(console, result)
    log.print_curves(console, folder.metrics(), trainer.monitor())
    return Result(folder.path, command.DONE, result, experiment.data)


def facts(experiment: Experiment) -> dict[str, Any]:
    """What a report tells of a run that has no result yet."""
    return {
        "device": sharding.device_name(experiment.mesh),
        "parameters": trees.count(experiment.abstract_state.params),
        "flops_per_image": experiment.flops_per_image,
        "flops_per_step": experiment.flops_per_step,
    }


def check_workdir(given: Config, workdir: Workdir) -> dict[str, Any] | None:
    """The result of the finished run in `workdir`, if there is one.

    Raises `UserError` if its run is another one, or if it cannot hold a run.
    """
    refused = workdir.is_run() and not workdir.has_begun()
    if (workdir.is_run() or workdir.config_file.exists()) and not refused:
        changed = config.differences(workdir.config(), given)
        if changed:
            fields = ", ".join(f"{key} ({before} there, {after} now)" for key, (before, after) in changed.items())
            raise UserError(
                f"{workdir} holds a run of another configuration: {fields}; "
                "give another --workdir, or the configuration that it was started with"
            )
        if workdir.is_finished():
            return workdir.result()
    if workdir.path.exists() and not workdir.path.is_dir():
        raise UserError(f"--workdir {workdir} is a file; give a folder")
    if foreign := workdir.foreign_files():
        raise UserError(
            f"--workdir {workdir} holds no run, but {', '.join(foreign)}, which training would write over; give another"
        )
    if set("[]*?") & set(str(workdir.path.resolve())):
        raise UserError(f"--workdir {workdir}: checkpoints cannot be kept under a name with [, ], * or ?; give another")
    return None


def restore_or_init(experiment: Experiment, checkpoints: Checkpoints, inputs: Inputs) -> tuple[PyTree, TrainerState]:
    """The newest usable checkpoint's state, or a new one that starts from published arrays, where there are any."""
    restored = checkpoints.restore_newest(experiment.abstract_state, experiment.mesh, experiment.rules)
    if restored is None:
        if inputs.config.init.weights and not inputs.arrays:
            raise UserError(
                f"no checkpoint in {checkpoints.directory} is usable; to start again from "
                f"{inputs.config.init.weights}, give another --workdir"
            )
        arrays = inputs.arrays or arrays_of_images(experiment)
        state = experiment.init_state()
        return begin_from(experiment, state, arrays) if arrays else state, TrainerState()
    state, about = restored
    return state, TrainerState(**about[SAVED_AS])


def begin_from(experiment: Experiment, state: PyTree, arrays: Arrays) -> PyTree:
    """The first state with these arrays in their places; the task's own begins from them, too."""
    state, own = start_from(state, arrays), experiment.abstract_state.task
    if not jax.tree.leaves(own):
        return state
    places = sharding.tree_shardings(own, experiment.mesh, experiment.rules)
    return state.replace(task=jax.jit(experiment.task.init_state, out_shardings=places)(state.params))


def choose_variables(experiment: Experiment, checkpoints: Checkpoints, state: PyTree) -> tuple[PyTree, int]:
    """The variables that meet the test split, the last or those that validated best, and their step."""
    best = json.loads(distributed.broadcast_from_first(json.dumps(checkpoints.best_step())))  # all read the same one
    if experiment.config.evaluate.use == "best" and best is not None and best != int(state.step):
        try:
            state, _ = checkpoints.restore(best, experiment.abstract_state, experiment.mesh, experiment.rules)
        except Damaged as damage:
            logging.getLogger(__name__).warning(
                "the best checkpoint, %s, is damaged (%s): using the last", best, damage
            )
    return evaluation_variables(state, experiment.task.evaluated), int(state.step)
