"""The schema of a run's configuration: every group, field and default, and what values they may have."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from vit_jax import augment, data, models, optim, sharding, tasks
from vit_jax.augment import Corruption
from vit_jax.augment import Settings as Augment
from vit_jax.command import UserError
from vit_jax.data import Settings as Data
from vit_jax.metrics import METRICS, PROBES
from vit_jax.optim import Settings as Optim
from vit_jax.setting import setting
from vit_jax.sharding import Settings as Mesh
from vit_jax.tasks import Distill
from vit_jax.text import meant

Schema: TypeAlias = Mapping[str, dataclasses.Field[Any]]  # `group.field`, or `field` -> its type, default and metadata

NAMED = {"model": models, "task": tasks}  # the groups whose name decides their other fields
NAME = dataclasses.fields(dataclasses.make_dataclass("Named", [("name", str)]))[0]
VALIDATED = "data.validation!=none"


@dataclass(frozen=True, kw_only=True)
class Train:
    """The config group `train`."""

    batch_size: int = setting(128, read_by="evaluate")  # images per optimizer step, over all devices and processes
    epochs: float = 10.0  # passes over the training images
    steps: int = 0  # instead of epochs
    seconds: float = 0.0  # instead of epochs: the time that training steps may take; the schedule follows the clock
    # Instead of epochs: the operations that training may take, 3 forward passes an image (6 with optim.sam_rho), 4e14.
    flops: float = 0.0
    # Sides of training images in pixels, each with a program of its own; evaluation sees whole ones; (): always whole.
    image_sizes: tuple[int, ...] = ()
    # in_turn: equal shares of the steps, in their order, e.g. rising; drawn: from step to step.
    size_order: Literal["in_turn", "drawn"] = setting("in_turn", active_if="train.image_sizes")
    accumulate: int = 1  # parts in which a batch is processed, one after another, to save memory
    max_bad_steps: int = 10  # updates in a row that may be skipped: a loss or gradient that is not finite, or spikes
    # Skips updates whose loss or gradient norm is so many standard deviations above the mean of 128 steps, too; 0: off.
    spike_sigmas: float = 0.0
    # Only kernels that give the same bits each time, and none chosen by a clock.
    deterministic: bool = setting(False, read_by="evaluate")


@dataclass(frozen=True, kw_only=True)
class Init:
    """The config group `init`: where the parameters come from."""

    weights: str = ""  # a run's folder, a file, https://, gs://, hf://ORGANISATION/NAME; "": random
    # auto: kept where the classes are the same, else new, of zeros.
    head: Literal["auto", "keep", "new"] = setting("auto", active_if="init.weights")
    mimetic: bool = False  # attention starts as trained attention looks (arXiv:2305.09828)
    impulse: bool = False  # each head starts by looking at one of the places around a token (arXiv:2404.01139)
    # The kernel of the model's whitening layer: principal axes of the training images' patches. See optim.freeze, too.
    whitening: bool = False
    # Of position embeddings, for another grid.
    interpolation: Literal["bilinear", "bicubic"] = setting("bicubic", active_if="init.weights")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The config group `evaluate`."""

    every_steps: int = 0  # on validation; 0: after each epoch
    batch_size: int = setting(0, read_by="evaluate")  # 0: train.batch_size
    before: bool = False  # the untrained model meets the test split too: what its weights bring along
    # The checkpoint that meets the test split: last, or best in validation.
    use: Literal["last", "best"] = setting("last", read_by="evaluate texture predict")
    # Test-time augmentation, for a second accuracy (`accuracy_tta`, `mean_iou_tta`): the mean over the image and its
    # mirror image; with flip_shift (classes) over both shifted by one pixel to two sides, too; with flip_scales (masks)
    # over both at 0.75 and 1.25 of their size, too.
    tta: augment.TestTime = setting("none", read_by="evaluate")
    # What "best" means, by its name in `metrics.METRICS`; auto: as the task has it, of classification accuracy.
    metric: str = setting("auto", active_if=VALIDATED, choices=lambda: ("auto", *METRICS))
    # Beside validations and the test: what frozen features tell of the classes, by knn, linear and fewshot.
    probe: tuple[str, ...] = ()
    # Validations from one probe to the next; the last one is probed, too.
    probe_every: int = setting(1, active_if=f"evaluate.probe and {VALIDATED}")
    # Of knn: how many training images vote, and what divides their similarities.
    knn_neighbours: int = setting(20, active_if="evaluate.probe", read_by="evaluate")
    knn_temperature: float = setting(0.07, active_if="evaluate.probe", read_by="evaluate")  # likewise
    # Of the command `vit_jax.evaluate`: train, validation, test or a split in TFDS syntax.
    split: str = setting("test", read_by="evaluate texture")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The config group `checkpoint`. A checkpoint is written after each validation, too."""

    every_steps: int = 0  # 0: only after each validation, or each epoch where there is none
    keep_last: int = 1  # the newest ones
    keep_best: int = setting(1, active_if=VALIDATED)  # those that are best in validation
    wait: bool = False  # training waits until each is complete: a sudden end loses only the steps since the last


@dataclass(frozen=True, kw_only=True)
class Log:
    """The config group `log`."""

    every_steps: int = 50  # a line of training metrics
    every_seconds: float = 60.0  # at most, before a line shows which step is done: on the console alone; 0: off
    tensorboard: bool = True  # write its event files, too
    wandb: bool = False  # log to Weights & Biases, too; WANDB_MODE=offline keeps it on this machine
    mlflow: bool = False  # log to MLflow, too: where MLFLOW_TRACKING_URI says
    report: bool = True  # leave report.html in the run's folder


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `model` holds the name and the fields of a Linen module, `task` those of what it learns."""

    # Modules from outside the package, or files .py, that register models, tasks and the like: imported before the rest
    # is read, by each command.
    plugins: tuple[str, ...] = setting((), read_by="evaluate texture predict weights")
    seed: int = 0  # of initial parameters, the order of images, augmentation and dropout
    model: Mapping[str, Any] = field(
        default_factory=lambda: models.settings("vit/Ti16"),
        metadata={"read_by": "evaluate texture predict weights"},
    )
    task: Mapping[str, Any] = field(default_factory=lambda: tasks.settings("classification"))
    init: Init = Init()
    data: Data = Data()
    augment: Augment = Augment()
    optim: Optim = Optim()
    train: Train = Train()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    corruption: Corruption = setting(Corruption(), read_by="evaluate")
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = setting(Mesh(), read_by="evaluate")
    log: Log = Log()

    def with_model(self, **fields: Any) -> "Config":
        """The same with other values of these fields of the model."""
        return dataclasses.replace(self, model={**self.model, **fields})


