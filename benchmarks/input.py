"""How fast images leave the host: our feed against a PyTorch DataLoader with the same work on the same cores.

    python -m benchmarks.input --data imagenette/160px-v2 --image-size 160

Both read the same records from disk, in a random order; both give batches uint8 [n h w c]. The DataLoader decodes with
Pillow, as torchvision does: the image is resized until its shorter side fits, and its centre taken. Our host does the
same in training, where random crop and flip are the device's work. Our rates: streamed; from the host's memory; as
indices, with the images on the device.
"""

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks import machine
from benchmarks.step import load, training_split
from benchmarks.workloads import check_positive, no_overrides
from vit_jax import command
from vit_jax.command import UserError


class TorchImages:
    """A map-style data set for a DataLoader: a split's records, decoded and cropped one by one."""

    def __init__(self, split: Any) -> None:
        self.source, self.size = split.source, split.view.size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        encoded, label = self.source.read(index)
        with Image.open(io.BytesIO(encoded)) as image:
            fitted = ImageOps.fit(image.convert("RGB"), self.size[::-1], Image.Resampling.BILINEAR)
        return np.array(fitted), label


def torch_batches(split: Any, batch_size: int, workers: int) -> Iterator[Any]:
    """Shuffled batches without end; the DataLoader makes tensors of the arrays."""
    from torch.utils.data import DataLoader

    how: Any = {"persistent_workers": True, "multiprocessing_context": "forkserver"} if workers else {}
    images: Any = TorchImages(split)
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, **how)
    while True:
        yield from loader


def rate(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Images/s of an iterator, for so long."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        next(batches)
        count += batch_size
    return count / (time.perf_counter() - began)


def measure(flags: Any, split: Any) -> list[dict[str, Any]]:
    """A row for each way; in each round each way has a turn."""
    ways = load(split, flags.batch_size, flags.threads)
    if flags.peer:
        ways["torch, crop"] = torch_batches(split, flags.batch_size, flags.workers)
    for batches in ways.values():
        next(batches)  # with which workers start
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(flags.rounds):
        for name, batches in ways.items():
            rate(batches, flags.batch_size, 1.0)  # what was read ahead while others had their turn
            rates[name].append(rate(batches, flags.batch_size, flags.turn))
    about = {"data": flags.data, "image_size": flags.image_size, "batch_size": flags.batch_size}
    about |= {"threads": flags.threads, "workers": flags.workers, "images": len(split)}
    return [
        {**about, "contender": name, "images_per_second": statistics.median(found), "rounds": found}
        for name, found in rates.items()
    ]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.input", description="Measures images per second of the input.")
    parser.add_argument("--data", default="imagenette/160px-v2", help="as `data.name` (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=max(4, machine.cores()), help="of ours")
    parser.add_argument("--workers", type=int, default=machine.cores(), help="processes of the DataLoader")
    parser.add_argument("--peer", choices=("torch",), help="beside whose DataLoader")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of each contender's turn (default: 5)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    no_overrides(overrides)
    check_positive(flags, "image_size", "batch_size", "threads", "rounds", "turn")
    if flags.workers < 0:
        raise UserError(f"--workers {flags.workers} is negative; give 0 for none")
    settings = {"name": flags.data, "data_dir": flags.data_dir, "image_size": (flags.image_size,)}
    rows = measure(flags, training_split({**settings, "threads": flags.threads}))
    results = machine.Results("input", flags.out, **machine.device())
    results.add(*rows)
    for row in rows:
        print(f"{row['contender']}: {row['images_per_second']:,.0f} images/s")
    print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
