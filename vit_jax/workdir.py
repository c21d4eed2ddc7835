"""The folder of a run: every file in it by name, how each is written, and how later commands read it."""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import jax

from vit_jax import augment, checkpoint, config, lock
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.config.sweep import file_name
from vit_jax.data import Data, Preprocessing
from vit_jax.files import write_atomically
from vit_jax.log import parse_metrics, read_metrics
from vit_jax.manifest import Manifest, damaged, parse_json, proof_of, read_json, read_sealed, sealed
from vit_jax.tasks import classification

COMPARISON = "comparison"  # the tables of a folder that `compare` made: .md, .csv, .json
PROBED = "probes"  # how files of what frozen features tell begin
UNTRAINED = "untrained"  # of a split's metrics: those of the model with random parameters
PURPOSES = ("train", "validation", "test")
DESCRIPTION = "description"  # what checkpoints call the copies of the description's files
T = TypeVar("T")
COPIED_LOG_BYTES = 2**23  # a larger log is not copied into each checkpoint
_told: set[str] = set()  # warnings about damaged files that were given


class Workdir:
    """The folder of a run: the only place that knows what its files are called.

    Files that are missing or damaged raise `UserError`, which names the file and what to do; those that describe the
    run are then read from the copies in its checkpoints, with a warning. Runs of earlier versions are read, too: what
    these did not write is left open.
    """

    def __init__(self, path: "str | Path | Workdir") -> None:
        self.path = Path(os.path.expanduser(path))
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
        self.bad_batches_file = self.path / "bad_batches.txt"  # of training that diverged
        self.report_file = self.path / "report.html"
        self.predictions_file = self.path / classification.PREDICTIONS
        self.confusion_file = self.path / classification.CONFUSION
        self.manifest = Manifest(self.path)
        self.lock_file = self.path / lock.FILE  # while a process trains: which one
        self.manifest_file = self.manifest.path  # the checksums of all that later commands read
        self.description: dict[str, str] = {}  # what the files that describe the run hold; {} before it is written

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
        return self._is_there(self.config_file) and self._is_there(self.preprocessing_file)

    def has_begun(self) -> bool:
        """Whether the run trained; one that was refused before leaves no more than its description.

        Nor did one that has saved nothing yet, and whose description is damaged: it is described anew.
        """
        saved = bool(self.saved_steps())
        return self.is_run() and (saved or self.metrics_file.exists() and not any(map(_fault, self._described_by())))

    def _is_there(self, path: Path) -> bool:
        return os.path.isfile(path) or path.name in self.manifest.proofs()  # `Path.is_file` raises for long names

    def _described_by(self) -> list[Path]:
        return [self.images_file, self.labels_file, self.preprocessing_file, self.config_file]

    def _described(self, path: Path, kind: type[T], remedy: str, keys: Sequence[str] = ()) -> T:
        """As `read_json`; of a file that is missing or damaged, the copy in the newest checkpoint."""
        listed = self.manifest.proofs().get(path.name)
        try:
            return read_json(path, kind, remedy, keys)
        except UserError as fault:
            copy = self._copy(path)
            if copy is None or (listed and proof_of(copy.encode()) not in listed):
                raise
            self._tell(fault)
            return parse_json(path, copy, kind, remedy, keys)

    def _tell(self, fault: UserError) -> None:
        """Warns, once, that a file is damaged and its copy is read."""
        if str(fault) not in _told:
            _told.add(str(fault))
            logging.getLogger(__name__).warning("%s: it is read from the copy in a checkpoint", fault)

    def _copy(self, path: Path) -> str | None:
        """What the newest checkpoint knows of a file that describes the run, or of the log."""
        return checkpoint.read_about(self.checkpoints).get(DESCRIPTION, {}).get(path.name)

    def foreign_files(self) -> list[str]:
        """Of a folder that holds no run, the files that training would write over and no run of ours wrote."""
        if self.is_run():
            return []
        ours = {self.manifest_file.name, self.lock_file.name, self.config_file.name, *self.manifest.proofs()}
        named = [path for path in vars(self).values() if isinstance(path, Path) and path.parent == self.path]
        return sorted(path.name for path in named if path.name not in ours and self._is_used(path))

    def _is_used(self, path: Path) -> bool:
        """Whether something is lost when training writes there: not in a first checkpoint that was cut off."""
        return bool(self.saved_steps()) if path == self.checkpoints else path.exists()

    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return self.result_file.is_file()

    def saved_steps(self) -> list[int]:
        """The steps of the complete checkpoints, the newest last."""
        return checkpoint.saved_steps(self.checkpoints)

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration as it was given, changed by `field=value` overrides."""
        if not self._is_there(self.config_file):
            raise UserError(f"{self} holds no run: it has no {self.config_file.name}; give the --workdir of a run")
        tree = self._described(self.config_file, dict, "put a copy back, or train anew in another folder")
        return config.from_dict(tree, overrides)

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        remedy = "put a copy back, or write the names of the classes into it: a JSON list in the order of the labels"
        return tuple(map(str, self._described(self.labels_file, list, remedy)))

    def preprocessing(self, settings: augment.Settings) -> tuple[Preprocessing, augment.Settings]:
        """How images leave the host, and the settings with the size, mean and deviation that the run used."""
        remedy = "put a copy back; that of a run with the same data and augmentation is the same"
        stored = self._described(self.preprocessing_file, dict, remedy, ("size",))
        try:
            resize, mean, std = (tuple(stored.pop(key, ())) for key in ("input", "mean", "std"))
            view = Preprocessing(**{**stored, "size": tuple(stored["size"])})
        except TypeError as error:
            raise damaged(self.preprocessing_file, str(error), remedy) from error
        return view, dataclasses.replace(settings, resize=resize, mean=mean, std=std)

    def images(self) -> dict[str, int]:
        """How many images the run began with, by purpose; {} of a run that did not note it."""
        if not self._is_there(self.images_file):
            return {}
        remedy = "delete it to go on with the images that are there now"
        return self._described(self.images_file, dict, remedy, PURPOSES)

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
        found = read_json(self.attention_file, dict, "delete it: the kernels are then timed anew", ("device", "kernel"))
        return str(found["kernel"]) if found["device"] == jax.local_devices()[0].device_kind else ""

    def with_kernel(self, given: Config) -> Config:
        """The configuration with the kernel that `kernel` finds, if it finds one."""
        kernel = self.kernel(given)
        return given.with_model(attention=kernel) if kernel else given

    def result(self) -> dict[str, Any]:
        """The result of the finished run."""
        if not self.result_file.is_file():
            raise UserError(f"{self} holds no finished run: it has no {self.result_file.name}; train it to its end")
        return read_json(self.result_file, dict, "delete it and start the run again: it is only evaluated anew")

    def probes(self) -> list[dict[str, Any]]:
        """What `evaluate --probe` found, by the names of its files."""
        return [read_sealed(path, "delete it") for path in sorted(self.path.glob(f"{PROBED}-*.json"))]

    def metrics(self) -> list[dict[str, int | float]]:
        """The logged scalars, in the order of the steps; of a damaged log those that the newest checkpoint knows."""
        if self._is_there(self.metrics_file) and (fault := self.manifest.fault(self.metrics_file)):
            copy = self._copy(self.metrics_file)
            if copy is None:
                raise damaged(self.metrics_file, fault, "put a copy back")
            self._tell(damaged(self.metrics_file, fault, "put a copy back"))
            return parse_metrics(copy.encode(), self.metrics_file)
        return read_metrics(self.metrics_file)

    def cut_metrics(self) -> None:
        """Call it before lines of the log are dropped: until the next note of progress they are unproven.

        A damaged log is put right from the newest checkpoint.
        """
        if self._is_there(self.metrics_file) and (fault := self.manifest.fault(self.metrics_file)):
            copy = self._copy(self.metrics_file)
            kept = "curves may be wrong" if copy is None else "its lines are now those of a checkpoint"
            logging.getLogger(__name__).warning("%s is damaged (%s): %s", self.metrics_file, fault, kept)
            if copy is not None:
                write_atomically(self.metrics_file, copy)
        self.manifest.forget([self.metrics_file])

    def copies(self) -> dict[str, str]:
        """What checkpoints keep of the folder's files, by name: those that describe the run, and the log."""
        log = self.metrics_file
        small = log.is_file() and log.stat().st_size <= COPIED_LOG_BYTES
        return {**self.description, **({log.name: log.read_text(encoding="utf-8", errors="replace")} if small else {})}

    def check(self, path: Path) -> None:
        """Raises `UserError` for a file of the run that is not as it was written."""
        self.manifest.check(path, "put a copy back, or delete result.json and start the run again: it is evaluated")

    def starts(self) -> list[dict[str, Any]]:
        """What was noted at each start, the first one first; [] of a run of an earlier version."""
        if not self.starts_file.is_file():
            return []
        return read_json(self.starts_file, list, "delete it: the report reads it, and a start to know its devices")

    def device(self) -> str:
        """On which devices the run was started last, as `sharding.device_name` calls them; "" if that is not known."""
        if self.manifest.fault(self.starts_file):
            return ""
        try:
            return str(self.starts()[-1]["device"])
        except (UserError, LookupError, TypeError):
            return ""

    def progress(self) -> dict[str, Any]:
        """What was known at the last checkpoint; {} before it, and of a run of an earlier version."""
        if not self.progress_file.is_file():
            return {}
        return read_json(self.progress_file, dict, "delete it: only the report reads it")

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
        try:
            before = self.starts()
        except UserError as fault:  # a run does not end for a damaged note
            kept = self.starts_file.with_name(f"{self.starts_file.name}.damaged")
            os.replace(self.starts_file, kept)
            logging.getLogger(__name__).warning("%s; it is now %s, and notes begin anew", fault, kept.name)
        self.manifest.write(self.starts_file, json.dumps([*before, start], indent=1) + "\n")

    def write_progress(self, step: int, facts: Mapping[str, Any]) -> None:
        """Notes what is known at a checkpoint, and that all lines of the log so far are as they should be."""
        if self.description and not self.config_file.is_file():  # the folder was removed
            self.path.mkdir(parents=True, exist_ok=True)
            for name, content in self.description.items():
                self.manifest.write(self.path / name, content)
        self.manifest.note([self.metrics_file])
        self.manifest.write(self.progress_file, json.dumps({"step": step, **facts}, indent=1) + "\n")

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
                self.manifest.write(self.attention_file, json.dumps(found) + "\n")
            if not self.has_begun():
                self._write_description(given, prepared, data)
            else:
                self._repair_description()
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
        self._describe(self.images_file, json.dumps(numbers) + "\n")
        self._describe(self.labels_file, json.dumps(data.class_names, indent=1, ensure_ascii=False) + "\n")
        self._describe(self.preprocessing_file, json.dumps(preprocessing, indent=1) + "\n")
        self._describe(self.config_file, config.to_json(given))

    def _describe(self, path: Path, content: str) -> None:
        self.manifest.write(path, content)
        self.description[path.name] = content

    def _repair_description(self) -> None:
        """Puts the copies that checkpoints have in the place of damaged files, which stay beside them."""
        for path in self._described_by():
            copy = self._copy(path) if _fault(path) else None
            if copy is not None:
                if path.is_file():
                    os.replace(path, path.with_name(f"{path.name}.damaged"))
                self._describe(path, copy)
            elif path.is_file():
                self.description[path.name] = path.read_text(encoding="utf-8")
        unlisted = [p for p in self._described_by() if p.is_file() and p.name not in self.manifest.proofs()]
        self.manifest.note(unlisted)  # those of an earlier version

    @contextlib.contextmanager
    def writing(self, *paths: Path) -> Iterator[None]:
        """Around what writes files of the run by other means: they are listed as they are in the end."""
        self.manifest.forget(paths)
        yield
        self.manifest.note(paths)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Ends the run; all other files of the result are then there already."""
        self.manifest.write(self.result_file, json.dumps(result, indent=1) + "\n")

    def write_evaluation(
        self, report: Mapping[str, Any], split: str, changes: Sequence[str] = (), kind: str = "evaluation"
    ) -> Path:
        """Keeps the report of an evaluation, each in a file of its own, which is returned."""
        path = self.evaluation_file(split, changes, kind)
        write_atomically(path, json.dumps(sealed(report), indent=1) + "\n")
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


def _fault(path: Path) -> str:
    """What is wrong with a JSON file of a run; "" where nothing is."""
    try:
        read_json(path, object, "")
    except UserError as fault:
        return str(fault)
    return ""
