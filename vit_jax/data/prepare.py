"""The original archives of MNIST, Fashion-MNIST and CIFAR as TFDS data sets in ArrayRecord files, without TensorFlow.

    python -m vit_jax.data.prepare cifar100 [--data_dir D] [--source URL_OR_FOLDER]

Names, versions, features, addresses and checksums are TFDS's own (read from its builders), so that `tfds.data_source`
and `tfds.builder` find the result as if TFDS had prepared it; even the order of the records is the same.
"""

import gzip
import hashlib
import io
import json
import math
import re
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit_jax import command, download
from vit_jax.command import UserError

PREPARABLE: tuple[str, ...] = ("mnist", "fashion_mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class _Split:
    images: UInt8[np.ndarray, "n h w c"]
    labels: Mapping[str, UInt8[np.ndarray, " n"]]  # by feature


@dataclass(frozen=True)
class _Raw:
    """What the archives of one data set hold."""

    splits: Mapping[str, _Split]
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


def prepare(name: str, data_dir: Path, source: str = "", *, checksum: bool = True) -> Path:
    """Fetches and converts the data set `name` and returns its folder, DATA_DIR/NAME/VERSION.

    Does nothing where that exists. Archives stay in DATA_DIR/downloads/NAME; the folder appears whole or not at all.

    Args:
        source: another address or a local folder that holds the archives under their original names.
        checksum: whether the archives must be the published ones; False allows others in the same format.

    Raises:
        UserError: another name, archives that cannot be had, are not the published ones or are damaged, no room.
    """
    data_dir = Path(data_dir).expanduser()
    _require_preparable(name, data_dir)
    folder, downloads = _folder(name, data_dir), data_dir / "downloads" / name
    if _is_prepared(folder):
        return folder
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with download.alone(downloads):
            if not _is_prepared(folder):  # another process may have prepared it meanwhile
                archives = _archives(name, downloads, source, checksum)
                _convert(name, _read(name, archives), downloads / "unfinished", folder)
    except OSError as error:
        raise UserError(f"cannot prepare {folder}: {error}; make room or give another --data_dir") from error
    return folder


def tf_command(name: str, data_dir: Path) -> str:
    """The shell command that prepares any TFDS data set with the help of TensorFlow, as ArrayRecord."""
    where = f"{name!r}, data_dir={str(data_dir)!r}, file_format='array_record'"
    code = f"import tensorflow_datasets as tfds; tfds.builder({where}).download_and_prepare()"
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f'pip install "vit_jax[tf]" && python -c {quoted}'


def how_to_prepare(name: str, data_dir: Path) -> str:
    """What to do for the data set `name`, as the end of an error's message."""
    if name in PREPARABLE:
        return f"to prepare it: python -m vit_jax.data.prepare {name} --data_dir {shlex.quote(str(data_dir))}"
    if _is_in_tfds(name):
        return f"to prepare it: {tf_command(name, data_dir)}"
    return (
        "TFDS has no data set of that name; name a folder of images, one sub-folder per class, as data.name, "
        f"or prepare a TFDS builder of your own in {data_dir} with file_format='array_record'"
    )


def main(argv: Sequence[str]) -> int:
    """Prepares the data sets named in `argv`, one after another."""
    parser = command.Parser(
        prog="python -m vit_jax.data.prepare", description="Prepares data sets, without TensorFlow."
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help=", ".join(PREPARABLE))
    parser.add_data_dir()
    parser.add_argument("--source", default="", help="address or folder of the original archives (default: published)")
    parser.add_argument("--no_checksum", action="store_true", help="accept archives other than the published ones")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]} was given, but preparing takes no --config flags; leave it out")
    data_dir = command.data_dir(flags.data_dir)
    for name in flags.names:
        _require_preparable(name, data_dir)
    for name in flags.names:
        already = "already " if _is_prepared(_folder(name, data_dir)) else ""
        folder = prepare(name, data_dir, flags.source, checksum=not flags.no_checksum)
        print(f"{name}: {already}prepared in {folder}", flush=True)
    return command.DONE


def _require_preparable(name: str, data_dir: Path) -> None:
    if name not in PREPARABLE:
        raise UserError(
            f"{name!r} is none of {', '.join(PREPARABLE)}, which need no TensorFlow; {how_to_prepare(name, data_dir)}"
        )


def _is_in_tfds(name: str) -> bool:
    """Whether the installed TFDS has a builder for NAME[/CONFIG][:VERSION]."""
    import tensorflow_datasets as tfds

    return re.split("[/:]", name)[0] in tfds.list_builders(with_community_datasets=False)


