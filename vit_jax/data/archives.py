"""Reads the original archives of MNIST, Fashion-MNIST and CIFAR; damaged ones raise `UserError`."""

import gzip
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from vit_jax.command import UserError

Arrays = Mapping[str, UInt8[np.ndarray, "n ..."]]  # "image" [n h w c], and labels [n] by feature


@dataclass(frozen=True)
class Contents:
    """What the archives of one data set hold."""

    splits: Mapping[str, Arrays]
    names: Mapping[str, list[str]]  # of the classes, by feature, where the archive says them


@dataclass(frozen=True)
class _Cifar:
    """The members of one CIFAR archive; a record is its label bytes and 3 x 32 x 32 pixels."""

    folder: str
    splits: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, int]]  # file with a label's names, and their number, in the order of the label bytes


_CIFARS = {
    "cifar10": _Cifar(
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        {"label": ("batches.meta.txt", 10)},
    ),
    "cifar100": _Cifar(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"coarse_label": ("coarse_label_names.txt", 20), "label": ("fine_label_names.txt", 100)},
    ),
}


def read(name: str, archives: Mapping[str, Path]) -> Contents:
    """The images and labels in `archives`. Raises UserError for damaged ones."""
    if name in _CIFARS:
        [path] = archives.values()
        return _read_cifar(path, _CIFARS[name])
    return _read_mnist(archives)


def _read_mnist(archives: Mapping[str, Path]) -> Contents:
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(archives[f"{prefix}-images-idx3-ubyte.gz"], (28, 28))
        path = archives[f"{prefix}-labels-idx1-ubyte.gz"]
        labels = _read_idx(path, ())
        if len(images) != len(labels) or labels.max() >= 10:
            raise _damaged(path, f"{len(labels)} labels up to {labels.max()}, expected {len(images)} up to 9")
        splits[split] = {"image": images[..., None], "label": labels}
    return Contents(splits, {})


def _read_idx(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n ..."]:
    """The array `n *shape` in an idx file: two zero bytes, 8 (uint8), the rank, the sizes (big-endian), the values."""
    with _damage(path), gzip.open(path) as file:
        content = file.read()
    magic, start = bytes([0, 0, 8, 1 + len(shape)]), 4 * (2 + len(shape))
    if len(content) < start or content[:4] != magic:
        raise _damaged(path, f"begins with {content[:4].hex()}, expected {magic.hex()}")
    count, *sizes = np.frombuffer(content[4:start], ">u4").tolist()
    expected = count * math.prod(shape)
    if tuple(sizes) != shape or count == 0 or len(content) - start != expected:
        found = f"{len(content) - start} bytes of {count} x {sizes}"
        raise _damaged(path, f"{found}, expected {expected} of n x {list(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)


def _read_cifar(path: Path, cifar: _Cifar) -> Contents:
    names_files = {file for file, _ in cifar.names.values()}
    files = _members(path, names_files.union(*cifar.splits.values()), cifar.folder)
    names = {}
    for label, (file, classes) in cifar.names.items():
        names[label] = [name for name in files[file].decode(errors="replace").splitlines() if name]
        if len(names[label]) != classes:
            raise _damaged(path, f"{len(names[label])} names in {file}, expected {classes}")
    splits = {split: _cifar_split(path, [files[m] for m in members], names) for split, members in cifar.splits.items()}
    return Contents(splits, names)


def _cifar_split(path: Path, contents: Sequence[bytes], names: Mapping[str, list[str]]) -> Arrays:
    """The records in `contents`: one byte per label, then the pixels, channel by channel."""
    size = len(names) + 3 * 32 * 32
    for content in contents:
        if len(content) % size or not content:
            raise _damaged(path, f"a member of {len(content)} bytes, expected a multiple of {size}")
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, size)
    labels = {label: records[:, i] for i, label in enumerate(names)}
    for label, values in labels.items():
        if values.max() >= len(names[label]):
            raise _damaged(path, f"{label} {values.max()}, expected less than {len(names[label])}")
    return {"image": records[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), **labels}


def _members(path: Path, wanted: set[str], folder: str) -> dict[str, bytes]:
    """The wanted files in `folder` of a .tar.gz archive, read in one pass."""
    names = {PurePosixPath(folder, name): name for name in wanted}
    files = {}
    with _damage(path), gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = names.get(PurePosixPath(member.name))
            file = archive.extractfile(member) if name and member.isfile() else None  # no link is followed
            if name and file:
                files[name] = file.read()
        while stream.read(1 << 20):  # gzip checks its checksum at the end
            pass
    if missing := sorted(wanted - files.keys()):
        raise _damaged(path, f"holds no {folder}/{missing[0]}")
    return files


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, tarfile.TarError, zlib.error, OSError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or another file ({why}); remove it and prepare again")
