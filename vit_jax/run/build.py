"""From a configuration to everything that computes.

`prepare` fills in what the data decides, `build` makes model, state and steps for a mesh (any mesh: planning passes one
of a machine that is not there).
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from vit_jax import augment, distributed, flops, memory, models, optim, platforms, sharding, step
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, RandomCrop, Split
from vit_jax.data.batching import steps_per_epoch
from vit_jax.ops import fused_attention
from vit_jax.trees import PyTree

COPIES_AT_MOST = 1 / 16  # of a machine's memory, for the states of its cores; steps take several times as much


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
    if given.model.get("distillation_token") and not given.distill.teacher:
        raise UserError(
            f"model {given.model['name']!r} has a head that learns from a teacher, and this run has none; "
            "set distill.teacher, or choose its twin without that head, e.g. vit/S16 for deit/S16"
        )
    if given.model.get("distillation_token") and not 0 < given.distill.weight < 1:
        raise UserError(
            f"distill.weight={given.distill.weight:g} would leave one of the two heads of model "
            f"{given.model['name']!r} untrained, and evaluation averages both; choose a weight between 0 and 1"
        )
    per_epoch = steps_per_epoch(given.train.batch_size, data.size("train"))
    if not given.train.seconds:
        optim.check_warmup(given.optim, num_steps(given, per_epoch), per_epoch)


def check_batch(given: Config, mesh: Mesh) -> None:
    """Raises `UserError` where a batch cannot be divided by the mesh's devices and the parts that it is computed in."""
    train, shards = given.train, sharding.batch_shards(mesh)
    if train.batch_size % (shards * train.accumulate):
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be divided by {shards} devices x train.accumulate="
            f"{train.accumulate}; use a multiple of {shards * train.accumulate}"
        )


