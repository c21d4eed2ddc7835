"""From a configuration to everything that computes, and from a finished run to a model ready to use.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh (any mesh: planning passes one
of a machine that is not there), `open` gives a trained model with labels and preprocessing to every later command.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from vit_jax import augment, config, flops, models, optim, sharding, step
from vit_jax.checkpoint import Checkpoints, Damaged, restore_variables
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, Split, View
from vit_jax.data.batching import steps_per_epoch
from vit_jax.trees import PyTree

CONFIG, LABELS, PREPROCESSING, CHECKPOINTS = "config.json", "labels.json", "preprocessing.json", "checkpoints"


def check_data(given: Config, data: Data) -> None:
    """Raises `UserError` where the configuration does not fit the data set; touches no device."""
    k = len(data.class_names)
    if given.model["num_classes"] not in (0, k):
        raise UserError(
            f"model.num_classes={given.model['num_classes']}, but {data.dataset.name!r} has {k} classes; "
            "leave it at 0 to follow the data set"
        )
    if given.augment.mean:
        augment.check_channels(given.augment, data.view.channels)
    model = models.create({**given.model, "num_classes": k})
    model.check(input_shape(given, data.view.shape))
    if given.model.get("pooling") == "none":
        raise UserError("model.pooling='none' gives logits for each patch, not for an image; choose gap, token or map")
    if given.model.get("distillation_token"):
        raise UserError(
            f"model {given.model['name']!r} has a head that learns from a teacher, and this run has none; "
            "choose its twin without one, e.g. vit/S16 for deit/S16"
        )
    per_epoch = steps_per_epoch(given.train.batch_size, data.size("train"))
    optim.schedule(given.optim, num_steps(given, per_epoch), per_epoch)


def input_shape(given: Config, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels as the model gets them."""
    height, width = (given.augment.resize * 2)[:2] or image_shape[:2]
    return height, width, image_shape[2]