def _builder_class(name: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_cls(name)


def _folder(name: str, data_dir: Path) -> Path:
    return data_dir / name / str(_builder_class(name).VERSION)


def _is_prepared(folder: Path) -> bool:
    """Whether TFDS can read `folder` without TF. Raises UserError where something else lies there."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no readable data set ({error}); remove it and prepare again") from error
    if "array_record" not in formats:
        raise UserError(f"{folder} holds {formats[0]} files, expected array_record; move it or give another --data_dir")
    return True


def _archives(name: str, downloads: Path, source: str, checksum: bool) -> dict[str, Path]:
    """The archives by their original names: fetched, or as they lie in a local folder."""
    found = {}
    if not checksum:  # never to be taken for the published ones, nor for those of another source
        downloads = downloads / f"unchecked-{hashlib.sha1(source.encode()).hexdigest()[:8]}"
    for url, info in _builder_class(name).url_infos.items():
        file = url.rsplit("/", 1)[1]
        sha256 = info.checksum if checksum else ""
        if source and "://" not in source:
            found[file] = _local(Path(source).expanduser(), name, file, sha256)
        else:
            address = f"{source.rstrip('/')}/{file}" if source else url
            found[file] = download.fetch(address, downloads / file, sha256)
    return found


def _local(folder: Path, name: str, file: str, sha256: str) -> Path:
    """The archive `file` in `folder` or, as DATA_DIR/downloads has it, in FOLDER/NAME."""
    path = next((path for path in (folder / name / file, folder / file) if path.is_file()), None)
    if path is None:
        raise UserError(f"--source {folder} holds no {file}; expected the original archives under their own names")
    if not download.matches(path, sha256):
        raise UserError(f"{path} has not the published sha256 {sha256}; fetch it again, or allow it with --no_checksum")
    return path


def _read(name: str, archives: Mapping[str, Path]) -> _Raw:
    """The images and labels in `archives`. Raises UserError for damaged ones."""
    if name in _CIFARS:
        [path] = archives.values()
        return _read_cifar(path, _CIFARS[name])
    return _read_mnist(archives)


def _read_mnist(archives: Mapping[str, Path]) -> _Raw:
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(archives[f"{prefix}-images-idx3-ubyte.gz"], (28, 28))
        path = archives[f"{prefix}-labels-idx1-ubyte.gz"]
        labels = _read_idx(path, ())
        if len(images) != len(labels) or labels.max() >= 10:
            raise _damaged(path, f"{len(labels)} labels up to {labels.max()}, expected {len(images)} up to 9")
        splits[split] = _Split(images[..., None], {"label": labels})
    return _Raw(splits, {})


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
        raise _damaged(
            path, f"{len(content) - start} bytes of {count} x {sizes}, expected {expected} of n x {list(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)


def _read_cifar(path: Path, cifar: _Cifar) -> _Raw:
    names_files = {file for file, _ in cifar.names.values()}
    files = _members(path, names_files.union(*cifar.splits.values()), cifar.folder)
    names = {}
    for label, (file, classes) in cifar.names.items():
        names[label] = [name for name in files[file].decode(errors="replace").splitlines() if name]
        if len(names[label]) != classes:
            raise _damaged(path, f"{len(names[label])} names in {file}, expected {classes}")
    splits = {split: _cifar_split(path, [files[m] for m in members], names) for split, members in cifar.splits.items()}
    return _Raw(splits, names)


def _cifar_split(path: Path, contents: Sequence[bytes], names: Mapping[str, list[str]]) -> _Split:
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
    return _Split(records[:, len(names) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _members(path: Path, wanted: set[str], folder: str) -> dict[str, bytes]:
    """The wanted files in `folder` of a .tar.gz archive, read in one pass."""
    names = {PurePosixPath(folder, name): name for name in wanted}
    files = {}
    with _damage(path), gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name, file = names.get(PurePosixPath(member.name)), archive.extractfile(member)
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


def _convert(name: str, raw: _Raw, unfinished: Path, folder: Path) -> None:
    """Writes `raw` as ArrayRecord files under `unfinished`, checks their counts and renames the whole to `folder`."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        with download.progress(f"converting {name}", "images") as show, redirect_stdout(io.StringIO()):
            builder = _builder_class(name)(data_dir=unfinished, file_format="array_record")
            count = _counter(show, sum(len(content.images) for content in raw.splits.values()))
            for label, names in raw.names.items():
                builder.info.features[label].names = names
            # In place of the method that downloads, extracts and reads with TensorFlow.
            builder._split_generators = lambda dl_manager: {
                split: _examples(split, content, "id" in builder.info.features, count)
                for split, content in raw.splits.items()
            }
            builder.download_and_prepare()
        _check_counts(builder, raw)
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(builder.data_dir).rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _counter(show: download.Show, total: int) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        show(done, total)

    return count


def _examples(
    split: str, content: _Split, ids: bool, count: Callable[[], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The key (TFDS orders the files by its hash) and the features of each example; `ids`: whether `id` is one."""
    for index, image in enumerate(content.images):
        example: dict[str, Any] = {"image": _png(image)}
        example |= {label: int(values[index]) for label, values in content.labels.items()}
        if ids:
            example["id"] = f"{split}_{index:05d}"
        yield index, example
        count()


def _png(image: UInt8[np.ndarray, "h w c"]) -> io.BytesIO:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    file.seek(0)
    return file


def _check_counts(builder: Any, raw: _Raw) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    for split, content in raw.splits.items():
        found = sum(ArrayRecordReader(str(path)).num_records() for path in builder.info.splits[split].filepaths)
        if found != len(content.images):
            raise RuntimeError(f"{builder.info.full_name} {split}: wrote {found} of {len(content.images)} records")


if __name__ == "__main__":
    command.run(main)
