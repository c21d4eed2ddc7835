"""The story of one run: open the data, build, restore, loop, evaluate, save."""

import itertools
import json
import logging
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from vit_jax import command, config, evaluate, log, metrics, run, sharding, trees
from vit_jax.checkpoint import Checkpoints
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, Feed, MissingDataset, open_data
from vit_jax.energy import Meter
from vit_jax.run import Run
from vit_jax.step import evaluation_variables
from vit_jax.trees import PyTree

RESULT, PREDICTIONS, CONFUSION = "result.json", "predictions.npz", "confusion.json"
STEPS_IN_FLIGHT = 2  # dispatched and not finished: enough to keep a device busy, few enough to stop soon


def train(given: Config, workdir: Path, console: Console | None = None) -> int:
    """Trains, or resumes the run that `workdir` holds; the command's exit code."""
    console = console or Console(highlight=False, soft_wrap=True)
    finished = check_workdir(given, workdir)
    if finished:
        log.result_table(console, finished)
        console.print(f"this run is finished; train again with another --workdir than {workdir}")
        return command.DONE
    data = open_or_prepare(given, console)
    run.check_data(given, data)
    run.prefer_determinism(given)

    mesh = sharding.make_mesh(given.mesh)
    train_split = data.split("train")
    train_feed = data.feed(train_split, mesh)
    prepared = run.prepare(given, data, train_split)
    built = run.build(prepared, mesh, image_shape=data.view.shape, train_images=len(train_split))
    if jax.process_index() == 0:
        run.save_description(workdir, given, prepared, data)

    checkpoints = Checkpoints(
        workdir / run.CHECKPOINTS, keep_last=given.checkpoint.keep_last, keep_best=given.checkpoint.keep_best
    )
    state, book = restore_or_init(built, checkpoints)
    with Interruption() as interruption:
        trainer = Trainer(built, data, train_feed, workdir, checkpoints, book, console)
        state = trainer.loop(state, interruption)
        if interruption.signal:
            checkpoints.close()
            console.print(f"stopped at step {int(state.step)} and saved; the same command goes on from there")
            return 128 + interruption.signal
        variables = choose_variables(built, checkpoints, state)
        result = trainer.finish(state, variables)
    checkpoints.close()
    log.result_table(console, result)
    return command.DONE


def check_workdir(given: Config, workdir: Path) -> dict[str, Any] | None:
    """The result of the finished run in `workdir`, if there is one; raises `UserError` if its run is another one."""
    if (workdir / run.CONFIG).exists():
        old = run.read_config(workdir)
        changed = config.differences(old, given)
        if changed:
            fields = ", ".join(f"{key} ({before} -> {after})" for key, (before, after) in changed.items())
            raise UserError(
                f"{workdir} holds a run of another configuration: {fields}; "
                "give another --workdir, or the configuration that it was started with"
            )
        if (workdir / RESULT).exists():
            return json.loads((workdir / RESULT).read_text())
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}; give another one") from error
    return None


def open_or_prepare(given: Config, console: Console) -> Data:
    """The data set; one that is missing, and that needs no TensorFlow, is downloaded and converted first."""
    from vit_jax.data import prepare  # also a command: imported late so that `python -m` finds it unloaded

    try:
        return open_data(given.data)
    except MissingDataset:
        if given.data.name not in prepare.PREPARABLE:
            raise
    data_dir = command.data_dir(given.data.data_dir)
    console.print(f"data set {given.data.name} is not in {data_dir}: preparing it, once")
    prepare.prepare(given.data.name, data_dir)
    return open_data(given.data)


@dataclass
class Book:
    """What a run knows about itself beside the state: it is saved with each checkpoint."""

    window: list[dict[str, float]] = field(default_factory=list)  # metrics of the steps since the last log line
    seconds: float = 0.0  # of all processes that trained so far
    training_seconds: float = 0.0  # of these, in training steps
    energy_kwh: float | None = None
    warnings: list[str] = field(default_factory=list)


