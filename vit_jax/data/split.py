"""The decoded images of one split: kept in memory, or read from disk when asked for; broken ones counted."""

import errno
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vit_jax.command import UserError
from vit_jax.data import ops
from vit_jax.data.crop import RandomCrop
from vit_jax.data.sources import Source

IMAGES_AT_ONCE = 256
# Errors that say nothing of an image: another one in its place would make the batch depend on the machine.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EIO)
STATISTICS_IMAGES = 10_000  # mean and deviation of a streamed split are taken over so many, evenly spaced


@dataclass(frozen=True)
class View:
    """How an image leaves the host: its size, how it is brought to that size, its channels."""

    size: tuple[int, int]
    resize: Literal["crop", "stretch"]
    channels: int
    crop_fraction: float = 1.0  # the image is scaled to size / crop_fraction, and the centre taken
    interpolation: ops.Interpolation = "bilinear"
    draft: bool = False  # of every image, as `__call__` does of one

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels)

    def __call__(self, encoded: bytes | np.ndarray, *, draft: bool = False) -> UInt8[np.ndarray, "h w c"]:
        """The image, decoded and brought to its size.

        `draft` has the JPEG decoder reduce photos several times too large, which is three to four times as fast: to
        1/2, 1/4 or 1/8, so that at least `ops.DRAFT_MARGIN` times the size remains. Photos differ by 0.3 levels of 255
        in the mean then, and by 6 at most.
        """
        extent = None
        if (draft or self.draft) and isinstance(encoded, bytes):
            height, width = ops.covering(self.size, self.crop_fraction)
            at_least = (ops.DRAFT_MARGIN * height, ops.DRAFT_MARGIN * width)
            image, extent = ops.decode_reduced(encoded, self.channels, at_least)
        else:
            image = ops.decode(encoded, self.channels)
        return ops.resize(image, self.size, self.resize, self.crop_fraction, self.interpolation, extent)


@dataclass
class Split:
    """Random access to the images of a split as uint8 [n h w c] with labels; safe to use from several threads.

    `load` keeps all images in memory; without it they are read again each time. A broken image raises `UserError`
    unless at most `max_bad_fraction` of the split is broken. It then keeps its place, so that the order of the others
    does not depend on it: training reads the next good image instead, evaluation leaves it out.
    """

    name: str
    source: Source
    view: View
    max_bad_fraction: float = 0.0
    threads: int = 4
    images: UInt8[np.ndarray, "n h w c"] | None = None
    labels: Int[np.ndarray, " n"] | None = None
    good: Bool[np.ndarray, " n"] | None = None
    bad: dict[int, str] = field(default_factory=dict)  # position in the source -> what is wrong
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_bytes(self) -> int:
        return len(self.source) * int(np.prod(self.view.shape))

    def load(self) -> "Split":
        """Decodes all images into memory."""
        if self.images is None:
            self.images, self.labels, self.good = self._decode(np.arange(len(self.source)))
        return self

    def usable(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The indices, each of a broken image replaced by the next good one's; for a split that is loaded."""
        assert self.good is not None
        good = np.flatnonzero(self.good)
        return indices if len(good) == len(self) else good[np.searchsorted(good, indices) % len(good)]

    def read(
        self, indices: Int[np.ndarray, " n"], crops: Sequence[RandomCrop] = ()
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels for training: the next good image instead of a broken one.

        `crops`, one for each image, take the place of the split's view; the split must not be loaded then.
        """
        if self.images is not None and self.labels is not None:
            assert not crops, "images that are loaded have been resized already"
            indices = self.usable(indices)
            return self.images[indices], self.labels[indices]
        images, labels, good = self._decode(indices, parallel=False, crops=crops)
        for row in np.flatnonzero(~good):
            for ahead in range(1, len(self)):
                another = np.asarray([(indices[row] + ahead) % len(self)])
                image, label, found = self._decode(another, parallel=False, crops=crops[int(row) : int(row) + 1])
                if found[0]:
                    images[row], labels[row] = image[0], label[0]
                    break
        return images, labels

    def read_marked(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Images, labels, and which of them are good (a broken one is black)."""
        if self.images is None or self.labels is None or self.good is None:
            return self._decode(indices, parallel=False)
        return self.images[indices], self.labels[indices], self.good[indices]

    def statistics(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Mean and standard deviation of each channel, on the 0..1 scale, exact over the images looked at."""
        images, good = self.images, self.good
        if images is None or good is None:
            spaced = np.unique(np.linspace(0, len(self) - 1, STATISTICS_IMAGES).astype(int))
            images, _, good = self._decode(spaced)
        counts = np.zeros((self.view.channels, 256), np.int64)
        for start in range(0, len(images), IMAGES_AT_ONCE):  # counting takes eight bytes for each value
            block = images[start : start + IMAGES_AT_ONCE][good[start : start + IMAGES_AT_ONCE]]
            for c in range(self.view.channels):
                counts[c] += np.bincount(block[..., c].reshape(-1), minlength=256)
        levels = np.arange(256) / 255
        mean, std = np.empty(self.view.channels), np.empty(self.view.channels)
        for c, share in enumerate(counts / counts.sum(axis=1, keepdims=True)):
            mean[c] = share @ levels
            std[c] = np.sqrt(share @ (levels - mean[c]) ** 2)
        return mean, std

    def _decode(self, indices, parallel: bool = True, crops: Sequence[RandomCrop] = ()):
        views: Sequence[View | RandomCrop] = crops or [self.view] * len(indices)
        images = np.empty((len(indices), *views[0].shape), np.uint8)
        labels, good = np.zeros(len(indices), np.int32), np.ones(len(indices), bool)

        def decode(row: int) -> None:
            try:
                encoded, labels[row] = self.source.read(int(indices[row]))
                images[row] = views[row](encoded)
            except Exception as error:  # whatever a damaged file makes its reader raise
                if isinstance(error, MemoryError) or getattr(error, "errno", None) in OF_THE_MACHINE:
                    place = self.source.describe(int(indices[row]))
                    raise UserError(f"cannot read {place} now: {error}; the image itself may be whole") from error
                images[row], good[row] = 0, False
                self._count_bad(int(indices[row]), error)

        if parallel:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(decode, range(len(indices)), chunksize=64))
        else:
            for row in range(len(indices)):
                decode(row)
        return images, labels, good

    def _count_bad(self, index: int, error: Exception) -> None:
        with self._lock:
            if index in self.bad:
                return
            self.bad[index] = f"{self.source.describe(index)}: {error}"
            if len(self.bad) > self.max_bad_fraction * len(self.source):
                raise UserError(
                    f"broken image {self.bad[index]} ({len(self.bad)} of {len(self.source)} in {self.name!r} so far); "
                    "repair or remove it, or allow some with data.max_bad_fraction=0.01"
                ) from error
            logging.getLogger(__name__).warning("skipped broken image %s", self.bad[index])
