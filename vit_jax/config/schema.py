"""The schema of a run's configuration: every group, field and default, and what values they may have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vit_jax import augment, data, models, optim, sharding
from vit_jax.augment import Corruption
from vit_jax.augment import Settings as Augment
from vit_jax.command import UserError
from vit_jax.data import Settings as Data
from vit_jax.optim import Settings as Optim
from vit_jax.sharding import Settings as Mesh
from vit_jax.tasks import Distill


@dataclass(frozen=True, kw_only=True)
class Train:
    """The config group `train`."""

    batch_size: int = 128  # images per optimizer step, over all devices and processes
    epochs: float = 10.0
    steps: int = 0  # instead of epochs
    seconds: float = 0.0  # instead of epochs: the time that training steps may take; the schedule follows the clock
    accumulate: int = 1  # parts in which a batch is processed, one after another, to save memory
    loss: Literal["softmax", "sigmoid", "multi_hot"] = "softmax"  # multi_hot: DeiT III's, see `losses`
    label_smoothing: float = 0.0
    max_bad_steps: int = 10  # updates in a row that may be skipped for a gradient that is not finite
    deterministic: bool = False  # only kernels that give the same bits each time, and none chosen by a clock


@dataclass(frozen=True, kw_only=True)
class Init:
    """The config group `init`: where the parameters come from."""

    weights: str = ""  # a run's folder, a file, https://, gs://, hf://ORGANISATION/NAME; "": random
    head: Literal["auto", "keep", "new"] = "auto"  # auto: kept where the classes are the same, else new, of zeros
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"  # of position embeddings for another grid


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The config group `evaluate`."""

    every_steps: int = 0  # on validation; 0: after each epoch
    batch_size: int = 0  # 0: train.batch_size
    before: bool = False  # the untrained model meets the test split too: what its weights bring along
    use: Literal["last", "best"] = "last"  # the checkpoint that meets the test split: last, or best in validation
    metric: Literal["accuracy", "loss"] = "accuracy"  # what "best" means
    split: str = "test"  # of the command `vit_jax.evaluate`: train, validation, test or a split in TFDS syntax


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The config group `checkpoint`. A checkpoint is written after each validation, too."""

    every_steps: int = 0  # 0: only after each validation, or each epoch where there is none
    keep_last: int = 1
    keep_best: int = 1


@dataclass(frozen=True, kw_only=True)
class Log:
    """The config group `log`."""

    every_steps: int = 50
    every_seconds: float = 60.0  # at most, before a line shows which step is done: on the console alone; 0: off
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `model` holds the name and the fields of a Linen module: see `models.settings`."""

    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=lambda: models.settings("vit/Ti16"))
    init: Init = Init()
    data: Data = Data()
    augment: Augment = Augment()
    optim: Optim = Optim()
    train: Train = Train()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()
    perturb: Corruption = Corruption()
    checkpoint: Checkpoint = Checkpoint()
    mesh: Mesh = Mesh()
    log: Log = Log()

    @property
    def task(self) -> Mapping[str, Any]:
        return {
            "name": "classification",
            "loss": self.train.loss,
            "label_smoothing": self.train.label_smoothing,
        }


def validate(config: Config) -> None:
    """Raises `UserError` for values out of range; whether model and data fit is known once the data set is open."""
    data.check(config.data)
    augment.check(config.augment)
    augment.check_corruption(config.perturb)
    optim.check(config.optim)
    sharding.check(config.mesh)
    train = config.train
    if not 0 <= config.seed < 2**32:  # JAX would take the remainder: the same run under another seed
        raise UserError(f"seed={config.seed} is not in [0, 2**32)")
    for name in ("batch_size", "accumulate", "max_bad_steps"):
        if getattr(train, name) < 1:
            raise UserError(f"train.{name}={getattr(train, name)} is not positive")
    if 1 < config.data.repeats >= train.batch_size:
        raise UserError(
            f"data.repeats={config.data.repeats} fills each batch of train.batch_size={train.batch_size} with one "
            "image; repeat it less often (3 is usual), or choose a larger batch"
        )
    if train.batch_size % train.accumulate:
        raise UserError(f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}")
    if train.steps < 0 or train.seconds < 0 or not (train.steps or train.seconds or train.epochs > 0):
        raise UserError(
            f"train.epochs={train.epochs}, train.steps={train.steps}, train.seconds={train.seconds}: "
            "one of them must be positive, and none negative"
        )
    if train.steps and train.seconds:
        raise UserError(
            f"train.steps={train.steps} and train.seconds={train.seconds} are both given; set one of them to 0"
        )
    if not 0 <= train.label_smoothing < 1:
        raise UserError(f"train.label_smoothing={train.label_smoothing} is not in [0, 1)")
    if train.loss == "multi_hot" and train.label_smoothing:
        raise UserError(
            f"train.label_smoothing={train.label_smoothing} would make every class a target of "
            "train.loss='multi_hot'; set it to 0"
        )
    if config.init.head == "keep" and not config.init.weights:
        raise UserError("init.head='keep' needs weights whose head it keeps; set init.weights, or init.head='auto'")
    if not 0 <= config.distill.weight <= 1 or config.distill.temperature <= 0:
        raise UserError(
            f"distill.weight={config.distill.weight} must be in [0, 1], "
            f"distill.temperature={config.distill.temperature} positive"
        )
    counts = {
        "evaluate.every_steps": config.evaluate.every_steps,
        "evaluate.batch_size": config.evaluate.batch_size,
        "checkpoint.every_steps": config.checkpoint.every_steps,
    }
    for name, value in counts.items():
        if value < 0:
            raise UserError(f"{name}={value} is negative; 0 means the default")
    if config.checkpoint.keep_best < 0:
        raise UserError(f"checkpoint.keep_best={config.checkpoint.keep_best} is negative; 0 keeps only the last")
    if config.evaluate.use == "best" and (config.data.validation == "none" or not config.checkpoint.keep_best):
        lacking = "data.validation='none'" if config.data.validation == "none" else "checkpoint.keep_best=0"
        raise UserError(f"evaluate.use='best' with {lacking}: no checkpoint is the best; set evaluate.use=last")
    if config.log.every_seconds < 0:
        raise UserError(f"log.every_seconds={config.log.every_seconds} is negative; 0 means off")
    if config.checkpoint.keep_last < 1 or config.log.every_steps < 1:
        raise UserError("checkpoint.keep_last and log.every_steps must be positive")
