"""What a run needs before it computes: its data set, and the weights that it starts from. Touches no device."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
from rich.console import Console

from vit_jax import augment, command, inference, log, models, optim, tasks
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Data, MissingDataset, open_data
from vit_jax.data.batching import steps_per_epoch
from vit_jax.inference import opening
from vit_jax.pretrained import Weights
from vit_jax.train.start import Arrays, default_size, follow
from vit_jax.workdir import Workdir


@dataclass(frozen=True)
class Inputs:
    """A configuration with its data set, and the arrays that its parameters start from."""

    config: Config  # as it prepares images: with the size and the normalisation of its weights
    data: Data
    arrays: Arrays = field(default_factory=dict)  # by their paths; {}: random parameters
    crops_on_host: bool = False  # taken for granted: of a data set that is only described


def open_inputs(given: Config, workdir: Workdir | None = None, console: Console | None = None) -> Inputs:
    """The data set and the weights of a configuration, held against it.

    In the folder of a run that has begun, images are prepared as the run prepared them, and weights are not read again.
    Raises `UserError` for what does not fit.
    """
    console = console or Console(quiet=True)
    weights = published_weights(given, workdir)
    config, data = open_images(given, workdir, weights, console)
    if workdir is not None:
        check_images(workdir, data)
    if given.data.limit > data.size("train"):
        console.print(f"data.limit={given.data.limit}: all {data.size('train'):,} training images are used")
    check_data(config, data)
    config = with_short_warmup(config, data, console)
    return Inputs(config, data, fit_weights(weights, config, data, console))


def check_images(workdir: Workdir, data: Data) -> None:
    """Raises `UserError` if the run in `workdir` began with other images, or would lie among them."""
    if changed := workdir.changed_images(data):
        raise UserError(
            f"the images of {data.dataset.name!r} are not those that the run in {workdir} began with: {changed}; "
            "bring the former ones back, or give another --workdir"
        )
    for folder in data.dataset.folders if not workdir.has_begun() else ():
        if workdir.path.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"--workdir {workdir} lies in {folder}, whose folders are classes; give one elsewhere")


def published_weights(given: Config, workdir: Workdir | None) -> Weights | None:
    """The weights that a new run starts from; None if from random ones, or if the run goes on from a checkpoint."""
    if not given.init.weights or (workdir is not None and workdir.saved_steps()):
        return None
    return inference.find_weights(given.init.weights)


def open_images(
    given: Config, workdir: Workdir | None, weights: Weights | None, console: Console
) -> tuple[Config, Data]:
    """The data set, and the configuration that prepares images as the run in `workdir`, or its weights, want them."""
    if workdir is not None and workdir.has_begun():
        preprocessing, used = workdir.preprocessing(given.augment)
        return dataclasses.replace(given, augment=used), open_or_prepare(given, console, preprocessing.size)
    source = weights.preprocessing if weights else None
    data = open_or_prepare(given, console, default_size(given, source))
    return follow(given, data, source), data


def open_or_prepare(given: Config, console: Console, size: tuple[int, int]) -> Data:
    """The data set; one that is missing, and that needs no TensorFlow, is downloaded and converted first.

    `size` is that of images which differ in size, where the configuration gives none.
    """
    from vit_jax.data import prepare  # also a command: imported late so that `python -m` finds it unloaded

    try:
        return open_data(given.data, size)
    except MissingDataset:
        if given.data.name not in prepare.PREPARABLE:
            raise
    data_dir = command.data_dir(given.data.data_dir)
    console.print(
        f"The data set {given.data.name} is not in {data_dir}: preparing it, once.", soft_wrap=True, markup=False
    )
    prepare.prepare(given.data.name, data_dir)
    return open_data(given.data, size)


def check_data(given: Config, data: Data) -> None:
    """Raises `UserError` where the configuration does not fit the data set."""
    fields = tasks.model_fields(given.model, given.task, given.distill, data.class_names)
    wanted = given.model["num_classes"]
    if wanted not in (0, fields["num_classes"]):
        raise UserError(
            f"model.num_classes={wanted}, but {data.dataset.name!r} has {len(data.class_names)} classes; "
            "leave it at 0 to follow the data set"
        )
    augment.check_extra(given.augment)
    if given.augment.mean:
        augment.check_channels(given.augment, data.preprocessing.channels)
    models.create(fields).check(input_shape(given.augment, data.preprocessing.shape))
    tasks.check(given.task, given.model, given.distill)
    per_epoch = steps_per_epoch(given.train.batch_size, data.size("train"))
    if not (given.train.seconds or given.train.flops):  # of these `set_up` knows the number
        optim.check_warmup(given.optim, num_steps(given, per_epoch))


def with_short_warmup(given: Config, data: Data, console: Console) -> Config:
    """The configuration with a warm-up that leaves the run steps to train in; tells of one that is shortened.

    What is right for the published number of epochs may be more than a short trial has: it takes a tenth then.
    """
    per_epoch = steps_per_epoch(given.train.batch_size, data.size("train"))
    if given.train.seconds or given.train.flops:  # a clock has a warm-up by the clock; FLOPs are counted later
        return given
    asked, total = optim.warmup_steps(given.optim, per_epoch), num_steps(given, per_epoch)
    if total > asked:
        return given
    kept = int(optim.TIMED_WARMUP * total)
    if jax.process_index() == 0:
        console.print(
            f"The warm-up of {asked:,} steps leaves nothing of the run's {total:,}: it takes {kept:,} of them; "
            "train longer, or set optim.warmup_epochs or optim.warmup_steps.",
            soft_wrap=True,
        )
    shorter = dataclasses.replace(given.optim, warmup_steps=kept, warmup_epochs=0.0)
    return dataclasses.replace(given, optim=shorter)


def num_steps(given: Config, per_epoch: int, flops_per_step: Callable[[], int] = int) -> int:
    """Optimizer steps of the whole run; 0: as many as fit into its time."""
    if given.train.seconds:
        return 0
    if given.train.flops:
        return max(1, round(given.train.flops / flops_per_step()))
    return given.train.steps or max(1, round(given.train.epochs * per_epoch))


def fit_weights(weights: Weights | None, config: Config, data: Data, console: Console) -> Arrays:
    """The arrays of the weights that the model takes, with a table of what became of each; none without weights."""
    if weights is None:
        return {}
    model = tasks.model_fields(config.model, config.task, config.distill, data.class_names)
    shape = input_shape(config.augment, data.preprocessing.shape)
    prepared = dataclasses.replace(config, model=model)
    arrays, report = opening.fit_weights(weights, prepared, shape, config.init.head, data.class_names)
    if jax.process_index() == 0:
        loaded = f"{log.human_count(report.parameters_loaded)} parameters start from it"
        log.weights_table(console, f"{weights.address} ({weights.layout_name}): {loaded}", report.groups())
    return arrays
