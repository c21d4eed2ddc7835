"""From a configuration to everything that computes: data, mesh, task, state and steps, set up once for all commands."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from vit_jax import distributed, memory, models, optim, sharding, step, tasks
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, Loader, RandomCrop, Split
from vit_jax.data.batching import steps_per_epoch
from vit_jax.inference.precision import with_dtype
from vit_jax.ops import fused_attention
from vit_jax.train import remat, sizes
from vit_jax.train.attention import fastest_attention
from vit_jax.train.flops import flops_per_image, flops_per_step
from vit_jax.train.inputs import Inputs, num_steps, open_inputs
from vit_jax.train.teacher import open_teacher
from vit_jax.trees import PyTree

COPIES_AT_MOST = 1 / 16  # of a machine's memory, for the states of its cores; steps take several times as much


@dataclass(frozen=True)
class Experiment:
    """Everything that computes, for one mesh. Nothing is compiled before it is called."""

    config: Config  # prepared: with what the data decides
    data: Data
    loader: Loader  # of the training images
    mesh: Mesh
    task: tasks.Task
    tasks_by_size: Mapping[int, tasks.Task]  # of `train.image_sizes`; {} without
    steps_per_epoch: int
    total_steps: int  # 0: as many as fit into `train.seconds`
    batch: dict[str, Any]  # the shapes of a training batch
    constants: dict[str, Any]  # what steps read beside it: arrays, or where they are only described, shapes
    attention_seconds: dict[str, float]  # of each attention kernel that was timed
    abstract_state: PyTree
    init_state: Callable[[], PyTree]  # born sharded
    train_step: Any  # jitted: (state, batch, constants) -> (state, metrics); the state's memory is reused
    eval_step: Any  # jitted: (variables, batch, constants) -> targets, outputs, weight

    @property
    def arguments(self) -> tuple[PyTree, PyTree, PyTree]:
        """The shapes that the training step takes."""
        timed = {"total_steps": jax.ShapeDtypeStruct((), jnp.int32)} if not self.total_steps else {}
        return self.abstract_state, self.batch, self.constants | timed

    @property
    def rules(self) -> tuple[sharding.Rule, ...]:
        """The rules by which the state lies on the mesh."""
        return models.naming_of(self.task.module).rules

    @cached_property
    def flops_per_image(self) -> int:
        """Of a forward pass: 2 per multiply-add, attention included."""
        return flops_per_image(self.task.module, self.task.parts.image_shape)

    @cached_property
    def flops_by_size(self) -> Mapping[int, int]:
        """Of a training step with images of each of `train.image_sizes`."""
        return {size: flops_per_step(self.config, task) for size, task in self.tasks_by_size.items()}

    @cached_property
    def flops_per_step(self) -> int:
        """Of a training step; the mean where images have several sizes."""
        return sizes.mean_flops(self.config, self.task, self.tasks_by_size)

    def training_flops(self, steps: int) -> int:
        """Of the first so many steps."""
        if not self.tasks_by_size:
            return steps * self.flops_per_step
        return sizes.flops_of_steps(self.config, steps, self.total_steps, self.flops_by_size)


def set_up(
    given: Config | Inputs,
    *,
    devices: Sequence[jax.Device] = (),
    described: bool = False,
    device_memory: int = 0,
    kernel: str = "",
    console: Console | None = None,
) -> Experiment:
    """The experiment of a configuration, or of what `open_inputs` found for it.

    On `devices` of another machine, or on all that there are. `described` reads no image and puts nothing on a device,
    to plan a run or to check it: any mean and deviation stand for those of the images, and a teacher is left out.
    `device_memory`: bytes of each device, for `model.remat='auto'`; 0: as the devices say. `kernel`: of attention,
    where an earlier start found it and the configuration says auto. Raises `UserError` where the configuration does
    not fit the data or the devices.
    """
    inputs = open_inputs(given) if isinstance(given, Config) else given
    with distributed.raise_on_all_processes():
        materials, prepared = prepare(inputs, devices, described)
    seconds: dict[str, float] = {}
    if kernel:
        prepared = prepared.with_model(attention=kernel)
    elif not described:
        prepared, seconds = choose_attention(prepared, materials, console)
    build = partial(materials.build, constants=materials.constants(prepared), attention_seconds=seconds)
    return remat.fitting(prepared, build, device_memory or (0 if described else remat.device_memory(materials.mesh)))


@dataclass(frozen=True)
class Materials:
    """What an experiment is built of, however its model then computes."""

    data: Data
    mesh: Mesh
    loader: Loader
    teacher: tasks.Teacher | None
    described: bool

    def task(self, config: Config) -> tasks.Task:
        """The task of a prepared configuration."""
        names, shape = self.data.class_names, self.data.preprocessing.shape
        return make_task(config, names, shape, cropped=self.loader.crop is not None, teacher=self.teacher)

    def constants(self, config: Config) -> dict[str, Any]:
        """What steps read beside a batch: the task's arrays and the loader's, or their shapes."""
        own = dict(self.task(config).constants)
        if self.described:
            return {**self.loader.constants_spec(), **jax.eval_shape(lambda: own)}
        everywhere = sharding.replicated(self.mesh)
        return {**self.loader.constants, **jax.tree.map(lambda array: sharding.put(array, everywhere), own)}

    def build(self, config: Config, constants: dict[str, Any], attention_seconds: dict[str, float]) -> Experiment:
        """The experiment of a prepared configuration."""
        task = self.task(config)
        per_epoch = steps_per_epoch(config.train.batch_size, len(self.loader.split))
        by_size = {size: self.task(sizes.at_size(config, size)) for size in config.train.image_sizes}
        sizes.check(config.train.image_sizes, task, cropped=self.loader.crop is not None)
        total = num_steps(config, per_epoch, partial(sizes.mean_flops, config, task, by_size))
        if config.train.flops:
            _check_warmup(config, total, per_epoch)
        return Experiment(
            config=config,
            data=self.data,
            loader=self.loader,
            mesh=self.mesh,
            task=task,
            tasks_by_size=by_size,
            steps_per_epoch=per_epoch,
            total_steps=total,
            batch=self.loader.spec(config.train.batch_size),
            constants=constants,
            attention_seconds=attention_seconds,
            **compiled_parts(config, task, self.mesh, per_epoch, total, by_size),
        )


def _check_warmup(config: Config, total: int, per_epoch: int) -> None:
    """Raises `UserError` if the warm-ups take all steps that `train.flops` pays for."""
    optim.check_warmup(config.optim, total)
    if (warmup := optim.warmup_steps(config.optim, per_epoch)) >= total:
        raise UserError(
            f"the warm-up of {warmup:,} steps leaves nothing of the run's {total:,}; "
            f"raise train.flops={config.train.flops:g}, or shorten optim.warmup_epochs or optim.warmup_steps"
        )


def prepare(inputs: Inputs, devices: Sequence[jax.Device], described: bool) -> tuple[Materials, Config]:
    """Mesh, loader and teacher, and the configuration with what the data decides."""
    config, data = inputs.config, inputs.data
    mesh = sharding.make_mesh(config.mesh, devices) if devices else make_mesh(config, data)
    config = with_dtype(config, mesh.devices.flat[0])
    check_batch(config, mesh)
    crop = host_crop(config, data, certain=inputs.crops_on_host)
    fields = ("image", *tasks.chosen(config.task, config.distill).targets)
    alternates = config.augment.alternate_flip
    loader = data.loader(data.split("train"), mesh, on_device=True, crop=crop, alternates=alternates, fields=fields)
    prepared = with_data(config, data, None if described else loader.load().split)
    teaches = config.distill.teacher and not described
    teacher = open_teacher(config.distill.teacher, prepared, data.class_names) if teaches else None
    return Materials(data, mesh, loader, teacher, described), prepared


def compiled_parts(
    config: Config,
    task: tasks.Task,
    mesh: Mesh,
    per_epoch: int,
    total: int,
    by_size: Mapping[int, tasks.Task],
) -> dict[str, Any]:
    """The state and the steps of a task on a mesh, jitted, by their names in `Experiment`; `total` steps, 0: timed."""
    device = mesh.devices.flat[0]
    fused_attention.check_device(config.model.get("attention", "plain"), device.platform, device.device_kind)
    tx, naming = optimizer(config, task), models.naming_of(task.module)

    def init() -> PyTree:
        ema, guarded = config.optim.averages, config.train.spike_sigmas > 0
        attention = "mimetic" if config.init.mimetic else "impulse" if config.init.impulse else ""
        return step.init_state(task, tx, config.seed, ema=ema, attention=attention, spike_guard=guarded)

    abstract = jax.eval_shape(init)
    optim.check_params(config.optim, abstract.params, layers=naming.layers, head=naming.whole_head)
    places = sharding.tree_shardings(abstract, mesh, naming.rules)
    batch, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    variables = step.evaluation_variables(abstract, task.evaluated)

    def jitted(task: tasks.Task) -> Any:
        return jax.jit(
            sharding.on_mesh(_train_step(config, task, tx, per_epoch, total), mesh),
            in_shardings=(places, batch, everywhere),
            out_shardings=(places, everywhere),
            donate_argnums=0,
        )

    programs = {size: jitted(other) for size, other in by_size.items()}
    return {
        "abstract_state": abstract,
        "init_state": jax.jit(init, out_shardings=places),
        "train_step": sizes.SizedStep(programs, config, total) if programs else jitted(task),
        "eval_step": compile_eval_step(step.make_eval_step(task), variables, mesh, naming.rules),
    }


def optimizer(config: Config, task: tasks.Task) -> optax.GradientTransformation:
    """The optimizer of a configuration, for the parameters of a task."""
    naming = models.naming_of(task.module)
    return optim.create(config.optim, layers=naming.layers, head=naming.whole_head)


def compile_eval_step(
    eval_step: step.EvalStep, variables: PyTree, mesh: Mesh, rules: Sequence[sharding.Rule]
) -> step.EvalStep:
    """The step on a mesh, whose outputs every process gets whole; `variables` are arrays or their shapes."""
    everywhere = sharding.replicated(mesh)
    places = sharding.tree_shardings(variables, mesh, rules), sharding.batch_sharding(mesh), everywhere
    return jax.jit(sharding.on_mesh(eval_step, mesh), in_shardings=places, out_shardings=everywhere)


def _train_step(
    config: Config, task: tasks.Task, tx: optax.GradientTransformation, per_epoch: int, total: int
) -> step.TrainStep:
    timed = config.train.seconds > 0
    return step.make_train_step(
        task,
        tx,
        optim.schedule(config.optim, per_epoch, timed=timed),
        seed=config.seed,
        total_steps=total,
        trainable=partial(optim.trainable, config.optim),
        accumulate=config.train.accumulate,
        independent=config.data.repeats == 1 and not config.data.balance,
        sam_rho=config.optim.sam_rho,
        average=optim.average(config.optim, per_epoch, timed=timed),
        spike_sigmas=config.train.spike_sigmas,
    )


def make_task(
    config: Config,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    *,
    cropped: bool = False,
    teacher: tasks.Teacher | None = None,
) -> tasks.Task:
    """The task of a prepared configuration, for images of this shape as they leave the host.

    `cropped`: the host cuts training images to the model's size. Without its teacher a distillation is a
    classification, with the same state and evaluation.
    """
    distill = config.distill if teacher else tasks.Distill()
    # To images that `host_crop` cut the device does neither.
    on_device = dataclasses.replace(config.augment, crop_area=(), resize=()) if cropped else config.augment
    parts = tasks.Parts(
        model=models.create(config.model),
        image_shape=input_shape(config.augment, image_shape),
        class_names=class_names,
        augment=config.augment,
        train_augment=on_device,
        tta=config.evaluate.tta,
        distill=distill,
        teacher=teacher,
    )
    return tasks.create(config.task, parts)


def with_data(config: Config, data: Data, train: Split | None) -> Config:
    """The configuration with what the data decides filled in: number of classes, mean, deviation, task's settings.

    Where the configuration gives no mean, that of the training split normalises; without the split, any.
    """
    settings = config.augment
    if not settings.mean:
        mean, std = train.statistics() if train is not None else (np.full(data.preprocessing.channels, 0.5),) * 2
        std = np.maximum(std, 1 / 255)  # a constant channel
        settings = dataclasses.replace(settings, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    fields = tasks.model_fields(config.model, config.task, config.distill, data.class_names)
    task = tasks.with_data(config.task, config.distill, train, data.class_names)
    return dataclasses.replace(config, model=fields, task=task, augment=settings)


def choose_attention(
    prepared: Config, materials: Materials, console: Console | None
) -> tuple[Config, dict[str, float]]:
    """As `fastest_attention`, which it tells."""
    task, loader = materials.task(prepared), materials.loader
    chosen, seconds = fastest_attention(prepared, materials.mesh, task, loader)
    if seconds and console is not None:
        times = ", ".join(f"{kernel} {1000 * of_all:.3g} ms" for kernel, of_all in seconds.items())
        console.print(f"A layer's attention takes {times}: {chosen.model['attention']} is taken", soft_wrap=True)
    return chosen, seconds


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises `UserError` where a batch cannot be divided by the mesh's devices and the parts that it is computed in."""
    train, shards = config.train, sharding.batch_shards(mesh)
    if train.batch_size % (shards * train.accumulate):
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be divided by {shards} devices x train.accumulate="
            f"{train.accumulate}; use a multiple of {shards * train.accumulate}"
        )


