"""The loop of a run: steps, log lines, validation, checkpoints, and in the end the result."""

import itertools
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console

from vit_jax import config, distributed, log, memory, metrics, optim, sharding, trees
from vit_jax.checkpoint import Checkpoints
from vit_jax.command import Interruption, UserError
from vit_jax.data import Loader
from vit_jax.energy import Meter
from vit_jax.step import evaluation_variables
from vit_jax.tasks import Evaluator
from vit_jax.train.evaluation import evaluate_split, evaluation_batch_size
from vit_jax.train.experiment import Experiment
from vit_jax.train.length import UNKNOWN, Length
from vit_jax.train.overview import describe, needed_memory
from vit_jax.train.probing import Prober
from vit_jax.train.saving import Saver, TrainerState
from vit_jax.trees import PyTree
from vit_jax.watchdog import Watchdog
from vit_jax.workdir import Workdir

STEPS_IN_FLIGHT = 2  # dispatched and not finished, mostly: enough to keep a device busy, few enough to stop soon
IN_A_ROW = "skipped_in_a_row"
LAST = ("lr", "param_norm", "skipped_updates", IN_A_ROW)  # of a step's metrics, those whose mean says nothing
SHOWN_STEPS = 20  # at most, of those whose images are listed where training diverges
SHOWN_BEFORE = ("accuracy", "f1_macro", "knn_accuracy", "loss")  # of the untrained model, on the console
STEPS_TO_LEARN = 200  # before a loss that has not moved is worth a warning


