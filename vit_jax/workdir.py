"""The folder of a run: every file in it by name, how each is written, and how later commands read it."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import jax

from vit_jax import augment, checkpoint, config
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.config.sweep import file_name
from vit_jax.data import Data, Preprocessing
from vit_jax.files import write_atomically
from vit_jax.log import read_metrics
from vit_jax.tasks import classification

COMPARISON = "comparison"  # the tables of a folder that `compare` made: .md, .csv, .json
PROBED = "probes"  # how files of what frozen features tell begin
PURPOSES = ("train", "validation", "test")
T = TypeVar("T")


class Workdir:
    """The folder of a run: the only place that knows what its files are called.

    Files that are missing or damaged raise `UserError`, which names the file and what to do. Runs of earlier versions
    are read, too: what these did not write is left open.
    """

    def __init__(self, path: "str | Path | Workdir") -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"  # as it was given; written last: with it the run exists
        self.labels_file = self.path / "labels.json"  # the classes' names, in the order of the labels
        self.preprocessing_file = self.path / "preprocessing.json"
        self.images_file = self.path / "images.json"  # how many images the run began with
        self.attention_file = self.path / "attention.json"  # the kernel that was fastest, and on which kind of device
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.starts_file = self.path / "starts.json"  # each start: command, time, device, versions
        self.progress_file = self.path / "progress.json"  # as of the last checkpoint: time, energy, warnings
        self.result_file = self.path / "result.json"  # with it the run is finished
        self.report_file = self.path / "report.html"
        self.predictions_file = self.path / classification.PREDICTIONS
        self.confusion_file = self.path / classification.CONFUSION

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Workdir({str(self.path)!r})"

    def evaluation_file(self, split: str, changes: Sequence[str] = (), kind: str = "evaluation") -> Path:
        """Where an evaluation on this split, with these overrides of the configuration, is kept; or `PROBED` is."""
        plain = "".join(c if c.isalnum() else "_" for c in split)
        return self.path / f"{kind}-{'-'.join([plain, *([file_name('-'.join(changes))] if changes else [])])}.json"

    def is_run(self) -> bool:
        """Whether the folder holds a run: other tools, too, write a `config.json`."""
        return self.config_file.is_file() and self.preprocessing_file.is_file()

    def has_begun(self) -> bool:
        """Whether the run trained; one that was refused before leaves no more than its description."""
        return self.is_run() and (self.metrics_file.exists() or bool(self.saved_steps()))

    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return self.result_file.is_file()

    def saved_steps(self) -> list[int]:
        """The steps of the complete checkpoints, the newest last."""
        return checkpoint.saved_steps(self.checkpoints)

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration as it was given, changed by `field=value` overrides."""
        if not self.config_file.is_file():
            raise UserError(f"{self} holds no run: it has no {self.config_file.name}; give the --workdir of a run")
        tree = _read(self.config_file, dict, "put a copy back, or train anew in another folder")
        return config.from_dict(tree, overrides)

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        remedy = "put a copy back, or write the names of the classes into it: a JSON list in the order of the labels"
        return tuple(map(str, _read(self.labels_file, list, remedy)))

    def preprocessing(self, settings: augment.Settings) -> tuple[Preprocessing, augment.Settings]:
        """How images leave the host, and the settings with the size, mean and deviation that the run used."""
        remedy = "put a copy back; that of a run with the same data and augmentation is the same"
        stored = _read(self.preprocessing_file, dict, remedy, ("size",))
        try:
            resize, mean, std = (tuple(stored.pop(key, ())) for key in ("input", "mean", "std"))
            view = Preprocessing(**{**stored, "size": tuple(stored["size"])})
        except TypeError as error:
            raise _damaged(self.preprocessing_file, str(error), remedy) from error
        return view, dataclasses.replace(settings, resize=resize, mean=mean, std=std)

    def images(self) -> dict[str, int]:
        """How many images the run began with, by purpose; {} of a run that did not note it."""
        if not self.images_file.is_file():
            return {}
        return _read(self.images_file, dict, "delete it to go on with the images that are there now", PURPOSES)

    def changed_images(self, data: Data) -> str:
        """How the numbers of images differ from those that the run began with; "" where they do not.

        A folder that is divided by itself is divided anew as it grows: images that were tested would train.
        """
        before = self.images() if self.has_begun() else {}
        now = {purpose: data.size(purpose) for purpose in before}
        return ", ".join(f"{n:,} images to {key}, now {now[key]:,}" for key, n in before.items() if n != now[key])

    def kernel(self, given: Config) -> str:
        """The kernel that the run took for `model.attention` auto on such a device; "" if none is known."""
        if given.model.get("attention") != "auto" or not self.has_begun() or not self.attention_file.is_file():
            return ""  # a run that never began may have been of another model
        found = _read(self.attention_file, dict, "delete it: the kernels are then timed anew", ("device", "kernel"))
        return str(found["kernel"]) if found["device"] == jax.local_devices()[0].device_kind else ""

    def with_kernel(self, given: Config) -> Config:
        """The configuration with the kernel that `kernel` finds, if it finds one."""
        kernel = self.kernel(given)
        return given.with_model(attention=kernel) if kernel else given

    def result(self) -> dict[str, Any]:
        """The result of the finished run."""
        if not self.result_file.is_file():
            raise UserError(f"{self} holds no finished run: it has no {self.result_file.name}; train it to its end")
        return _read(self.result_file, dict, "delete it and start the run again: it is only evaluated anew")

    def probes(self) -> list[dict[str, Any]]:
        """What `evaluate --probe` found, by the names of its files."""
        return [_read(path, dict, "delete it") for path in sorted(self.path.glob(f"{PROBED}-*.json"))]

    def metrics(self) -> list[dict[str, int | float]]:
        """The logged scalars, in the order of the steps."""
        return read_metrics(self.metrics_file)

    def starts(self) -> list[dict[str, Any]]:
        """What was noted at each start, the first one first; [] of a run of an earlier version."""
        return (
            _read(self.starts_file, list, "delete it: only the report reads it") if self.starts_file.is_file() else []
        )

    def progress(self) -> dict[str, Any]:
        """What was known at the last checkpoint; {} before it, and of a run of an earlier version."""
        if not self.progress_file.is_file():
            return {}
        return _read(self.progress_file, dict, "delete it: only the report reads it")

    def write_start(self, facts: Mapping[str, Any]) -> None:
        """Notes another start: by which command, when, with which versions, and these facts."""
        versions = {name: _version(name) for name in ("vit_jax", "jax", "jaxlib", "flax", "optax", "numpy")}
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.orig_argv),
            "versions": {"python": platform.python_version(), **versions},
            **facts,
        }
        before = []
        with contextlib.suppress(UserError):  # a run does not end for a damaged note
            before = self.starts()
        write_atomically(self.starts_file, json.dumps([*before, start], indent=1) + "\n")

    def write_progress(self, step: int, facts: Mapping[str, Any]) -> None:
        """Notes what is known at a checkpoint."""
        write_atomically(self.progress_file, json.dumps({"step": step, **facts}, indent=1) + "\n")

    def write_description(self, given: Config, prepared: Config, data: Data) -> None:
        """Writes, once, what later commands need beside the checkpoints: configuration, labels, preprocessing, numbers.

        And, at each start, the attention kernel that `prepared` has where the configuration says auto.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(0, "no permission")
            if given.model.get("attention") == "auto" != (kernel := prepared.model["attention"]):
                found = {"device": jax.local_devices()[0].device_kind, "kernel": kernel}
                write_atomically(self.attention_file, json.dumps(found) + "\n")
            if not self.has_begun():
                self._write_description(given, prepared, data)
        except OSError as error:
            raise UserError(f"cannot write to --workdir {self}: {error.strerror}; give another one") from error

    def _write_description(self, given: Config, prepared: Config, data: Data) -> None:
        used = prepared.augment
        preprocessing = {
            **dataclasses.asdict(data.preprocessing),
            "input": used.resize,
            "mean": used.mean,
            "std": used.std,
        }
        numbers = {purpose: data.size(purpose) for purpose in PURPOSES}
        write_atomically(self.images_file, json.dumps(numbers) + "\n")
        write_atomically(self.labels_file, json.dumps(data.class_names, indent=1, ensure_ascii=False) + "\n")
        write_atomically(self.preprocessing_file, json.dumps(preprocessing, indent=1) + "\n")
        write_atomically(self.config_file, config.to_json(given))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Ends the run; all other files of the result are then there already."""
        write_atomically(self.result_file, json.dumps(result, indent=1) + "\n")

    def write_evaluation(
        self, report: Mapping[str, Any], split: str, changes: Sequence[str] = (), kind: str = "evaluation"
    ) -> Path:
        """Keeps the report of an evaluation, each in a file of its own, which is returned."""
        path = self.evaluation_file(split, changes, kind)
        write_atomically(path, json.dumps(report, indent=1) + "\n")
        return path


def default_workdir(spec: str) -> Path:
    """`configs/x.py:arg` -> `runs/x-arg`; of a run's own `config.json`, that run."""
    path, _, arg = spec.partition(":")
    if Path(path).name == Workdir("").config_file.name:
        return Path(path).parent
    name = "-".join(filter(None, [Path(path).stem, "".join(c if c.isalnum() else "_" for c in arg)]))
    return Path("runs") / name


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read(path: Path, kind: type[T], remedy: str, keys: Sequence[str] = ()) -> T:
    """The content of a JSON file, of this kind and with these keys; `remedy` says what to do if it is not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error), remedy) from error
    if not isinstance(content, kind):
        raise _damaged(path, f"it holds a JSON {type(content).__name__}, expected a {kind.__name__}", remedy)
    if missing := [key for key in keys if key not in content]:  # type: ignore[operator]
        raise _damaged(path, f"it lacks {missing[0]!r}", remedy)
    return content


def _damaged(path: Path, fault: str, remedy: str) -> UserError:
    return UserError(f"{path} cannot be read ({fault}); {remedy}")
