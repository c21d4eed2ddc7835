"""The folder of a run: what it writes beside its checkpoints, for every later command to read."""

import dataclasses
import json
import os
from pathlib import Path

from vit_jax import augment, config
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, View

CONFIG, LABELS, PREPROCESSING, CHECKPOINTS = "config.json", "labels.json", "preprocessing.json", "checkpoints"


def save_description(workdir: Path, given: Config, prepared: Config, data: Data) -> None:
    """Writes, once, what a later command needs beside the checkpoints: configuration, labels, preprocessing."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}; give another one") from error
    if (workdir / CONFIG).exists():
        return
    preprocessing = {
        **dataclasses.asdict(data.view),
        "mean": prepared.augment.mean,
        "std": prepared.augment.std,
    }
    (workdir / LABELS).write_text(json.dumps(data.class_names, indent=1, ensure_ascii=False) + "\n")
    (workdir / PREPROCESSING).write_text(json.dumps(preprocessing, indent=1) + "\n")
    temporary = workdir / f"{CONFIG}.tmp"
    temporary.write_text(config.to_json(given))
    os.replace(temporary, workdir / CONFIG)  # last, and whole or not at all: with it the run exists


def read_config(workdir: Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration of a run as it was given, with overrides."""
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} holds no run: it has no {CONFIG}; give the --workdir of a training run")
    return config.load(str(workdir / CONFIG), overrides)


def read_preprocessing(workdir: Path, view: augment.Settings) -> tuple[View, augment.Settings]:
    """How a run's images leave the host, and its augmentation settings with the mean and deviation it used."""
    stored = json.loads((workdir / PREPROCESSING).read_text())
    on_host = View(tuple(stored["size"]), stored["resize"], stored["channels"])
    return on_host, dataclasses.replace(view, mean=tuple(stored["mean"]), std=tuple(stored["std"]))
