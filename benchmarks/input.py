"""How fast images leave the host: our loader against a PyTorch DataLoader with the same work on the same cores.

    python -m benchmarks.input --data imagenette/160px-v2 --image-size 160

Both read the same records from disk, in a random order; both give batches uint8 [n h w c]. The DataLoader decodes with
Pillow, as torchvision does. `crop`: the image is resized until its shorter side fits, and its centre taken: what our
host does in training, where random crop and flip are the device's work; `crop, our decoder`: by the very code of ours.
`train`: the DataLoader crops at random, resizes and flips on the host, as PyTorch's recipes do. The loader's rates:
streamed; from the host's memory; as indices, with the images on the device.
"""

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from rich.console import Console

from benchmarks import device, machine
from benchmarks.throughput import list_of
from vit_jax import command, data, memory, sharding
from vit_jax.command import UserError
from vit_jax.data import Loader, Split

OURS = {"feed, streamed": "disk", "feed, in host memory": "memory", "feed, on the device": "memory"}
PEERS = ("torch, crop", "torch, crop, our decoder", "torch, train")
AREA, LOG_ASPECT = (0.08, 1.0), np.log((3 / 4, 4 / 3))
SEED, MANY_STEPS = 0, 10**9
Clock = Callable[[float], tuple[int, float]]  # seconds to run for -> images, seconds


class TorchImages:
    """A map-style data set for a DataLoader: a split's records, decoded and cropped one by one, as the peer does."""

    def __init__(self, split: Split, peer: str) -> None:
        self.source, self.size = split.source, split.preprocessing.size
        self.look = {PEERS[0]: self.centre, PEERS[1]: split.preprocessing, PEERS[2]: self.random_crop}[peer]
        self.rng: np.random.Generator | None = None  # each worker's own

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example: Any = self.source.read(index)
        return self.look(example["image"]), example["label"]

    def centre(self, encoded: bytes) -> UInt8[np.ndarray, "h w c"]:
        """Resized until it covers the size, the centre taken."""
        with Image.open(io.BytesIO(encoded)) as image:
            fitted = ImageOps.fit(image.convert("RGB"), self.size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(fitted)

    def random_crop(self, encoded: bytes) -> UInt8[np.ndarray, "h w c"]:
        """A random resized crop, as torchvision draws it, and a flip."""
        self.rng = rng = self.rng or np.random.default_rng()
        with Image.open(io.BytesIO(encoded)) as image:
            area, aspect = rng.uniform(*AREA) * image.height * image.width, np.exp(rng.uniform(*LOG_ASPECT))
            w, h = min(image.width, round((area * aspect) ** 0.5)), min(image.height, round((area / aspect) ** 0.5))
            left, top = rng.integers(0, image.width - w + 1), rng.integers(0, image.height - h + 1)
            box = (left, top, left + w, top + h)
            resized = image.convert("RGB").resize(self.size[::-1], Image.Resampling.BILINEAR, box)
        flipped = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else resized
        return np.asarray(flipped)


def collate(rows: Sequence[tuple[np.ndarray, int]]) -> tuple[Any, Any]:
    """A batch as tensors."""
    import torch

    return torch.from_numpy(np.stack([image for image, _ in rows])), torch.tensor([label for _, label in rows])


def torch_batches(split: Split, peer: str, batch_size: int, workers: int) -> Iterator[Any]:
    """Shuffled batches without end."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        TorchImages(split, peer),  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
        collate_fn=collate,
    )
    while True:
        yield from loader


def clock(batches: Iterator[Any], batch_size: int) -> Clock:
    """Counts the images of an iterator; the first batch, with which workers start, does not count."""
    next(batches)

    def run(seconds: float) -> tuple[int, float]:
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < seconds:
            next(batches)
            count += batch_size
        return count, time.perf_counter() - began

    return run


def our_batches(flags: Any, splits: Mapping[str, Split]) -> dict[str, Iterator[Any]]:
    """The loader's ways, over one split that streams and one that is in memory."""
    mesh = sharding.make_mesh(sharding.Settings())
    loaders = {
        name: Loader(splits[kept], mesh, on_device=name == "feed, on the device", threads=flags.threads)
        for name, kept in OURS.items()
    }
    return {name: loader.train(SEED, flags.batch_size, 0, MANY_STEPS) for name, loader in loaders.items()}


def parse(argv: Sequence[str]) -> Any:
    parser = command.Parser(prog="python -m benchmarks.input", description="Measures images per second of the input.")
    parser.add_argument(
        "--data", default="imagenette/160px-v2", help="a data set, as `data.name` (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=max(4, machine.cores()), help="of ours")
    parser.add_argument("--workers", type=int, default=machine.cores(), help="processes of the DataLoader")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help="torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds of each contender's turn (default: 5)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    parser.add_data_dir()
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command reads no configuration; leave it out")
    for name in ("image_size", "batch_size", "threads", "rounds"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(flags, name)} is not positive")
    if flags.workers < 0 or flags.turn <= 0:
        raise UserError(f"--workers {flags.workers} is negative, or --turn {flags.turn} not positive")
    for peer in flags.peer:
        list_of(peer, "--peer", ("torch",))
    return flags


def measure(flags: Any, settings: data.Settings) -> list[dict[str, Any]]:
    """A row for each way; in each round each way has a turn."""
    opened = data.open_data(settings)
    split = opened.split("train")
    ways = our_batches(flags, {"disk": split, "memory": opened.split("train").load()})
    for name in PEERS if flags.peer else ():
        ways[name] = torch_batches(split, name, flags.batch_size, flags.workers)
    # In turns: what reads ahead stops when its buffers are full, and these are emptied before its turn.
    clocks = {name: clock(batches, flags.batch_size) for name, batches in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(flags.rounds):
        for name, run in clocks.items():
            drain(run)
            count, seconds = run(flags.turn)
            rates[name].append(count / seconds)
    about = {"data": flags.data, "image_size": flags.image_size, "batch_size": flags.batch_size}
    about |= {"threads": flags.threads, "workers": flags.workers, "images": len(split)}
    return [
        {**about, "contender": name, "images_per_second": statistics.median(found), "rounds": found}
        for name, found in rates.items()
    ]


def drain(run: Clock) -> None:
    """Takes what was read ahead while others had their turn."""
    run(1.0)


def main(argv: Sequence[str]) -> int:
    flags = parse(argv)
    memory.keep_freed()  # as our commands do; a DataLoader's workers are processes of their own
    settings = data.Settings(
        name=flags.data,
        data_dir=flags.data_dir or os.environ.get("TFDS_DATA_DIR", ""),
        image_size=(flags.image_size,),
        validation="none",
        channels=3,
        threads=flags.threads,
    )
    rows, console = measure(flags, settings), Console(highlight=False)
    results = machine.Results("input", flags.out, **device.describe())
    for row in rows:
        results.add(row)
        console.print(f"{row['contender']}: {row['images_per_second']:,.0f} images/s", soft_wrap=True)
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
