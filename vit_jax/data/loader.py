"""Batches on their way to the devices: indices into a split that lies on them whole, or uint8 images by Grain."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from vit_jax import sharding
from vit_jax.data import batching
from vit_jax.data.crop import RandomCrop
from vit_jax.data.split import Split

Batch = dict[str, jax.Array]


class Feed:
    """One split as seen by the steps: `frozen`, which every step reads, and a batch for each step.

    With `on_device` the whole split is `frozen` ({"image", "label"}) and a batch holds {"index"}: a step gathers its
    images itself. Otherwise `frozen` is empty and a batch holds {"image" uint8 [n h w c], "label" int32 [n]}.
    Evaluation batches have a "weight" too, 0 for padding and for broken images, and the image's "number" in the split.

    Only for training: each image comes `repeats` times in a row (see `batching.train_indices`), and `crop`, of a split
    that is streamed, has a random part of each image instead of the split's view, at the size that it says.
    """

    def __init__(
        self,
        split: Split,
        mesh: Mesh,
        *,
        on_device: bool,
        threads: int = 4,
        repeats: int = 1,
        crop: RandomCrop | None = None,
    ) -> None:
        self.split, self.mesh, self.on_device, self.threads = split, mesh, on_device, threads
        self.repeats, self.crop = repeats, crop
        self.frozen: Batch = {}
        if on_device:
            split.load()
            whole = {"image": split.images, "label": split.labels}
            place = sharding.replicated(mesh)
            self.frozen = {k: jax.make_array_from_process_local_data(place, v) for k, v in whole.items()}

    def train(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps start .. stop - 1."""
        rows = sharding.local_rows(self.mesh, batch_size)

        def load(step: int) -> dict[str, np.ndarray]:
            indices, crops = self.chosen(seed, step, batch_size, rows)
            if self.on_device:
                return {"index": self.split.usable(indices).astype(np.int32)}
            images, labels = self.split.read(indices, crops)
            return {"image": images, "label": labels}

        return self._stream(load, range(start, stop), batch_size)

    def chosen(
        self, seed: int, step: int, batch_size: int, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Sequence[RandomCrop]]:
        """The images in these rows of a training step's batch, and how the host crops them: what `Split.read` takes."""
        indices = batching.train_indices(seed, step, batch_size, len(self.split), self.repeats)[rows]
        return indices, [self.crop.at(seed, step, int(row)) for row in rows] if self.crop else ()

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Every image of the split once, in order, the last batch padded."""
        rows = sharding.local_rows(self.mesh, batch_size)
        batches = list(batching.evaluation_batches(batch_size, len(self.split)))

        def load(i: int) -> dict[str, np.ndarray]:
            indices, weights = batches[i].indices[rows], batches[i].weights[rows]
            number = indices.astype(np.int32)
            if self.split.good is not None and self.on_device:
                good = self.split.good[indices].astype(np.float32)
                return {"index": number, "number": number, "weight": weights * good}
            images, labels, good = self.split.read_marked(indices)
            return {"image": images, "label": labels, "number": number, "weight": weights * good}

        return self._stream(load, range(len(batches)), batch_size)

    def _stream(self, load: Callable[[int], dict[str, np.ndarray]], steps: range, batch_size: int) -> Iterator[Batch]:
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