def num_steps(given: Config, per_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return given.train.steps or max(1, round(given.train.epochs * per_epoch))


def prepare(given: Config, data: Data, train: Split, workdir: Path) -> Config:
    """The configuration with what the data decides filled in: the number of classes, and mean and deviation.

    Where the configuration gives no mean, the training split's normalises: that of the run in `workdir`, or of `train`.
    """
    model = {**given.model, "num_classes": len(data.class_names)}
    view = given.augment
    if not view.mean and (workdir / CONFIG).exists():
        view = _read_preprocessing(workdir, view)[1]
    elif not view.mean:
        mean, std = train.statistics()
        std = np.maximum(std, 1 / 255)  # a constant channel
        view = dataclasses.replace(view, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    return dataclasses.replace(given, model=model, augment=view)


def _read_preprocessing(workdir: Path, view: augment.Settings) -> tuple[View, augment.Settings]:
    """How a run's images leave the host, and its augmentation settings with the mean and deviation it used."""
    stored = json.loads((workdir / PREPROCESSING).read_text())
    on_host = View(tuple(stored["size"]), stored["resize"], stored["channels"])
    return on_host, dataclasses.replace(view, mean=tuple(stored["mean"]), std=tuple(stored["std"]))


@dataclass(frozen=True)
class Run:
    """Everything that computes, for one mesh. Nothing is compiled before it is called."""

    config: Config  # prepared
    mesh: Mesh
    model: nn.Module
    image_shape: tuple[int, int, int]  # as the data has it, before `augment.resize`
    steps_per_epoch: int
    total_steps: int
    rate: optax.Schedule
    abstract_state: PyTree
    init_state: Callable[[], PyTree]  # born sharded
    train_step: Any  # jitted: (state, batch, frozen) -> (state, metrics); the state's memory is reused
    eval_step: Any  # jitted: (variables, batch, frozen) -> logits, label, weight

    @cached_property
    def flops_per_image(self) -> int:
        """Of a forward pass: 2 per multiply-add, attention included."""
        return flops_per_image(self.model, input_shape(self.config, self.image_shape))


def flops_per_image(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of a forward pass for one image: 2 per multiply-add, attention included."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda: step.init_variables(model, 0, shape))
    return flops.count(lambda v, x: model.apply(v, x, train=False), variables, images)


def build(prepared: Config, mesh: Mesh, *, image_shape: tuple[int, int, int], train_images: int) -> Run:
    """The model, its state and its steps on a mesh, for images [.. h w c] uint8 as the data has them."""
    train, shards = prepared.train, sharding.batch_shards(mesh)
    if train.batch_size % (shards * train.accumulate):
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be divided by {shards} devices x train.accumulate="
            f"{train.accumulate}; use a multiple of {shards * train.accumulate}"
        )
    model = models.create(prepared.model)
    per_epoch = steps_per_epoch(train.batch_size, train_images)
    total = num_steps(prepared, per_epoch)
    rate = optim.schedule(prepared.optim, total, per_epoch)
    tx = optim.create(prepared.optim, rate)
    shape = input_shape(prepared, image_shape)

    def init() -> PyTree:
        return step.init_state(model, tx, prepared.seed, shape, ema=prepared.optim.ema_decay > 0)

    abstract = jax.eval_shape(init)
    places = sharding.tree_shardings(abstract, mesh)
    batch, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    train_step = step.make_train_step(
        model,
        tx,
        rate,
        prepared.augment,
        seed=prepared.seed,
        num_classes=prepared.model["num_classes"],
        loss=train.loss,
        label_smoothing=train.label_smoothing,
        accumulate=train.accumulate,
        ema_decay=prepared.optim.ema_decay,
    )
    variables = sharding.tree_shardings(jax.eval_shape(step.evaluation_variables, abstract), mesh)
    return Run(
        config=prepared,
        mesh=mesh,
        model=model,
        image_shape=image_shape,
        steps_per_epoch=per_epoch,
        total_steps=total,
        rate=rate,
        abstract_state=abstract,
        init_state=jax.jit(init, out_shardings=places),
        train_step=jax.jit(
            train_step,
            in_shardings=(places, batch, everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            step.make_eval_step(model, prepared.augment),
            in_shardings=(variables, batch, everywhere),
            out_shardings=everywhere,
        ),
    )


def prefer_determinism(given: Config) -> None:
    """Asks XLA for bit-reproducible GPU kernels, if the configuration does; call it before a device is touched."""
    flag = "--xla_gpu_deterministic_ops=true"
    if given.train.deterministic and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


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


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to use."""

    config: Config  # prepared
    model: nn.Module
    variables: Mapping[str, PyTree]
    class_names: tuple[str, ...]
    view: View  # encoded image -> uint8 [h w c], on the host
    step: int

    @cached_property
    def forward(self) -> Callable[[PyTree, Any], jax.Array]:
        """`(variables, images uint8 [n h w c]) -> logits [n k]`, compiled."""
        return jax.jit(step.make_forward(self.model, self.config.augment))

    def logits(self, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Logits [n k] float32 of images [n h w c] uint8 at the size of `view`; any n."""
        if images.shape[1:] != self.view.shape or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.dtype}{list(images.shape)}, expected uint8{['n', *self.view.shape]}; "
                "bring them to that shape with `view`"
            )
        return np.concatenate(list(self._logits(images, batch_size)) or [np.zeros((0, len(self.class_names)))])

    def _logits(self, images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        size = min(batch_size, len(images))
        for start in range(0, len(images), size or 1):
            part = images[start : start + size]
            padded = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
            yield np.asarray(self.forward(self.variables, padded))[: len(part)]


def read_config(workdir: Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """The configuration of a run as it was given, with overrides."""
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} holds no run: it has no {CONFIG}; give the --workdir of a training run")
    return config.load(str(workdir / CONFIG), overrides)


def open(workdir: Path, *, use: str = "", overrides: tuple[str, ...] | list[str] = ()) -> Trained:
    """The model of a run's last or best checkpoint (`use`; "": as its configuration says)."""
    given = read_config(workdir, overrides)
    class_names = tuple(json.loads((workdir / LABELS).read_text()))
    view, filled = _read_preprocessing(workdir, given.augment)
    model_fields = {**given.model, "num_classes": len(class_names)}
    prepared = dataclasses.replace(given, model=model_fields, augment=filled)
    model = models.create(model_fields)
    abstract = jax.eval_shape(lambda: step.init_variables(model, 0, input_shape(prepared, view.shape)))
    at, variables = _read_variables(workdir / CHECKPOINTS, abstract, use or given.evaluate.use, prepared)
    return Trained(prepared, model, variables, class_names, view, at)


def _read_variables(directory: Path, abstract: PyTree, use: str, prepared: Config) -> tuple[int, PyTree]:
    """The variables of the best or the newest checkpoint that is not damaged, and its step."""
    checkpoints = Checkpoints(directory, read_only=True)
    steps = checkpoints.steps()
    best = checkpoints.best_step() if use == "best" else None
    part = "ema" if prepared.optim.ema_decay else ""
    for at in ([best] if best is not None else []) + steps[::-1]:
        try:
            return at, restore_variables(directory, at, abstract, part)
        except Damaged as damage:
            logging.getLogger(__name__).warning("checkpoint %s is damaged (%s): trying another", at, damage)
    raise UserError(f"{directory} holds no usable checkpoint (found steps {steps}); train the run first")
