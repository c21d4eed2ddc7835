"""The images of the peers: the same synthetic ones as ours; of a cached data set, other indices each step."""

import numpy as np

from benchmarks.workloads import Case
from vit_jax.data import open_data


class Batches:
    """Images uint8 [n h w c] and labels: the whole data set, or (`whole`) the one batch that is used each time."""

    def __init__(self, case: Case) -> None:
        data = open_data(case.config().data)
        split = data.split("train").load()
        self.whole = case.mode != "train" or len(split) == case.batch_size
        taken = case.batch_size if self.whole else len(split)
        self.images, self.labels = split.arrays["image"][:taken], split.arrays["label"][:taken]
        self.classes, self.batch_size = len(data.class_names), case.batch_size
        self._rng, self._order = np.random.default_rng(0), np.empty(0, np.int32)

    def next(self) -> np.ndarray:
        """The indices of the next batch: each epoch in another order, the remainder dropped."""
        if len(self._order) < self.batch_size:
            self._order = self._rng.permutation(len(self.images)).astype(np.int32)
        batch, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return batch
