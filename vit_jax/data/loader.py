"""Batches on their way to the devices: indices into a split that lies on them whole, or its examples by Grain."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from vit_jax import sharding
from vit_jax.command import UserError
from vit_jax.data import batching
from vit_jax.data.balance import BalancedOrder
from vit_jax.data.crop import RandomCrop
from vit_jax.data.sources import read_labels
from vit_jax.data.split import Arrays, Split

Batch = dict[str, jax.Array]
Spec = dict[str, jax.ShapeDtypeStruct]


@dataclass(eq=False)
class Loader:
    """One split as seen by the steps: `constants`, which every step reads, and a batch for each step.

    A batch holds the `fields` of its examples: "image" uint8 [n h w c], "label" int32 [n], "mask" uint8 [n h w]. With
    `on_device` it holds {"index"}, and the whole split is in `constants["examples"]`: a step gathers its rows itself.
    `spec` and `constants_spec` describe both before anything is decoded. Evaluation batches have a "weight" too, 0 for
    padding and for broken images, and the image's "number" in the split.

    `in_memory`: the split is decoded once; otherwise it is read again each time. Only for training: each image comes
    `repeats` times in a row (see `batching.train_indices`), and `crop`, of a split that is streamed, has a random part
    of each image instead of what the split's preprocessing makes of it, at the size that it says. Where flips
    `alternates`, a training batch says which images are "mirrored". With `balance` rare classes come more often.
    """

    split: Split
    mesh: Mesh
    _: KW_ONLY
    on_device: bool = False
    in_memory: bool = False
    threads: int = 4
    repeats: int = 1
    crop: RandomCrop | None = None
    alternates: bool = False
    balance: float = 0.0
    fields: Sequence[str] = ("image", "label")
    _constants: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if missing := [f for f in self.fields if f not in self.split.fields]:
            raise UserError(
                f"the examples of split {self.split.name!r} have no {' and no '.join(missing)}, only "
                f"{' and '.join(self.split.fields)}; choose another data set, or a task that does without"
            )
        self.in_memory |= self.on_device

    def spec(self, batch_size: int) -> Spec:
        """The shapes and types of a training batch."""
        flips = {"mirrored": jax.ShapeDtypeStruct((batch_size,), np.bool_)} if self.alternates else {}
        if self.on_device:
            return {"index": jax.ShapeDtypeStruct((batch_size,), np.int32), **flips}
        return {**self.split.spec(batch_size, self.fields, self.crop), **flips}

    def constants_spec(self) -> dict[str, Spec]:
        """The shapes and types of `constants`."""
        return {"examples": self.split.spec(len(self.split), self.fields)} if self.on_device else {}

    @cached_property
    def order(self) -> batching.Order:
        """The images of an epoch; with `balance` every label is read once."""
        if not self.balance:
            return batching.epoch_order
        return BalancedOrder(read_labels(self.split.source), self.balance)

    def load(self) -> "Loader":
        """Decodes now what is kept in memory or on the devices, not when the first batch is asked for."""
        if self.in_memory:
            self.split.load(self.fields)
        if self.on_device and "examples" not in self._constants:
            place, arrays = sharding.replicated(self.mesh), self.split.arrays
            examples = {f: jax.make_array_from_process_local_data(place, arrays[f]) for f in self.fields}
            self._constants["examples"] = examples
        return self

    @property
    def constants(self) -> dict[str, Any]:
        return self.load()._constants

    def train(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps start .. stop - 1."""
        self.load()
        self.order  # noqa: B018 - read once, before several threads ask for it
        rows = sharding.local_rows(self.mesh, batch_size)

        def load(step: int) -> Arrays:
            indices, crops = self.chosen(seed, step, batch_size, rows)
            flips = {}
            if self.alternates:
                flips["mirrored"] = batching.mirrored(seed, step, batch_size, len(self.split), indices)
            if self.on_device:
                return {"index": self.split.usable(indices).astype(np.int32), **flips}
            return {**self.split.read(indices, crops, self.fields), **flips}

        return self._stream(load, range(start, stop), batch_size)

    def chosen(
        self, seed: int, step: int, batch_size: int, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Sequence[RandomCrop]]:
        """The images in these rows of a training step's batch, and how the host crops them: what `Split.read` takes."""
        indices = batching.train_indices(seed, step, batch_size, len(self.split), self.repeats, self.order)[rows]
        return indices, [self.crop.at(seed, step, int(row)) for row in rows] if self.crop else ()

    def images_of(self, seed: int, step: int, batch_size: int) -> list[str]:
        """What the images of a training step's whole batch are called."""
        indices, _ = self.chosen(seed, step, batch_size, np.arange(batch_size))
        return [self.split.source.describe(int(index)) for index in indices]

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Every image of the split once, in order, the last batch padded."""
        self.load()
        rows = sharding.local_rows(self.mesh, batch_size)

        def load(i: int) -> Arrays:
            indices, weights = (x[rows] for x in batching.evaluation_batch(i, batch_size, len(self.split)))
            number = indices.astype(np.int32)
            if self.on_device:
                assert self.split.good is not None
                arrays, good = {"index": number}, self.split.good[indices]
            else:
                arrays, good = self.split.read_marked(indices, self.fields)
            return {**arrays, "number": number, "weight": weights * good}

        return self._stream(load, range(-(-len(self.split) // batch_size)), batch_size)

    def _stream(self, load: Callable[[int], Arrays], steps: range, batch_size: int) -> Iterator[Batch]:
        place = sharding.batch_sharding(self.mesh)
        with contextlib.ExitStack() as stack:
            loaded: Iterator[Any] = map(load, steps)
            if not self.on_device and steps:
                options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * self.threads)
                dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
                loaded = stack.enter_context(contextlib.closing(iter(dataset.to_iter_dataset(options))))
            for batch in loaded:
                yield {
                    k: jax.make_array_from_process_local_data(place, v, (batch_size, *v.shape[1:]))
                    for k, v in batch.items()
                }
