"""What a run writes on its way and at its end, whatever the disk does: training goes on where a save fails."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_jax.checkpoint import Checkpoints
from vit_jax.command import Failure, UserError
from vit_jax.files import write_atomically
from vit_jax.lock import Lock
from vit_jax.tasks import Evaluator
from vit_jax.trees import PyTree
from vit_jax.workdir import DESCRIPTION, Workdir

SAVED_AS = "book"  # what checkpoints call a `TrainerState`, those of earlier versions too


@dataclass
class TrainerState:
    """What a run knows about itself beside the arrays of the state: it is saved with each checkpoint."""

    window: list[dict[str, float]] = field(default_factory=list)  # metrics of the steps since the last log line
    validation: dict[str, float] = field(default_factory=dict)  # the last
    best: dict[str, float] = field(default_factory=dict)  # the validation with the best score
    before: dict[str, float] = field(default_factory=dict)  # metrics on the test split before the first step
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of all processes that trained so far
    training_seconds: float = 0.0  # of these, in training steps
    logged_seconds: float = 0.0  # of these, before the last log line
    energy_kwh: float | None = None
    steps: int = 0  # of the whole run, as far as the last checkpoint knew


class Saver:
    """Writes checkpoints, notes and the result of one run into its folder."""

    def __init__(
        self, workdir: Workdir, checkpoints: Checkpoints, so_far: TrainerState, warn: Callable[[str], None]
    ) -> None:
        self.workdir, self.checkpoints, self.so_far, self.warn = workdir, checkpoints, so_far, warn
        self.lock: Lock | None = None  # of the folder; the first process has it
        self.last_score: float | None = None
        self.failed = False

    def save(self, at: int, state: PyTree, score: float | None = None) -> None:
        """Starts a checkpoint; that one failed is a warning, once: the next save is another attempt."""
        self.last_score = score
        about = {SAVED_AS: vars(self.so_far), DESCRIPTION: self.workdir.copies()}
        self.checkpoints.save(state, at, about, score)
        if self.checkpoints.fault and not self.failed:
            self.failed = True
            last = max(self.workdir.saved_steps(), default=0)
            self.warn(
                f"step {at}: a checkpoint could not be saved ({self.checkpoints.fault}). Training goes on, each save "
                + (f"tries again; checkpoint {last} is whole" if last else "tries again; there is no checkpoint yet")
            )

    def ensure_saved(self, state: PyTree) -> None:
        """Waits until the last state is saved; raises `Failure` where that fails again."""
        self.checkpoints.finish()
        at = int(state.step)
        if at not in self.checkpoints.steps():
            self.save(at, state, self.last_score)
            self.checkpoints.finish()
        if at not in (steps := self.checkpoints.steps()):
            went_on = f"it goes on from step {steps[-1]}" if steps else "it begins anew"
            raise Failure(
                f"step {at} could not be saved in {self.checkpoints.directory} ({self.checkpoints.fault}); "
                f"make room, and give the same command again: {went_on}"
            )

    def check_lock(self) -> None:
        """Raises `UserError` where another start took this process for dead."""
        if self.lock is not None and not self.lock.is_held():
            raise UserError(
                f"another process trains in {self.workdir} now: this one stood still for long and was taken for dead; "
                "nothing is lost, let the other one go on"
            )

    def write_bad_batches(self, images: Mapping[int, Sequence[str]]) -> None:
        """Lists the images of the steps whose updates were skipped, for whoever looks for a bad one."""
        lines = [f"step {step}\t{image}" for step, names in images.items() for image in names]
        with contextlib.suppress(OSError):
            text = "\n".join(lines) + "\n"
            write_atomically(self.workdir.bad_batches_file, text.encode(errors="surrogateescape"))

    def write_progress(self, at: int) -> None:
        """Notes for the report what is known; a disk that refuses it is a warning, once."""
        try:
            self.workdir.write_progress(at, {k: v for k, v in vars(self.so_far).items() if k != "window"})
        except OSError as error:
            text = f"{self.workdir.progress_file.name} cannot be written ({error.strerror}): reports will be behind"
            if text not in self.so_far.warnings:
                self.warn(text)

    def write_result(self, found: Evaluator, result: dict[str, Any]) -> None:
        """Writes what the evaluator keeps, then the result, with which the run is finished."""
        self.check_lock()
        files = self.workdir.predictions_file, self.workdir.confusion_file
        try:
            with self.workdir.writing(*files):
                found.save(self.workdir.path)
            self.workdir.write_result(result)
        except OSError as error:
            for path in files:
                path.unlink(missing_ok=True)
            raise Failure(
                f"the result cannot be written to {self.workdir}: {error.strerror}; make room, and give the same "
                "command again: it only evaluates"
            ) from error
