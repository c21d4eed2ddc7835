"""Metrics and pictures for Weights & Biases and for MLflow, each an extra of its own.

A run that resumes goes on in the same record: its number stands in `trackers.json` in the run's folder.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from vit_jax.command import UserError
from vit_jax.manifest import Manifest, read_json

FILE = "trackers.json"
Ending = Literal["finished", "stopped", "failed"]  # stopped: by a signal, it may go on
PROJECT = "vit_jax"


@runtime_checkable
class Tracker(Protocol):
    """Where metrics and pictures go, beside `metrics.jsonl`."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self, ending: Ending = "finished") -> None: ...


class Wandb:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it in the run's folder."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None:
        self._wandb = wandb = _required("wandb")
        name = workdir.resolve().name
        known = _numbers(workdir).get("wandb")
        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            id=known,
            resume="allow" if known else None,
            dir=str(workdir),
            config=dict(config),
            settings=settings,
        )
        _note(workdir, "wandb", self._run.id)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self, ending: Ending = "finished") -> None:
        self._run.finish(exit_code=int(ending != "finished"))


class Mlflow:
    """A run of MLflow, where `MLFLOW_TRACKING_URI` says."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None:
        mlflow = _required("mlflow")
        self._metric = importlib.import_module("mlflow.entities").Metric
        self._client = mlflow.MlflowClient()
        self._number = _numbers(workdir).get("mlflow") or self._begin(workdir, config)

    def _begin(self, workdir: Path, config: Mapping[str, Any]) -> str:
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        number = self._client.create_run(experiment, run_name=workdir.resolve().name).info.run_id
        for key, value in _flat(config).items():
            self._client.log_param(number, key, value)
        _note(workdir, "mlflow", number)
        return str(number)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        import time

        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._number, metrics=metrics)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._client.log_image(self._number, picture, artifact_file=f"{name.replace('/', '-')}-{step}.png")

    def close(self, ending: Ending = "finished") -> None:
        self._client.set_terminated(self._number, {"stopped": "KILLED"}.get(ending, ending.upper()))


TRACKERS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def chosen(log: Any) -> list[str]:
    """The names of those that the config group `log` asks for."""
    return [name for name, wanted in (("wandb", log.wandb), ("mlflow", log.mlflow)) if wanted]


def check(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker that is not installed."""
    for name in names:
        _required(name)


def open_trackers(names: Sequence[str], workdir: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of these names."""
    return [TRACKERS[name](workdir, config) for name in names]


def _required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"log.{name}=True needs the package {name}: pip install 'vit_jax[{name}]'") from error


def _numbers(workdir: Path) -> dict[str, str]:
    """The records of a run that has begun."""
    path = workdir / FILE
    return read_json(path, dict, "delete it: a new record then begins") if path.is_file() else {}


def _note(workdir: Path, name: str, number: str) -> None:
    Manifest(workdir).write(workdir / FILE, json.dumps(_numbers(workdir) | {name: number}) + "\n")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
