"""Image files without labels, found and decoded for prediction: as many as there are, a batch at a time."""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vit_jax.command import UserError
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.folder import images_below, told

Decoded = UInt8[np.ndarray, "h w c"]
Batch = tuple[list[int], UInt8[np.ndarray, "n h w c"], dict[int, str]]


def find_images(paths: Sequence[str]) -> list[Path]:
    """The image files that the paths name, each once: files as given, folders searched at any depth, sorted by path.

    In folders hidden files and files that are no image (by extension) are passed over; a file that is named itself is
    taken whatever its name. Raises `UserError` for a path that is not there, and where no image is found.
    """
    found: dict[Path, None] = {}
    passed_over = Counter[str]()
    for given in paths:
        path = Path(os.path.expanduser(given))
        if not os.path.exists(path):  # also one that no file system takes
            raise UserError(f"{given} is not there; expected an image file or a folder of images")
        try:
            inside = sorted(map(Path, images_below(path, passed_over))) if path.is_dir() else [path]
        except OSError as fault:
            raise UserError(f"cannot read the folder {given}: {fault}") from fault
        found.update(dict.fromkeys(inside))
    if passed_over:
        logging.getLogger(__name__).warning("%s: %s", ", ".join(paths), told(passed_over))
    if not found:
        raise UserError(f"no image (.jpg, .png and what else Pillow reads) in {', '.join(paths) or 'no path'}")
    return list(found)


def read_images(
    paths: Sequence[Path | str], preprocessing: Preprocessing, batch_size: int, threads: int, *, draft: bool = False
) -> Iterator[Batch]:
    """Batches of decoded images, in order: their positions in `paths`, uint8 [n h w c], and broken files' reasons.

    Every batch holds `batch_size` images but the last, which may be empty where only broken files are left. A broken
    file is skipped, and reported by its position in the batch that would have held it. At most two batches are decoded
    ahead. `draft`: see `Preprocessing`.
    """

    def decode(path: Path | str) -> Decoded:
        with open(path, "rb") as file:
            return preprocessing(file.read(), draft=draft)

    good: list[int] = []
    images: list[Decoded] = []
    broken: dict[int, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Decoded]] = deque()
        rest = iter(paths)
        try:
            for index in range(len(paths)):
                while len(waiting) < 2 * batch_size and (path := next(rest, None)) is not None:
                    waiting.append(pool.submit(decode, path))
                try:
                    images.append(waiting.popleft().result())
                    good.append(index)
                except Exception as fault:  # whatever a damaged file makes its reader raise
                    broken[index] = str(fault) or type(fault).__name__
                if len(good) == batch_size:
                    yield good, np.stack(images), broken
                    good, images, broken = [], [], {}
            if good or broken:
                yield good, np.stack(images) if images else np.empty((0, *preprocessing.shape), np.uint8), broken
        finally:  # the reader of the batches may have left early
            pool.shutdown(wait=False, cancel_futures=True)
