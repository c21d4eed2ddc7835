"""Training images of several sizes: which step has which, what that costs, and one compiled step for each.

Small images first teach much for little (progressive resizing; Tan & Le 2021, arXiv:2104.00298, s. 4). Sizes that
change from batch to batch make a model see objects at many scales (Mehta & Rastegari 2022, arXiv:2110.02178, s. 3.3).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import step, trees
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.tasks import Task
from vit_jax.train.flops import flops_per_step

POSITIONS = ("pos_embedding", "x_embedding", "y_embedding")  # tables that `models.positions` brings to another grid
OF_SIZES = 2**62  # of the numbers drawn from the seed, the first for the sizes; above 2**63 a list would become floats


def at_size(config: Config, size: int) -> Config:
    """The configuration whose training images have this side."""
    return dataclasses.replace(config, augment=dataclasses.replace(config.augment, resize=(size,)))


def size_at(config: Config, at: int, total: int) -> int:
    """The side of the images of a step, counted from 0, in a run of so many.

    In their order each has an equal share of the steps; drawn, each comes once in as many steps as there are sizes.
    """
    sizes = config.train.image_sizes
    if config.train.size_order == "in_turn":
        return sizes[min(at * len(sizes) // total, len(sizes) - 1)]
    block, place = divmod(at, len(sizes))
    order = np.random.Generator(np.random.Philox(key=[config.seed, OF_SIZES + block])).permutation(len(sizes))
    return sizes[order[place]]


def flops_of_steps(config: Config, steps: int, total: int, per_step: Mapping[int, int]) -> int:
    """The operations of the first so many steps of a run, exactly; `per_step` of each size."""
    if config.train.size_order == "in_turn":
        firsts = [-(-i * total // len(config.train.image_sizes)) for i in range(len(config.train.image_sizes) + 1)]
        counts = [max(0, min(steps, end) - begin) for begin, end in zip(firsts, firsts[1:], strict=False)]
        return sum(n * per_step[size] for n, size in zip(counts, config.train.image_sizes, strict=True))
    blocks, rest = divmod(steps, len(config.train.image_sizes))
    whole = blocks * sum(per_step[size] for size in config.train.image_sizes)
    return whole + sum(per_step[size_at(config, at, total)] for at in range(steps - rest, steps))


def mean_flops(config: Config, task: Task, by_size: Mapping[int, Task]) -> int:
    """Of a training step of a task; the mean over its sizes where there are several."""
    of_each = [flops_per_step(config, one) for one in by_size.values() or (task,)]
    return round(sum(of_each) / len(of_each))


def check(sizes: tuple[int, ...], task: Task, *, cropped: bool) -> None:
    """Raises `UserError` where training cannot have images of these sizes; `cropped`: the host cuts them.

    The model's parameters, positions apart, may not depend on the size of its images.
    """
    if not sizes:
        return
    if "label" not in task.targets:
        raise UserError(f"train.image_sizes={sizes} are for classifications; leave them out")
    if cropped:
        raise UserError(f"train.image_sizes={sizes} need images that the device crops; set data.crop_on=device")
    model, shape = task.parts.model, task.parts.image_shape
    if shape[0] != shape[1]:
        raise UserError(
            f"train.image_sizes={sizes} are sides of squares, and data.image_size is {shape[:2]}; make it one"
        )

    def shapes(shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        params = jax.eval_shape(lambda: step.init_variables(model, 0, shape))["params"]
        return {n: leaf.shape for n, leaf in trees.named(params) if not n.endswith(POSITIONS)}

    whole = shapes(shape)
    for size in sizes:
        model.check((size, size, shape[2]))
        other = shapes((size, size, shape[2]))
        if differ := [name for name in whole if whole[name] != other.get(name)]:
            raise UserError(
                f"train.image_sizes={sizes}: {differ[0]!r} of the model depends on the size of its images; leave the "
                "sizes out, or choose a model whose parameters do not, e.g. with pooling gap and learned positions"
            )


class SizedStep:
    """A training step that takes the program of its images' size: as a jitted function is called and lowered."""

    def __init__(self, steps: Mapping[int, Any], config: Config, total: int, start: int | None = None) -> None:
        """`steps` of each size, jitted or compiled; `start`: at which the next call is, None: its state tells."""
        self.steps, self.config, self.total, self.at = steps, config, total, start

    def __call__(self, state: Any, batch: Any, constants: Any) -> Any:
        at = _step_of(state) if self.at is None else self.at
        if self.at is not None:
            self.at += 1
        chosen = self._largest if at is None else size_at(self.config, at, self.total)
        return self.steps[chosen](state, batch, constants)

    @property
    def _largest(self) -> int:
        return max(self.steps)

    def lower(self, state: Any, batch: Any, constants: Any) -> "SizedStep":
        """The programs, lowered, from the state's step on."""
        lowered = {size: one.lower(state, batch, constants) for size, one in self.steps.items()}
        return SizedStep(lowered, self.config, self.total, _step_of(state) or 0)

    def compile(self) -> "SizedStep":
        """The programs, compiled; the one of the largest images first, which may not fit."""
        compiled = {size: self.steps[size].compile() for size in sorted(self.steps, reverse=True)}
        return SizedStep(compiled, self.config, self.total, self.at)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a program, such as its memory, is that of the largest images."""
        return getattr(self.steps[self._largest], name)


def _step_of(state: Any) -> int | None:
    """The step of a state; None where the state is only described."""
    known = isinstance(state.step, jax.Array) and not isinstance(state.step, jax.core.Tracer)
    return int(state.step) if known else None