def restore_or_init(built: Run, checkpoints: Checkpoints) -> tuple[PyTree, Book]:
    """The newest usable checkpoint's state, or a new one."""
    restored = checkpoints.restore_newest(built.abstract_state, built.mesh)
    if restored is None:
        return built.init_state(), Book()
    state, about = restored
    return state, Book(**about["book"])


def choose_variables(built: Run, checkpoints: Checkpoints, state: PyTree) -> PyTree:
    """The variables that meet the test split: the last, or those that validated best."""
    best = checkpoints.best_step()
    if built.config.evaluate.use == "best" and best is not None and best != int(state.step):
        state, _ = checkpoints.restore(best, built.abstract_state, built.mesh)
    return evaluation_variables(state)


class Interruption:
    """Notes SIGTERM and Ctrl-C instead of dying, so that the loop can save; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in self._old:
            signal.signal(other, signal.SIG_DFL)


class Trainer:
    """The loop of one run and what it keeps on the way: metrics, evaluations, checkpoints, the final result."""

    def __init__(
        self,
        built: Run,
        data: Data,
        train_feed: Feed,
        workdir: Path,
        checkpoints: Checkpoints,
        book: Book,
        console: Console,
    ) -> None:
        self.run, self.data, self.train_feed = built, data, train_feed
        self.workdir, self.checkpoints, self.book, self.console = workdir, checkpoints, book, console
        self.active = jax.process_index() == 0
        self.started, self.earlier_seconds = time.monotonic(), book.seconds
        self.meter, self.earlier_kwh = Meter(), book.energy_kwh
        self.score: float | None = None
        has_validation = "validation" in data.specs
        self.validation_feed = data.feed(data.split("validation"), built.mesh) if has_validation else None

    def loop(self, state: PyTree, interruption: Interruption) -> PyTree:
        """Trains from the state's step to the end, or to an interruption; the state is then saved."""
        settings, total, start = self.run.config, self.run.total_steps, int(state.step)
        batches = self.train_feed.train(settings.seed, settings.train.batch_size, start, total)
        if start == total:
            return state
        train_step, batches = self.compile(state, batches)
        self.writer = log.MetricsWriter(
            self.workdir, resume_step=start, tensorboard=settings.log.tensorboard, active=self.active
        )
        self.progress = log.Progress(
            total_steps=total,
            start_step=start,
            steps_per_epoch=self.run.steps_per_epoch,
            images_per_step=settings.train.batch_size,
            console=self.console,
            active=self.active,
        )
        window: list[dict[str, Any]] = list(self.book.window)  # floats, or arrays still on the device
        with self.progress:
            if start:
                self.progress.say(f"resumed at step {start}")
            began = time.monotonic()
            for at, batch in enumerate(batches, start + 1):
                state, step_metrics = train_step(state, batch, self.train_feed.frozen)
                window.append(step_metrics)
                if len(window) > STEPS_IN_FLIGHT:
                    jax.block_until_ready(window[-1 - STEPS_IN_FLIGHT])
                self.progress.advance(at)
                stop = bool(interruption.signal) or at == total
                if at % settings.log.every_steps == 0 or at == total:
                    began = self.log_window(at, window, began)
                    window = []
                evaluated = self.is_evaluation_step(at)
                if evaluated or self.is_checkpoint_step(at) or stop:
                    jax.block_until_ready(state)
                    paused = time.monotonic()
                    if evaluated:
                        self.validate(at, state)
                    self.save(at, state, window, self.score if evaluated else None)
                    began += time.monotonic() - paused
                if stop:
                    break
        self.writer.close()
        return state

    def compile(self, state: PyTree, batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
        """The compiled step, after an overview of the run that tells its memory, and the batches."""
        first = next(batches)
        began = time.monotonic()
        if self.active:
            self.console.print("compiling the training step ...")
        compiled = self.run.train_step.lower(state, first, self.train_feed.frozen).compile()
        if self.active:
            facts = describe(self.run, self.data, self.train_feed)
            facts["memory"] = _memory(compiled)
            facts["compiled in"] = log.human_seconds(time.monotonic() - began)
            parameters = trees.unstack_layers(self.run.abstract_state.params)
            title = f"{self.run.config.model['name']} on {self.data.dataset.name}"
            log.overview(self.console, title=title, rows=facts, parameters=parameters)
        return compiled, itertools.chain([first], batches)

    def is_evaluation_step(self, at: int) -> bool:
        every = self.run.config.evaluate.every_steps or self.run.steps_per_epoch
        return self.validation_feed is not None and (at % every == 0 or at == self.run.total_steps)

    def is_checkpoint_step(self, at: int) -> bool:
        every = self.run.config.checkpoint.every_steps
        return at % every == 0 if every else self.validation_feed is None and at % self.run.steps_per_epoch == 0

    def log_window(self, at: int, window: Sequence[dict[str, Any]], began: float) -> float:
        """Writes the means since the last log line; returns the time now."""
        steps = [{k: float(v) for k, v in step.items()} for step in jax.device_get(window)]
        now = time.monotonic()
        here = len([step for step in window if not isinstance(step["loss"], float)])  # steps of this process
        self.book.training_seconds += now - began
        scalars = {f"train/{k}": float(np.mean([step[k] for step in steps])) for k in ("loss", "accuracy", "grad_norm")}
        scalars |= {f"train/{k}": steps[-1][k] for k in ("lr", "param_norm", "skipped_updates")}
        scalars["train/images_per_second"] = here * self.run.config.train.batch_size / max(now - began, 1e-9)
        self.writer.write(at, scalars)
        self.progress.update(at, scalars)
        self.last_loss = scalars["train/loss"]
        in_a_row = int(steps[-1]["skipped_in_a_row"])
        if in_a_row >= self.run.config.train.max_bad_steps:
            raise UserError(
                f"the last {in_a_row} gradients up to step {at} were not finite, training has diverged; "
                "lower optim.lr, lengthen the warm-up or set optim.clip_norm=1"
            )
        return now

    def validate(self, at: int, state: PyTree) -> None:
        """Exact metrics on the validation split, and a warning where the model learns nothing."""
        assert self.validation_feed is not None
        found = evaluate.predict(
            self.run.eval_step, evaluation_variables(state), self.validation_feed, evaluation_batch(self.run)
        )
        scalars = {f"val/{k}": v for k, v in evaluate.summarize(found).items()}
        self.score = scalars["val/accuracy"] if self.run.config.evaluate.metric == "accuracy" else -scalars["val/loss"]
        self.writer.write(at, scalars)
        self.progress.evaluation(at, scalars)
        self.diagnose(at, found, scalars["val/loss"])

    def diagnose(self, at: int, found: evaluate.Predictions, loss: float) -> None:
        """Warns, once for each kind of trouble, once the model had time to learn something."""
        peak = int(np.argmax([float(self.run.rate(s)) for s in np.linspace(0, self.run.total_steps, 50)]))
        if at < min(200, self.run.total_steps // 2) or at < peak * self.run.total_steps / 49:
            return
        predicted, share = metrics.collapsed_share(metrics.predict(found.logits), found.label)
        name = self.data.class_names[predicted] if predicted >= 0 else "none"
        warnings = log.diagnose(
            loss=getattr(self, "last_loss", loss),
            num_classes=len(self.data.class_names),
            predicted_class_share=share,
            predicted_class=name,
            true_class_share=float(np.mean(found.label == predicted)),
        )
        for text in warnings:
            kind = text.split(". ")[-1]
            if not any(kind in said for said in self.book.warnings):
                self.book.warnings.append(f"step {at}: {text}")
                self.progress.warn(text)

    def save(self, at: int, state: PyTree, window: Sequence[dict[str, Any]], score: float | None) -> None:
        """Starts a checkpoint, with the metrics that are not logged yet: resuming then loses none."""
        self.book.window = [{k: float(v) for k, v in step.items()} for step in jax.device_get(list(window))]
        self.account()
        self.checkpoints.save(state, at, {"book": vars(self.book)}, score)

    def account(self) -> None:
        """Brings time and energy up to date."""
        self.book.seconds = self.earlier_seconds + time.monotonic() - self.started
        used = self.meter.kwh()
        if used is not None:
            self.book.energy_kwh = (self.earlier_kwh or 0.0) + used

    def finish(self, state: PyTree, variables: PyTree) -> dict[str, Any]:
        """Reads the test split, once, and writes predictions, confusion matrix and result."""
        test_feed = self.data.feed(self.data.split("test"), self.run.mesh)
        found = evaluate.predict(self.run.eval_step, variables, test_feed, evaluation_batch(self.run))
        self.account()
        book, total = self.book, self.run.total_steps
        trained_images = total * self.run.config.train.batch_size
        result = {
            **{f"test/{k}": v for k, v in evaluate.summarize(found).items()},
            "best_step": self.checkpoints.best_step(),
            "parameters": trees.count(self.run.abstract_state.params),
            "flops_per_image": self.run.flops_per_image,
            "steps": total,
            "seconds": book.seconds,
            "images_per_second": trained_images / book.training_seconds if book.training_seconds else None,
            "energy_kwh": book.energy_kwh,
            "device": device_name(self.run.mesh),
            "skipped_images": len(self.train_feed.split.bad) + len(test_feed.split.bad),
            "warnings": book.warnings,
            "workdir": str(self.workdir),
            "config": config.to_dict(self.run.config),
        }
        if self.active:
            found.save(self.workdir / PREDICTIONS)
            details = evaluate.confusion(found, self.data.class_names)
            (self.workdir / CONFUSION).write_text(json.dumps(details, indent=1) + "\n")
            temporary = self.workdir / f"{RESULT}.tmp"
            temporary.write_text(json.dumps(result, indent=1) + "\n")
            os.replace(temporary, self.workdir / RESULT)  # whole or not at all: it says that the run is finished
        return result


def evaluation_batch(built: Run) -> int:
    """Images in an evaluation batch: a multiple of what the mesh splits."""
    shards = sharding.batch_shards(built.mesh)
    wanted = built.config.evaluate.batch_size or built.config.train.batch_size
    return -(-wanted // shards) * shards


def describe(built: Run, data: Data, feed: Feed) -> dict[str, str]:
    """The overview's rows."""
    settings = built.config
    height, width, channels = run.input_shape(settings, built.image_shape)
    sizes = " / ".join(f"{data.size(purpose):,}" for purpose in ("train", "validation", "test"))
    kept = "device" if feed.on_device else "host" if feed.split.images is not None else "streamed"
    mesh = " x ".join(f"{axis} {n}" for axis, n in built.mesh.shape.items() if n > 1) or "one device"
    epochs = built.total_steps / built.steps_per_epoch
    return {
        "data": f"{sizes} images (train / validation / test), {len(data.class_names)} classes, cache: {kept}",
        "input": f"{height} x {width} x {channels}",
        "batch": f"{settings.train.batch_size}" + (f" in {n} parts" if (n := settings.train.accumulate) > 1 else ""),
        "steps": f"{built.total_steps:,} ({epochs:g} epochs of {built.steps_per_epoch:,})",
        "optimizer": f"{settings.optim.name}, {settings.optim.schedule}, lr {settings.optim.lr:g}",
        "device": f"{device_name(built.mesh)}, {mesh}",
        "forward FLOPs": f"{log.human_count(built.flops_per_image)} per image",
    }


def device_name(mesh: Mesh) -> str:
    """The kind and number of the devices: `8 x NVIDIA H200`, `1 x CPU (Intel Xeon, 2 cores)`."""
    kind = mesh.devices.flat[0].device_kind
    if kind == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        kind = f"CPU ({names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
    return f"{mesh.devices.size} x {kind}"


def _memory(compiled: Any) -> str:
    """What the compiled step needs on each device."""
    try:
        analysis = compiled.memory_analysis()
        arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        logging.getLogger(__name__).info("this backend does not tell a step's memory")
        return "not known on this backend"
    return (
        f"{log.human_bytes(arguments + temporary)} a device: {log.human_bytes(arguments)} state and data, "
        f"{log.human_bytes(temporary)} temporary"
    )