def input_shape(given: Config, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Height, width and channels as the model gets them."""
    height, width = (given.augment.resize * 2)[:2] or image_shape[:2]
    return height, width, image_shape[2]


def host_crop(given: Config, data: Data) -> RandomCrop | None:
    """How the host crops training images to the model's input size; None where the device crops, or nothing does."""
    height, width, _ = input_shape(given, data.view.shape)
    return data.random_crop(size=(height, width), area=given.augment.crop_area, aspect=given.augment.crop_aspect)


def device_view(prepared: Config, *, cropped: bool) -> augment.Settings:
    """What a training step does to its images: to those that `host_crop` cut it neither crops nor resizes."""
    return dataclasses.replace(prepared.augment, crop_area=(), resize=()) if cropped else prepared.augment


def num_steps(given: Config, per_epoch: int) -> int:
    """Optimizer steps of the whole run; 0: as many as fit into its time."""
    if given.train.seconds:
        return 0
    return given.train.steps or max(1, round(given.train.epochs * per_epoch))


def prepare(given: Config, data: Data, train: Split) -> Config:
    """The configuration with what the data decides filled in: the number of classes, and mean and deviation.

    Where the configuration gives no mean, that of the training split normalises.
    """
    view = given.augment
    if not view.mean:
        mean, std = train.statistics()
        std = np.maximum(std, 1 / 255)  # a constant channel
        view = dataclasses.replace(view, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    return dataclasses.replace(given, model={**given.model, "num_classes": len(data.class_names)}, augment=view)


@dataclass(frozen=True)
class Run:
    """Everything that computes, for one mesh. Nothing is compiled before it is called."""

    config: Config  # prepared
    mesh: Mesh
    model: nn.Module
    image_shape: tuple[int, int, int]  # as the data has it, before `augment.resize`
    steps_per_epoch: int
    total_steps: int  # 0: as many as fit into `train.seconds`
    abstract_state: PyTree
    init_state: Callable[[], PyTree]  # born sharded
    train_step: Any  # jitted: (state, batch, frozen) -> (state, metrics); the state's memory is reused
    eval_step: Any  # jitted: (variables, batch, frozen) -> logits, label, weight

    @cached_property
    def flops_per_image(self) -> int:
        """Of a forward pass: 2 per multiply-add, attention included."""
        return flops_per_image(self.model, input_shape(self.config, self.image_shape))


def flops_per_image(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of a forward pass for one image: 2 per multiply-add, attention included.

    Of the plain kernel: a fused one's padding is not the model's work.
    """
    model = model.clone(attention="plain") if hasattr(model, "attention") else model
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda: step.init_variables(model, 0, shape))
    return flops.count(lambda v, x: model.apply(v, x, train=False), variables, images)


def build(
    prepared: Config,
    mesh: Mesh,
    *,
    image_shape: tuple[int, int, int],
    train_images: int,
    cropped: bool = False,
    teacher: Callable[..., jax.Array] | None = None,
) -> Run:
    """The model, its state and its steps on a mesh, for images [.. h w c] uint8 as the data has them.

    `cropped`: training images come as `host_crop` cut them, at the model's size. `teacher` is that of
    `step.Objective`.
    """
    check_batch(prepared, mesh)
    train = prepared.train
    model = models.create(prepared.model)
    device = mesh.devices.flat[0]
    fused_attention.check_device(prepared.model.get("attention", "plain"), device.platform, device.device_kind)
    per_epoch = steps_per_epoch(train.batch_size, train_images)
    total = num_steps(prepared, per_epoch)
    tx = optim.create(prepared.optim)
    shape = input_shape(prepared, image_shape)

    def init() -> PyTree:
        return step.init_state(model, tx, prepared.seed, shape, ema=prepared.optim.ema_decay > 0)

    abstract = jax.eval_shape(init)
    optim.check_params(prepared.optim, abstract.params)
    places = sharding.tree_shardings(abstract, mesh)
    batch, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    view, objective = device_view(prepared, cropped=cropped), _objective(prepared, teacher)
    train_step = _train_step(prepared, model, tx, view, objective, total_steps=total, per_epoch=per_epoch)
    variables = jax.eval_shape(step.evaluation_variables, abstract)
    return Run(
        config=prepared,
        mesh=mesh,
        model=model,
        image_shape=image_shape,
        steps_per_epoch=per_epoch,
        total_steps=total,
        abstract_state=abstract,
        init_state=jax.jit(init, out_shardings=places),
        train_step=jax.jit(
            sharding.on_mesh(train_step, mesh),
            in_shardings=(places, batch, everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        ),
        eval_step=compile_eval_step(step.make_eval_step(model, prepared.augment), variables, mesh),
    )


def compile_eval_step(eval_step: step.EvalStep, variables: PyTree, mesh: Mesh) -> step.EvalStep:
    """The step on a mesh, whose logits every process gets whole; `variables` are arrays or their shapes."""
    everywhere = sharding.replicated(mesh)
    places = sharding.tree_shardings(variables, mesh), sharding.batch_sharding(mesh), everywhere
    return jax.jit(sharding.on_mesh(eval_step, mesh), in_shardings=places, out_shardings=everywhere)


def _train_step(
    prepared: Config,
    model: nn.Module,
    tx: optax.GradientTransformation,
    view: augment.Settings,
    objective: step.Objective,
    *,
    total_steps: int,
    per_epoch: int,
) -> step.TrainStep:
    return step.make_train_step(
        model,
        tx,
        optim.schedule(prepared.optim, per_epoch, timed=prepared.train.seconds > 0),
        view,
        objective,
        seed=prepared.seed,
        total_steps=total_steps,
        trained=partial(optim.trained, prepared.optim),
        accumulate=prepared.train.accumulate,
        independent=prepared.data.repeats == 1,
        sam_rho=prepared.optim.sam_rho,
        ema_decay=prepared.optim.ema_decay,
        ema_warmup=prepared.optim.ema_warmup,
    )


def _objective(prepared: Config, teacher: Callable[..., jax.Array] | None) -> step.Objective:
    return step.Objective(
        num_classes=prepared.model["num_classes"],
        loss=prepared.train.loss,
        label_smoothing=prepared.train.label_smoothing,
        teacher=teacher,
        distillation=prepared.distill.kind,
        distillation_weight=prepared.distill.weight,
        temperature=prepared.distill.temperature,
    )


def prefer_determinism(given: Config) -> None:
    """Asks XLA for bit-reproducible GPU kernels, if the configuration does; call it before a device is touched."""
    flag = "--xla_gpu_deterministic_ops=true"
    if given.train.deterministic and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def use_every_core(runs: Sequence[Config]) -> None:
    """Makes a device of each of a CPU's cores, if the batches of all runs can be divided; call it as the above.

    Not where a configuration says what its mesh is, nor in one of several processes. See `platforms.device_per_core`.
    """
    if distributed.find(os.environ) is None and all(given.mesh == sharding.Settings() for given in runs):
        platforms.device_per_core(given.train.batch_size // given.train.accumulate for given in runs)


def make_mesh(given: Config, data: Data) -> Mesh:
    """The mesh of a run: `given.mesh`, by default a copy of the state on each device.

    A CPU's cores share one memory. Where copies would take more than `COPIES_AT_MOST` of it, and the configuration
    leaves the mesh open, they share one state, too (as `mesh.fsdp` = their number): large models then need half as
    much, and are not slower.
    """
    devices = jax.devices()
    cores = len(devices) if devices[0].platform == "cpu" and "JAX_NUM_CPU_DEVICES" in os.environ else 1
    if cores == 1 or jax.process_count() > 1 or given.mesh != sharding.Settings():
        return sharding.make_mesh(given.mesh)
    model = models.create({**given.model, "num_classes": len(data.class_names)})
    shape, average = input_shape(given, data.view.shape), given.optim.ema_decay > 0
    state = jax.eval_shape(lambda: step.init_state(model, optim.create(given.optim), 0, shape, ema=average))
    copies = cores * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    shared = copies > COPIES_AT_MOST * memory.installed()
    return sharding.make_mesh(dataclasses.replace(given.mesh, fsdp=cores) if shared else given.mesh)
