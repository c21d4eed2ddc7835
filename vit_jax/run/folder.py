"""The folder of a run: what it writes beside its checkpoints, for every later command to read."""

import dataclasses
import json
import os
from pathlib import Path

import jax

from vit_jax import augment, config
from vit_jax.checkpoint import saved_steps
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, Preprocessing
from vit_jax.log import writers

CONFIG, LABELS, PREPROCESSING, CHECKPOINTS = "config.json", "labels.json", "preprocessing.json", "checkpoints"
ATTENTION, IMAGES = "attention.json", "images.json"
PURPOSES = ("train", "validation", "test")


def default_workdir(spec: str) -> Path:
    """`configs/x.py:arg` -> `runs/x-arg`; of a run's own `config.json`, that run."""
    path, _, arg = spec.partition(":")
    if Path(path).name == CONFIG:
        return Path(path).parent
    name = "-".join(filter(None, [Path(path).stem, "".join(c if c.isalnum() else "_" for c in arg)]))
    return Path("runs") / name


def save_description(workdir: Path, given: Config, prepared: Config, data: Data) -> None:
    """Writes, once, what a later command needs beside the checkpoints: configuration, labels, preprocessing, numbers.

    And, at each start, the attention kernel that `prepared` has where the configuration says auto.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}; give another one") from error
    if not os.access(workdir, os.W_OK):
        raise UserError(f"cannot write to --workdir {workdir}: no permission; give another one")
    if given.model.get("attention") == "auto" != prepared.model["attention"]:
        found = {"device": jax.local_devices()[0].device_kind, "kernel": prepared.model["attention"]}
        (workdir / ATTENTION).write_text(json.dumps(found) + "\n")
    if has_begun(workdir):
        return
    preprocessing = {
        **dataclasses.asdict(data.preprocessing),
        "input": prepared.augment.resize,
        "mean": prepared.augment.mean,
        "std": prepared.augment.std,
    }
    (workdir / IMAGES).write_text(json.dumps({purpose: data.size(purpose) for purpose in PURPOSES}) + "\n")
    (workdir / LABELS).write_text(json.dumps(data.class_names, indent=1, ensure_ascii=False) + "\n")
    (workdir / PREPROCESSING).write_text(json.dumps(preprocessing, indent=1) + "\n")
    temporary = workdir / f"{CONFIG}.tmp"
    temporary.write_text(config.to_json(given))
    os.replace(temporary, workdir / CONFIG)  # last, and whole or not at all: with it the run exists


def changed_images(workdir: Path, data: Data) -> str:
    """How the numbers of images differ from those that the run in `workdir` began with; "" where they do not.

    A folder that is divided by itself is divided anew as it grows: images that were tested would train.
    """
    if not has_begun(workdir) or not (workdir / IMAGES).is_file():
        return ""
    before = json.loads((workdir / IMAGES).read_text())
    now = {purpose: data.size(purpose) for purpose in PURPOSES}
    return ", ".join(f"{before[p]:,} images to {p}, now {now[p]:,}" for p in PURPOSES if before[p] != now[p])


def known_kernel(workdir: Path, given: Config) -> str:
    """The kernel that the run in `workdir` took for `model.attention` auto on such a device; "" if none is known."""
    if given.model.get("attention") != "auto" or not has_begun(workdir) or not (workdir / ATTENTION).is_file():
        return ""  # a run that never began may have been of another model
    found = json.loads((workdir / ATTENTION).read_text())
    return found["kernel"] if found["device"] == jax.local_devices()[0].device_kind else ""


def with_kernel(workdir: Path, given: Config) -> Config:
    """The configuration with the kernel that `known_kernel` finds, if it finds one."""
    kernel = known_kernel(workdir, given)
    return dataclasses.replace(given, model={**given.model, "attention": kernel}) if kernel else given


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run: other tools, too, write a `config.json`."""
    return (folder / CONFIG).is_file() and (folder / PREPROCESSING).is_file()


def has_begun(folder: Path) -> bool:
    """Whether the folder holds a run that trained; one that was refused before leaves no more than its description."""
    return is_run(folder) and ((folder / writers.FILE).exists() or bool(saved_steps(folder / CHECKPOINTS)))


def read_config(workdir: Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration of a run as it was given, with overrides."""
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} holds no run: it has no {CONFIG}; give the --workdir of a training run")
    return config.load(str(workdir / CONFIG), overrides)


def read_preprocessing(workdir: Path, view: augment.Settings) -> tuple[Preprocessing, augment.Settings]:
    """How a run's images leave the host, and its augmentation settings with the size, mean and deviation it used."""
    stored = json.loads((workdir / PREPROCESSING).read_text())
    resize, mean, std = (tuple(stored.pop(key, ())) for key in ("input", "mean", "std"))
    on_host = Preprocessing(**{**stored, "size": tuple(stored["size"])})
    return on_host, dataclasses.replace(view, resize=resize, mean=mean, std=std)
