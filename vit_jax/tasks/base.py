"""A task says what a run learns: its module, its loss, what an evaluation keeps of each example, and its metrics.

The functions of a task are pure: it knows no mesh, clock or console, and only its evaluator writes files. The training
step (`vit_jax.step`), the loop and every command work with any task. To add one, write a subclass of `Task` in a file
of its own and give it to `tasks.register`: see docs/extend.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, UInt8

from vit_jax import augment
from vit_jax.augment import Settings as Augment
from vit_jax.augment import TestTime
from vit_jax.command import UserError
from vit_jax.data import Split
from vit_jax.setting import setting
from vit_jax.trees import PyTree

Examples = Mapping[str, Array]  # "image" uint8 [n h w c], as the data set has it, and the task's targets
Scalars = dict[str, Array]


class Rngs(NamedTuple):
    """The randomness of one part of a batch at one step; see `step.Purpose`."""

    augment: Key[Array, " n"]  # one key for each example
    mix: Key[Array, ""]  # for the whole part
    dropout: Key[Array, ""]
    task: Key[Array, " n"]  # one key for each example, for the task's own draws, e.g. which patches are masked


class Aux(NamedTuple):
    """What a loss gives beside its value."""

    batch_stats: PyTree  # as the forward pass changed them
    metrics: Scalars  # "loss" and others, means over the examples
    extra: PyTree = {}  # noqa: RUF012 - means that `update` needs; never changed


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The fields of a task without any."""

    def check(self) -> None:
        """Raises `UserError` for values out of their range."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """The config group `distill`: a teacher sees each augmented image too (Touvron et al. 2021, arXiv:2012.12877)."""

    teacher: str = ""  # a run's folder, or published weights as `init.weights`; "": none
    # Learn the teacher's decision (eq. 3), or its probabilities (eq. 2).
    kind: Literal["hard", "soft"] = setting("hard", active_if="distill.teacher")
    weight: float = setting(0.5, active_if="distill.teacher")  # of the teacher in the loss, the labels have the rest
    # soft: divides both models' logits.
    temperature: float = setting(1.0, active_if="distill.teacher and distill.kind=soft")

    def check(self) -> None:
        """Raises `UserError` for values out of their range."""
        if not 0 <= self.weight <= 1 or self.temperature <= 0:
            raise UserError(
                f"distill.weight={self.weight} must be in [0, 1], distill.temperature={self.temperature} positive"
            )


class Teacher(NamedTuple):
    """A trained model that another one learns from. Its variables are an argument of the step, not a closure."""

    variables: PyTree
    forward: Callable[[PyTree, Float[Array, "n h w c"]], Float[Array, "n k"]]  # of images as the student gets them


@dataclass(frozen=True)
class Parts:
    """All that a task is built from."""

    model: nn.Module
    image_shape: tuple[int, int, int]  # h, w, c, as the model gets them
    class_names: tuple[str, ...]
    augment: Augment  # with mean and deviation
    train_augment: Augment  # the same, without what the host did to training images
    tta: TestTime = "none"  # what else an evaluation sees of each image
    distill: Distill = field(default_factory=Distill)
    teacher: Teacher | None = None


@runtime_checkable
class Evaluator(Protocol):
    """Gathers what a task's `outputs` say of every example of a split, on the host."""

    @property
    def size(self) -> int:
        """How many examples it has."""

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the next examples: `index`, the place of each in its split, its targets, and the task's outputs.

        Each example comes once, in the split's order; padding and broken images do not come. Raises `UserError` for
        targets that the task cannot have.
        """

    def scalars(self) -> dict[str, float]:
        """The metrics of all examples, by their names in `metrics.METRICS`; raises `UserError` where there are none."""

    def details(self) -> dict[str, Any]:
        """What a report says beyond the scalars, ready for JSON."""

    def warnings(self) -> list[str]:
        """What is wrong with a model that predicts so. Each text has the word "Likely" before its causes."""

    def save(self, folder: Path) -> None:
        """Writes what later commands read of the examples, and the details."""


@dataclass(frozen=True)
class Section:
    """A part of a run's report that only its task has: a picture, a table, or both."""

    title: str
    text: str = ""
    picture: Path | None = None  # a file of the run's folder
    columns: tuple[str, ...] = ()  # those called as a metric of `metrics.METRICS` are written as it is
    rows: Sequence[tuple[str | float, ...]] = ()


