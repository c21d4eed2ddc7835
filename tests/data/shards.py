"""WebDataset shards for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

RNG_SEED = 0


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng((RNG_SEED, number)).integers(0, 256, (8, 6, 3), np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def example(key: str, number: int, label: str | None) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(number)), *([] if label is None else [(f"{key}.cls", label.encode())])]


def write_all(root: Path, sizes: Mapping[str, Sequence[int]], classes: int = 3, labelled: bool = True) -> Path:
    """Shards SPLIT-000.tar ... with so many examples each; image and class of an example are those of its number."""
    number = 0
    for split, counts in sizes.items():
        for shard, count in enumerate(counts):
            members = []
            for _ in range(count):
                members += example(f"{number:05d}", number, str(number % classes) if labelled else None)
                number += 1
            write(root / f"{split}-{shard:03d}.tar", members)
    return root