def host_crop(config: Config, data: Data, *, certain: bool = False) -> RandomCrop | None:
    """How the host crops training images to the model's input size; None where the device crops, or nothing does.

    `certain`: it does, of a data set that is only described.
    """
    *size, channels = input_shape(config.augment, data.preprocessing.shape)
    if certain:
        return RandomCrop((size[0], size[1]), channels, (1.0, 1.0), (1.0, 1.0))
    return data.random_crop(size=(size[0], size[1]), area=config.augment.crop_area, aspect=config.augment.crop_aspect)


def make_mesh(config: Config, data: Data) -> Mesh:
    """The mesh of a run: `config.mesh`, by default a copy of the state on each device.

    A CPU's cores share one memory. Where copies would take more than `COPIES_AT_MOST` of it, and the configuration
    leaves the mesh open, they share one state, too (as `mesh.fsdp` = their number): large models then need half as
    much, and are not slower.
    """
    devices = jax.devices()
    cores = len(devices) if devices[0].platform == "cpu" and "JAX_NUM_CPU_DEVICES" in os.environ else 1
    if cores == 1 or jax.process_count() > 1 or config.mesh != sharding.Settings():
        return sharding.make_mesh(config.mesh)
    task = make_task(with_data(config, data, None), data.class_names, data.preprocessing.shape)
    tx, averages = optimizer(config, task), config.optim.averages
    state = jax.eval_shape(lambda: step.init_state(task, tx, 0, ema=averages))
    copies = cores * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    shared = copies > COPIES_AT_MOST * memory.installed()
    return sharding.make_mesh(dataclasses.replace(config.mesh, fsdp=cores) if shared else config.mesh)