class Task:
    """What a run learns. A subclass has at least `loss`, `outputs` and `evaluator`."""

    Settings: ClassVar[type[TaskSettings]] = TaskSettings  # the fields of the config group `task`
    targets: ClassVar[tuple[str, ...]] = ()  # what it learns from beside the image: "label", "mask"
    needs_head: ClassVar[bool] = False  # whether it uses the model's own head, of one output for each class
    views: ClassVar[tuple[TestTime, ...]] = ("none",)  # which values of `evaluate.tta` `outputs` heeds
    monitor: ClassVar[str] = "loss"  # the metric that ranks checkpoints, where the configuration says "auto"
    shown: ClassVar[Mapping[str, int]] = {}  # outputs that the evaluator gets of about so many first examples alone
    # Of the task's own state the entry whose variables evaluation and later commands read, e.g. "teacher"; "": those
    # that train, or their averages.
    evaluated: ClassVar[str] = ""
    train_metrics: ClassVar[tuple[str, ...]] = ("loss",)  # of `Aux.metrics`, those that progress shows

    def __init__(self, settings: Any, parts: Parts) -> None:
        if parts.tta not in self.views:
            raise UserError(f"evaluate.tta={parts.tta} is not known to this task; choose from {', '.join(self.views)}")
        self.settings, self.parts = settings, parts
        self.module: nn.Module = parts.model  # all that has gradients: the backbone and what stands on it
        self.constants: Mapping[str, PyTree] = {}  # arrays that the loss reads and no step changes

    @property
    def seen(self) -> Sequence[tuple[int, int, int]]:
        """The shapes of what the model sees of each training image, for the operations of a step."""
        return (self.parts.image_shape,)

    @classmethod
    def check(cls, settings: Any, model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` where the settings do not fit the config group `model`; touches no device."""

    @classmethod
    def with_data(cls, settings: Any, train: Split | None, num_classes: int) -> Any:
        """The settings with what the training images decide, e.g. the weights of classes; None: they are not read."""
        return settings

    @classmethod
    def sections(cls, folder: Path) -> list[Section]:
        """What a report shows of the files that `Evaluator.save` left in a run's folder, beside the common sections."""
        return []

    def init_state(self, params: PyTree) -> PyTree:
        """What the task changes beside the parameters, e.g. a teacher's; {} where there is nothing."""
        return {}

    def augmented(self, batch: Examples, rngs: Rngs) -> Float[Array, "n h w c"]:
        """The images as the model sees them in training."""
        seen = {name: batch[name] for name in ("image", "mirrored", "progress") if name in batch}
        return augment.train_examples(self.parts.train_augment, seen, rngs.augment)["image"]

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        state: PyTree,
        batch: Examples,
        rngs: Rngs,
        constants: Mapping[str, PyTree],
    ) -> tuple[Float[Array, ""], Aux]:
        """The mean loss of a part of a batch; `state` is the task's own, `constants` holds `self.constants`."""
        raise NotImplementedError

    def update(self, state: PyTree, params: PyTree, aux: Aux, progress: Float[Array, ""]) -> PyTree:
        """The task's own state after an update of the parameters; `progress` is 0 at the start and 1 at the end."""
        return state

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        """What an evaluation keeps of each example, a row each; `batch` has its "number" in the split, too."""
        raise NotImplementedError

    def evaluator(self, size: int) -> Evaluator:
        """A new evaluator for a split of `size` examples."""
        raise NotImplementedError

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """What is wrong with a run whose mean training metrics are these. Each text has "Likely" before its causes."""
        if math.isfinite(scalars["loss"]):
            return []
        return [
            f"the training loss is {scalars['loss']}: the parameters are lost. Likely: the learning rate is too high, "
            "the gradient is not clipped or the warm-up too short, a low precision overflows, or the images hold NaN."
        ]


def make_forward(model: nn.Module, settings: augment.Settings) -> Callable[[PyTree, Any], Array]:
    """`(variables, images uint8 [n h w c]) -> what the model says of them in evaluation`."""

    def forward(variables: PyTree, images: UInt8[Array, "n h w c"]) -> Float[Array, "n ..."]:
        found = model.apply(variables, augment.eval_view(settings, images), train=False)
        assert isinstance(found, jax.Array)
        return found

    return forward


def gathered(batch: Mapping[str, Array], constants: Mapping[str, PyTree]) -> dict[str, Array]:
    """The examples of a batch, which holds them, or their "index" in `constants["examples"]`, a whole split."""
    if "index" not in batch:
        return dict(batch)
    rest = {name: rows for name, rows in batch.items() if name != "index"}
    return {name: rows[batch["index"]] for name, rows in constants["examples"].items()} | rest
