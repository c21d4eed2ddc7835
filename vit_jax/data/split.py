"""The decoded examples of one split: kept in memory, or read from disk when asked for; broken ones counted."""

import errno
import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.crop import RandomCrop
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources import Example, Source

Arrays = dict[str, np.ndarray]
IMAGES_AT_ONCE = 256
# Errors that say nothing of an image: another one in its place would make the batch depend on the machine.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EIO)
STATISTICS_IMAGES = 10_000  # mean and deviation of a streamed split are taken over so many, evenly spaced


@dataclass
class Split:
    """Random access to the examples of a split as arrays (see `spec`); safe to use from several threads.

    `load` keeps all of them in memory; without it they are read again each time. A broken image raises `UserError`
    unless at most `max_bad_fraction` of the split is broken. It then keeps its place, so that the order of the others
    does not depend on it: training reads the next good image instead, evaluation leaves it out.
    """

    name: str
    source: Source
    preprocessing: Preprocessing
    max_bad_fraction: float = 0.0
    threads: int = 4
    fields: tuple[str, ...] = ("image", "label")  # what there is to read
    arrays: Arrays = field(default_factory=dict)  # what is loaded
    good: Bool[np.ndarray, " n"] | None = None  # of what is loaded
    bad: dict[int, str] = field(default_factory=dict)  # position in the source -> what is wrong
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def spec(
        self, n: int, fields: Sequence[str] = (), crop: RandomCrop | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and types of `n` examples with these `fields` (all), their images cropped by `crop`."""
        shape = (crop or self.preprocessing).shape
        known = {"image": (shape, np.uint8), "label": ((), np.int32), "mask": (shape[:2], np.uint8)}
        return {f: jax.ShapeDtypeStruct((n, *known[f][0]), known[f][1]) for f in fields or self.fields}

    @property
    def num_bytes(self) -> int:
        """Of all images and masks, decoded."""
        pixels = [x for f, x in self.spec(len(self)).items() if f != "label"]
        return sum(int(np.prod(x.shape)) for x in pixels)

    def load(self, fields: Sequence[str] = ()) -> "Split":
        """Decodes all examples into memory: these `fields` (all) of them."""
        if missing := [f for f in fields or self.fields if f not in self.arrays]:
            arrays, good = self._decode(np.arange(len(self)), missing)
            self.arrays |= arrays
            self.good = good if self.good is None else good & self.good
        return self

    def usable(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The indices, each of a broken image replaced by the next good one's; for a split that is loaded."""
        assert self.good is not None
        good = np.flatnonzero(self.good)
        return indices if len(good) == len(self) else good[np.searchsorted(good, indices) % len(good)]

    def read(
        self, indices: Int[np.ndarray, " n"], crops: Sequence[RandomCrop] = (), fields: Sequence[str] = ()
    ) -> Arrays:
        """These `fields` (all) of examples for training: the next good image instead of a broken one.

        `crops`, one for each image, take the place of the split's preprocessing; the split must not be loaded then.
        """
        if self.arrays:
            assert not crops, "images that are loaded have been resized already"
            return self._loaded(self.usable(indices), fields)
        arrays, good = self._decode(indices, fields, parallel=False, crops=crops)
        for row in np.flatnonzero(~good):
            for ahead in range(1, len(self)):
                another = np.asarray([(indices[row] + ahead) % len(self)])
                found, is_good = self._decode(another, fields, parallel=False, crops=crops[int(row) : int(row) + 1])
                if is_good[0]:
                    for name, values in found.items():
                        arrays[name][row] = values[0]
                    break
        return arrays

    def read_marked(
        self, indices: Int[np.ndarray, " n"], fields: Sequence[str] = ()
    ) -> tuple[Arrays, Bool[np.ndarray, " n"]]:
        """These `fields` (all) of examples, and which are good (a broken image is black, its mask void)."""
        if self.good is None:
            return self._decode(indices, fields, parallel=False)
        return self._loaded(indices, fields), self.good[indices]

    def _loaded(self, indices: Int[np.ndarray, " n"], fields: Sequence[str]) -> Arrays:
        arrays = self.load(fields).arrays
        return {f: arrays[f][indices] for f in fields or self.fields}

    def statistics(self) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Mean and standard deviation of each channel, on the 0..1 scale, exact over the images looked at."""
        images, good = self._sample("image")
        channels = self.preprocessing.channels
        counts = np.zeros((channels, 256), np.int64)
        for start in range(0, len(images), IMAGES_AT_ONCE):  # counting takes eight bytes for each value
            block = images[start : start + IMAGES_AT_ONCE][good[start : start + IMAGES_AT_ONCE]]
            counts += [np.bincount(block[..., c].reshape(-1), minlength=256) for c in range(channels)]
        levels, shares = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
        mean = np.array([share @ levels for share in shares])
        return mean, np.array([np.sqrt(share @ (levels - m) ** 2) for share, m in zip(shares, mean, strict=True)])

    def class_frequencies(self, k: int) -> Float[np.ndarray, " {k}"]:
        """Of each class its share of the pixels, void ones apart, of the images that show it; 0 where none does.

        Over the images looked at, as in `statistics`.
        """
        masks, good = self._sample("mask")
        of_class, of_images = np.zeros(k), np.zeros(k)
        for mask in masks[good]:
            counts = np.bincount(mask[mask < k], minlength=k)
            of_class += counts
            of_images += np.where(counts, counts.sum(), 0)
        return of_class / np.maximum(of_images, 1)

    def class_shares(self, k: int) -> Float[np.ndarray, " {k}"]:
        """Of each class its share of the images, over the images looked at, as in `statistics`."""
        labels, good = self._sample("label")
        return np.bincount(labels[good], minlength=k)[:k] / max(int(good.sum()), 1)

    def _sample(self, name: str) -> tuple[np.ndarray, Bool[np.ndarray, " n"]]:
        """A field of all examples, where they are loaded, else of some, evenly spaced; and which of them are good."""
        if name in self.arrays and self.good is not None:
            return self.arrays[name], self.good
        spaced = np.unique(np.linspace(0, len(self) - 1, STATISTICS_IMAGES).astype(int))
        arrays, good = self._decode(spaced, [name])
        return arrays[name], good

    def _decode(
        self,
        indices: Int[np.ndarray, " n"],
        fields: Sequence[str],
        parallel: bool = True,
        crops: Sequence[RandomCrop] = (),
    ) -> tuple[Arrays, Bool[np.ndarray, " n"]]:
        steps: Sequence[Preprocessing | RandomCrop] = crops or [self.preprocessing] * len(indices)
        spec = self.spec(len(indices), fields, crops[0] if crops else None)
        arrays = {f: np.full(x.shape, decoding.VOID if f == "mask" else 0, x.dtype) for f, x in spec.items()}
        good = np.ones(len(indices), bool)

        def decode(row: int) -> None:
            try:
                example = self.source.read(int(indices[row]))
                if "label" in arrays:
                    arrays["label"][row] = example["label"]
                for name, values in _pixels(example, steps[row], arrays.keys()).items():
                    arrays[name][row] = values
            except Exception as error:  # whatever a damaged file makes its reader raise
                if isinstance(error, MemoryError) or getattr(error, "errno", None) in OF_THE_MACHINE:
                    place = self.source.describe(int(indices[row]))
                    raise UserError(f"cannot read {place} now: {error}; the image itself may be whole") from error
                good[row] = False
                self._count_bad(int(indices[row]), error)

        rows = range(len(indices))
        with ThreadPoolExecutor(self.threads) if parallel else nullcontext() as pool:
            list(pool.map(decode, rows) if pool else map(decode, rows))
        return arrays, good

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


def _pixels(example: Example, step: Preprocessing | RandomCrop, fields: Collection[str]) -> Arrays:
    """The example's image and mask, as far as they are among the `fields`, brought to their size."""
    pixels: Arrays = {}
    if "image" in fields:
        pixels["image"] = step(example["image"])
    if "mask" in fields:
        image, mask = example["image"], decoding.decode_mask(example["mask"])
        given = image.shape if isinstance(image, np.ndarray) else decoding.header_shape(image)
        if mask.shape != given[:2]:
            raise decoding.BrokenImage(f"a mask of {mask.shape} pixels (h, w) for an image of {given[:2]}")
        pixels["mask"] = step.mask(mask)
    return pixels