class Trainer:
    """The loop of one run and what it keeps on the way: metrics, evaluations, checkpoints, the final result."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: Workdir,
        checkpoints: Checkpoints,
        so_far: TrainerState,
        console: Console,
    ) -> None:
        self.experiment, self.task, self.workdir = experiment, experiment.task, workdir
        self.data, self.loader, self.mesh = experiment.data, experiment.loader, experiment.mesh
        self.checkpoints, self.so_far, self.console = checkpoints, so_far, console
        self.active = jax.process_index() == 0
        self.validation = self.split("validation") if "validation" in self.data.specs else None
        self.prober = Prober.of(experiment) if experiment.config.evaluate.probe else None
        self.started, self.earlier_seconds = time.monotonic(), so_far.seconds
        self.one_machine = distributed.on_one_machine()  # whose counters tell the energy of the whole run
        self.meter, self.earlier_kwh = Meter(self.mesh.devices.flat[0].platform), so_far.energy_kwh
        self.writer = log.MetricsWriter(workdir.path, active=False)  # until training begins
        self.progress: log.Progress
        self.waited = 0.0  # seconds since the last log line in which the loop had no batch
        self.stopped = False  # by a signal, before the last step
        self.in_flight = STEPS_IN_FLIGHT
        self.gaps: memory.Gaps | None = None
        self.watchdog = Watchdog()
        self.saver = Saver(workdir, checkpoints, so_far, self.warn)
        agree = distributed.Agreement(self.mesh, STEPS_IN_FLIGHT)
        steps = experiment.total_steps or so_far.steps
        self.length = Length(steps, experiment.config.train.seconds, agree)

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.watchdog.close()
        self.writer.close("failed" if kind else "stopped" if self.stopped else "finished")
        self.checkpoints.close()

    def loop(self, state: PyTree, interruption: Interruption) -> PyTree:
        """Trains from the state's step to the end, or to an interruption; the state is then saved."""
        settings, start = self.experiment.config, int(state.step)
        if start == self.length.steps:
            return state
        last = UNKNOWN if settings.train.seconds else self.length.steps
        batches = self.loader.train(settings.seed, settings.train.batch_size, start, last)
        train_step, batches = self.compile(state, batches)
        if start == 0 and settings.evaluate.before:
            self.evaluate_before(state)
        self.open_log(start)
        with self.progress:
            if start:
                self.progress.say(f"resumed at step {start}")
            window: list[dict[str, Any]] = list(self.so_far.window)  # floats, or arrays still on the device
            agree = distributed.Agreement(self.mesh, STEPS_IN_FLIGHT)
            self.mark = time.monotonic()
            for at, batch in enumerate(self.timed(batches), start + 1):
                state, step_metrics = train_step(state, batch, self.constants())
                window.append(step_metrics)
                if len(window) > self.in_flight:
                    jax.block_until_ready(window[-1 - self.in_flight])
                    self.progress.finished(at - self.in_flight)
                if self.gaps:
                    self.gaps.after_step()
                self.progress.advance(at)
                self.watchdog.step(at)
                ended = self.is_last(at)
                agreed = agree(interruption.signal)
                stop = bool(agreed) or ended
                if at % settings.log.every_steps == 0 or ended:
                    self.log_window(at, window)
                    window = []
                if self.is_evaluation_step(at) or self.is_checkpoint_step(at) or stop:
                    jax.block_until_ready(state)
                    self.clock()
                    self.watchdog.pause()
                    self.validate_and_save(at, state, window)
                    self.mark = time.monotonic()
                if stop:
                    interruption.signal, self.stopped = agreed, not ended
                    break
            if int(state.step) == self.length.steps:
                self.check_warmup()
        return state

    def compile(self, state: PyTree, batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
        """The compiled step, after an overview of the run that tells its memory, and the batches."""
        first = next(batches)
        began = time.monotonic()
        if self.active:
            self.console.print("Compiling the training step ...")
        compiled = self.experiment.train_step.lower(state, first, self.constants()).compile()
        self.spare_memory(compiled)
        if self.active:
            facts = describe(self.experiment)
            facts["memory"] = needed_memory(compiled)
            facts["compiled in"] = log.human_seconds(time.monotonic() - began)
            parameters = jax.eval_shape(trees.unstack_layers, self.experiment.abstract_state.params)
            title = f"{self.experiment.config.model['name']} on {self.data.dataset.name}"
            log.overview(self.console, title=title, rows=facts, parameters=parameters)
        return compiled, itertools.chain([first], batches)

    def spare_memory(self, compiled: Any) -> None:
        """Lets steps that take much of a CPU's memory run one at a time, and looks after the gaps that they leave."""
        analysis, devices = compiled.memory_analysis(), self.mesh.local_devices
        of_step = len(devices) * analysis.temp_size_in_bytes if analysis else 0
        if devices[0].platform == "cpu" and memory.is_much(of_step):
            self.in_flight, self.gaps = 0, memory.Gaps(of_step)

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; counts how long the loop waits for them."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def constants(self) -> dict[str, Any]:
        """What a step reads besides its batch."""
        if not self.length.seconds:
            return self.experiment.constants
        return {**self.experiment.constants, "total_steps": np.int32(self.length.steps)}

    def open_log(self, start: int) -> None:
        settings = self.experiment.config
        if self.active:
            self.workdir.cut_metrics()
        self.writer = log.MetricsWriter(
            self.workdir.path,
            resume_step=start,
            tensorboard=settings.log.tensorboard,
            trackers=log.chosen_trackers(settings.log),
            config=config.to_dict(settings),
            active=self.active,
        )
        self.progress = log.Progress(
            total_steps=start + 1 if self.length.steps == UNKNOWN else self.length.steps,
            start_step=start,
            steps_per_epoch=self.experiment.steps_per_epoch,
            images_per_step=settings.train.batch_size,
            every_seconds=settings.log.every_seconds,
            console=self.console,
            metrics=self.task.train_metrics,
            monitor=self.monitor(),
            active=self.active,
        )

    def is_last(self, at: int) -> bool:
        """Whether the run ends with this step; where a time was given, it is looked at now."""
        if self.length.seconds:
            self.clock()
            self.length.update(at, self.so_far.training_seconds)
            self.progress.expect(self.length.steps)
        return at == self.length.steps

    def is_evaluation_step(self, at: int) -> bool:
        every = self.experiment.config.evaluate.every_steps or self.experiment.steps_per_epoch
        return self.validation is not None and (at % every == 0 or at == self.length.steps)

    def is_checkpoint_step(self, at: int) -> bool:
        every = self.experiment.config.checkpoint.every_steps
        return at % every == 0 if every else self.validation is None and at % self.experiment.steps_per_epoch == 0

    def clock(self) -> None:
        """Counts the time since the last mark as training."""
        now = time.monotonic()
        self.so_far.training_seconds += now - self.mark
        self.mark = now

    def log_window(self, at: int, window: Sequence[dict[str, Any]]) -> None:
        """Writes the means since the last log line."""
        steps = _floats(window)
        self.clock()
        seconds = self.so_far.training_seconds - self.so_far.logged_seconds
        self.so_far.logged_seconds = self.so_far.training_seconds
        means = {k: float(np.mean([step[k] for step in steps])) for k in steps[-1] if k not in LAST}
        if "grad_signal" in means:
            signal, variance = means.pop("grad_signal"), means.pop("grad_variance")
            means["gradient_noise_scale"] = np.inf if signal <= 0 else variance / signal  # NaN stays
        of_last = {k: steps[-1][k] for k in LAST if k != IN_A_ROW}
        scalars = {f"train/{k}": value for k, value in (means | of_last).items()}
        scalars["train/images_per_second"] = len(steps) * self.experiment.config.train.batch_size / seconds
        scalars["train/input_wait_fraction"] = min(1.0, self.waited / seconds)
        self.waited = 0.0
        self.meter.kwh()  # before its counters wrap around
        self.writer.write(at, scalars)
        self.progress.update(at, scalars)
        memory.give_back_much()
        self.warn_of(at, self.task.warnings(means))
        in_a_row = int(steps[-1][IN_A_ROW])
        if in_a_row >= self.experiment.config.train.max_bad_steps:
            raise UserError(self.diverged(at, in_a_row))

    def diverged(self, at: int, in_a_row: int) -> str:
        """What happened, and the images of the first step that went wrong; a file has those of the next ones, too."""
        settings, first = self.experiment.config, at - in_a_row + 1
        images = {
            step: self.loader.images_of(settings.seed, step - 1, settings.train.batch_size)
            for step in range(first, min(at, first + SHOWN_STEPS - 1) + 1)
        }
        if self.active:
            self.saver.write_bad_batches(images)
        spiked = " or spiked" if settings.train.spike_sigmas else ""
        shown = ", ".join(images[first][:3])
        return (
            f"the last {in_a_row} gradients up to step {at} were not finite{spiked}: training has diverged. It began "
            f"at step {first} with the images {shown} ... (all, and those of the next steps: "
            f"{self.workdir.bad_batches_file}); lower optim.lr, lengthen the warm-up or set optim.clip_norm=1"
        )

    def validate_and_save(self, at: int, state: PyTree, window: Sequence[dict[str, Any]]) -> None:
        """Validates if it is time, then starts a checkpoint, with the metrics that no log line holds yet."""
        self.saver.check_lock()
        score: float | None = None
        if self.is_evaluation_step(at):
            self.validate(at, state)
            score = self.score(self.so_far.validation)
            if score == -np.inf:  # it is not a number, and cannot be the best
                score = None
            elif not self.so_far.best or score >= self.score(self.so_far.best):  # of equals the last, as of checkpoints
                self.so_far.best = self.so_far.validation
        self.so_far.window = _floats(window)
        self.account()
        self.so_far.steps = self.length.steps
        if self.active:
            self.saver.write_progress(at)
        self.saver.save(at, state, score)
        memory.give_back_much()

    def score(self, validation: dict[str, float]) -> float:
        """By which checkpoints are compared: higher is better, and what is not a number the worst."""
        return metrics.score(self.monitor(), validation, "val")

    def monitor(self) -> str:
        """The metric that ranks checkpoints."""
        chosen = self.experiment.config.evaluate.metric
        return self.task.monitor if chosen == "auto" else chosen

    def validate(self, at: int, state: PyTree) -> None:
        """Exact metrics on the validation split."""
        assert self.validation is not None
        variables = evaluation_variables(state, self.task.evaluated)
        found = self.evaluate(variables, self.validation)
        probed, collapsed = self.probe(variables, self.validation) if self.is_probe_step(at) else ({}, [])
        scalars = {f"val/{k}": v for k, v in (found.scalars() | probed).items()}
        self.so_far.validation = scalars
        self.writer.write(at, scalars)
        self.progress.evaluation(at, scalars)
        self.warn_of(at, [*found.warnings(), *collapsed])

    def split(self, purpose: str) -> Loader:
        """The loader of another split."""
        return self.data.loader(self.data.split(purpose), self.mesh, fields=self.loader.fields).load()

    def evaluate(self, variables: PyTree, loader: Loader) -> Evaluator:
        size = evaluation_batch_size(self.experiment.config, self.mesh)
        return evaluate_split(self.experiment.eval_step, variables, loader, size, self.task)

    def is_probe_step(self, at: int) -> bool:
        """Whether the validation of this step is one that probes."""
        evaluate = self.experiment.config.evaluate
        every = (evaluate.every_steps or self.experiment.steps_per_epoch) * evaluate.probe_every
        return at % every == 0 or at == self.length.steps

    def probe(self, variables: PyTree, loader: Loader) -> tuple[dict[str, float], list[str]]:
        """What frozen features tell of the loader's images, and warnings; nothing where no probe is asked for."""
        return self.prober.measure(variables, loader) if self.prober else ({}, [])

    def evaluate_before(self, state: PyTree) -> None:
        """Meets the test split with the parameters that the run starts from; nothing later depends on what it finds."""
        variables, loader = evaluation_variables(state, self.task.evaluated), self.split("test")
        found = self.evaluate(variables, loader).scalars() | self.probe(variables, loader)[0]
        self.so_far.before = {f"before/{k}": v for k, v in found.items()}
        if self.active:
            shown = ", ".join(log.metric_text(k, found[k]) for k in SHOWN_BEFORE if k in found)
            self.console.print(f"Before training: test {shown}")

    def warn_of(self, at: int, warnings: Sequence[str]) -> None:
        """Warns of a model that learns nothing, once for each kind of trouble, once it had time to learn something."""
        settings = self.experiment.config
        warmup = optim.warmup_steps(settings.optim, self.experiment.steps_per_epoch)
        if self.length.seconds:
            warmup = int(optim.shortened_warmup(warmup, self.length.steps))
        if at < warmup + min(STEPS_TO_LEARN, self.length.steps // 2):
            return
        for text in warnings:
            causes = text.partition("Likely")[2]
            if not any(causes in said for said in self.so_far.warnings):
                self.so_far.warnings.append(f"step {at}: {text}")
                self.progress.warn(text)

    def check_warmup(self) -> None:
        """Tells of a time so short that the warm-up was shortened."""
        warmup = optim.warmup_steps(self.experiment.config.optim, self.experiment.steps_per_epoch)
        share = optim.TIMED_WARMUP
        if self.length.seconds and warmup > share * self.length.steps:
            self.warn(
                f"the time was enough for {self.length.steps} steps: the warm-up took {share:.0%} of them, instead of "
                f"{warmup} steps; give train.seconds more for the whole of it"
            )

    def warn(self, text: str) -> None:
        """Keeps the warning for the result, too."""
        self.so_far.warnings.append(text)
        self.progress.warn(text)

    def account(self) -> None:
        """Brings time and energy up to date."""
        self.so_far.seconds = self.earlier_seconds + time.monotonic() - self.started
        used = self.meter.kwh()
        if used is not None and self.one_machine:
            self.so_far.energy_kwh = (self.earlier_kwh or 0.0) + used

    def finish(self, variables: PyTree, at: int) -> dict[str, Any]:
        """Evaluates the test split with the variables of step `at`; writes what the evaluator keeps and the result."""
        loader = self.split("test")
        found, (probed, _) = self.evaluate(variables, loader), self.probe(variables, loader)
        self.account()
        so_far, steps = self.so_far, self.length.steps
        images = steps * self.experiment.config.train.batch_size
        result = {
            **{f"test/{k}": v for k, v in (found.scalars() | probed).items()},
            **so_far.validation,
            **{f"best_{k}": v for k, v in so_far.best.items()},
            **so_far.before,
            "monitor": self.monitor(),
            "best_step": self.checkpoints.best_step(),
            "test_step": at,
            "parameters": trees.count(self.experiment.abstract_state.params),
            "flops_per_image": self.experiment.flops_per_image,
            "training_flops": self.experiment.training_flops(steps),
            "steps": steps,
            "seconds": so_far.seconds,
            "images_per_second": images / so_far.training_seconds if so_far.training_seconds else None,
            "energy_kwh": so_far.energy_kwh,
            "device": sharding.device_name(self.mesh),
            "skipped_images": len(self.loader.split.bad) + len(loader.split.bad),
            "warnings": so_far.warnings,
            "workdir": str(self.workdir),
            "config": config.to_dict(self.experiment.config),
        }
        if self.active:
            self.saver.write_result(found, result)
        return result


def _floats(window: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in step.items()} for step in jax.device_get(list(window))]
