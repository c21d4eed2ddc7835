"""Tiny archives of random images in the original formats of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

TRAIN, TEST = 23, 7
Content = dict[str, dict[str, np.ndarray]]  # split -> feature -> values
CIFAR100_LABELS = {"coarse_label": 20, "label": 100}


def write(name: str, folder: Path, seed: int = 0, train: int = TRAIN, test: int = TEST) -> Content:
    """Writes the archives of the data set `name` into `folder` and returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = {"cifar10": write_cifar10, "cifar100": write_cifar100}.get(name, write_mnist)
    return writer(folder, seed, train, test)


def write_mnist(folder: Path, seed: int, train: int, test: int) -> Content:
    content = _random(seed, {"train": train, "test": test}, (28, 28, 1), {"label": 10})
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = content[split]["image"], content[split]["label"]
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images[..., 0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return content


def write_idx(path: Path, values: np.ndarray) -> None:
    """Two zero bytes, 8 for uint8, the rank, the sizes as big-endian int32, the values."""
    header = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_cifar10(folder: Path, seed: int, train: int, test: int) -> Content:
    content = _random(seed, {"train": train, "test": test}, (32, 32, 3), {"label": 10})
    records = cifar_records(content["train"], ("label",))
    members = {f"data_batch_{i + 1}.bin": b"".join(part) for i, part in enumerate(_in_five(records))}
    members["test_batch.bin"] = b"".join(cifar_records(content["test"], ("label",)))
    members["batches.meta.txt"] = _names("label", 10)
    write_tar(folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", members)
    return content


def write_cifar100(folder: Path, seed: int, train: int, test: int) -> Content:
    content = _random(seed, {"train": train, "test": test}, (32, 32, 3), CIFAR100_LABELS)
    write_cifar100_content(folder, content)
    return content


def write_cifar100_content(folder: Path, content: Content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    members = {f"{split}.bin": b"".join(cifar_records(content[split], tuple(CIFAR100_LABELS))) for split in content}
    members |= {"coarse_label_names.txt": _names("coarse", 20), "fine_label_names.txt": _names("label", 100)}
    path = folder / "cifar-100-binary.tar.gz"
    write_tar(path, "cifar-100-binary", members)
    return path


def learnable_cifar100(classes: int, train: int, test: int) -> Content:
    """Images of the first classes, in turn; each has four colours of its own, under noise of half their strength."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (classes, 2, 2, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    content = {}
    for split, count in {"train": train, "test": test}.items():
        labels = (np.arange(count) % classes).astype(np.uint8)
        noise = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        image = ((2 * colours[labels].astype(np.uint16) + noise) // 3).astype(np.uint8)
        content[split] = {"image": image, "coarse_label": labels // 5, "label": labels}
    return content


def cifar_records(split: dict[str, np.ndarray], labels: tuple[str, ...]) -> list[bytes]:
    """Each record: one byte per label, then 1024 red, 1024 green and 1024 blue values."""
    records = []
    for index, image in enumerate(split["image"]):
        planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
        records.append(bytes(int(split[label][index]) for label in labels) + planes)
    return records


def write_tar(path: Path, folder: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _random(seed: int, counts: dict[str, int], shape: tuple[int, ...], labels: dict[str, int]) -> Content:
    rng = np.random.default_rng(seed)
    return {
        split: {"image": rng.integers(0, 256, (n, *shape), np.uint8)}
        | {label: rng.integers(0, classes, n, np.uint8) for label, classes in labels.items()}
        for split, n in counts.items()
    }


def _in_five(records: list[bytes]) -> list[list[bytes]]:
    size = len(records) // 5 + 1
    return [records[i * size : (i + 1) * size] for i in range(5)]


def _names(kind: str, count: int) -> bytes:
    """As the real archives have them, an empty line at the end included."""
    return "".join(f"{kind}_{i}\n" for i in range(count)).encode() + b"\n"