def schema(names: Mapping[str, str]) -> Schema:
    """Every field, of the model and the task of these names."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for group in dataclasses.fields(Config):
        if group.name in NAMED:
            found[f"{group.name}.name"] = NAME
            found |= {f"{group.name}.{name}": f for name, f in NAMED[group.name].fields(names[group.name]).items()}
        elif dataclasses.is_dataclass(group.type):
            found |= {f"{group.name}.{f.name}": f for f in dataclasses.fields(group.type)}
        else:
            found[group.name] = group
    return found


def schema_of(config: Config) -> Schema:
    """Every field that a configuration has."""
    return schema({group: getattr(config, group)["name"] for group in NAMED})


def value_of(config: Config, key: str) -> Any:
    """The value of the field `group.field`."""
    group, _, name = key.rpartition(".")
    owner: Any = getattr(config, group) if group else config
    return owner[name] if group in NAMED else getattr(owner, name)


def validate(config: Config) -> None:
    """Raises `UserError` for values out of range; whether model and data fit is known once the data set is open."""
    if not 0 <= config.seed < 2**32:  # JAX would take the remainder: the same run under another seed
        raise UserError(f"seed={config.seed} is not in [0, 2**32)")
    tasks.check_settings(config.task, config.distill)
    data.check(config.data)
    augment.check(config.augment)
    augment.check_corruption(config.corruption)
    optim.check(config.optim)
    sharding.check(config.mesh)
    _check_train(config.train, config.data.repeats)
    if config.data.balance and (config.task.get("balance") or config.task.get("class_weights")):
        raise UserError(
            f"data.balance={config.data.balance} and task.balance or task.class_weights count rare classes twice; "
            "leave one of them out"
        )
    if config.optim.schedule_free and tasks.chosen(config.task, config.distill).evaluated:
        raise UserError(
            f"optim.schedule_free={config.optim.schedule_free}: evaluation reads the teacher of self-distillation, "
            "an average of its own; set it to 0"
        )
    if config.init.head == "keep" and not config.init.weights:
        raise UserError("init.head='keep' needs weights whose head it keeps; set init.weights, or init.head='auto'")
    starts = [name for name in ("whitening", "mimetic", "impulse") if getattr(config.init, name)]
    if {"mimetic", "impulse"} <= set(starts):
        raise UserError("init.mimetic and init.impulse are two starts of the same attention; leave one out")
    if config.init.weights and starts:
        field = starts[0]
        raise UserError(f"init.{field}=True has no effect beside init.weights, which start in its place; leave one out")
    _check_reports(config)


def _check_train(train: Train, repeats: int) -> None:
    for name in ("batch_size", "accumulate", "max_bad_steps"):
        if getattr(train, name) < 1:
            raise UserError(f"train.{name}={getattr(train, name)} is not positive")
    if train.spike_sigmas < 0:
        raise UserError(f"train.spike_sigmas={train.spike_sigmas} is negative; 0 means off")
    if 1 < repeats >= train.batch_size:
        raise UserError(
            f"data.repeats={repeats} fills each batch of train.batch_size={train.batch_size} with one "
            "image; repeat it less often (3 is usual), or choose a larger batch"
        )
    if train.batch_size % train.accumulate:
        raise UserError(f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}")
    ends = {name: getattr(train, name) for name in ("steps", "seconds", "flops")}
    given = {f"train.{name}={value}": value for name, value in ends.items() if value}
    if min(ends.values()) < 0 or not (given or train.epochs > 0):
        raise UserError(
            f"train.flops={train.flops}, train.epochs={train.epochs}, train.steps={train.steps}, "
            f"train.seconds={train.seconds}: one of them must be positive, and none negative"
        )
    if train.image_sizes and (min(train.image_sizes) < 1 or train.seconds):
        raise UserError(
            f"train.image_sizes={train.image_sizes} must be positive, and need a run whose steps are known: set "
            "train.seconds to 0, and train.epochs, train.steps or train.flops"
        )
    if len(given) > 1:
        many = "both" if len(given) == 2 else "all"
        raise UserError(f"{' and '.join(given)} are {many} given; set all but one of them to 0")


def _check_reports(config: Config) -> None:
    """Of evaluation, checkpoints and the log."""
    meaning = {
        "evaluate.every_steps": "means the default",
        "evaluate.batch_size": "means the default",
        "checkpoint.every_steps": "means the default",
        "checkpoint.keep_best": "keeps only the last",
        "log.every_seconds": "means off",
    }
    for key, of_zero in meaning.items():
        if value_of(config, key) < 0:
            raise UserError(f"{key}={value_of(config, key)} is negative; 0 {of_zero}")
    if config.evaluate.use == "best" and (config.data.validation == "none" or not config.checkpoint.keep_best):
        lacking = "data.validation='none'" if config.data.validation == "none" else "checkpoint.keep_best=0"
        raise UserError(f"evaluate.use='best' with {lacking}: no checkpoint is the best; set evaluate.use=last")
    _check_probes(config.evaluate)
    if config.checkpoint.keep_last < 1 or config.log.every_steps < 1:
        raise UserError("checkpoint.keep_last and log.every_steps must be positive")


def check_probes(names: Sequence[str]) -> None:
    """Raises `UserError` for a name that is not one of `metrics.PROBES`."""
    if unknown := [name for name in names if name not in PROBES]:
        raise UserError(f"probe {unknown[0]!r} is unknown; {meant(unknown[0], PROBES)}")


def _check_probes(evaluate: Evaluate) -> None:
    """Also a value out of its range, and a metric that not each validation has."""
    check_probes(evaluate.probe)
    if min(evaluate.probe_every, evaluate.knn_neighbours) < 1 or not evaluate.knn_temperature > 0:
        raise UserError(
            f"evaluate.probe_every={evaluate.probe_every}, evaluate.knn_neighbours={evaluate.knn_neighbours} and "
            f"evaluate.knn_temperature={evaluate.knn_temperature} must be positive"
        )
    needed = next((name for name, found in PROBES.items() if evaluate.metric in found), "")
    if needed and (needed not in evaluate.probe or evaluate.probe_every > 1):
        raise UserError(
            f"evaluate.metric={evaluate.metric!r} ranks every validation: set evaluate.probe={needed} and "
            "evaluate.probe_every=1"
        )
