"""The original archives of MNIST, Fashion-MNIST and CIFAR as TFDS data sets in ArrayRecord files, without TensorFlow.

    python -m vit_jax.data.prepare cifar100 [--data_dir D] [--source URL_OR_FOLDER]

Names, versions, features, addresses and checksums are TFDS's own (read from its builders), so that `tfds.data_source`
and `tfds.builder` find the result as if TFDS had prepared it; even the order of the records is the same.
"""

import hashlib
import io
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vit_jax import command, download
from vit_jax.command import UserError
from vit_jax.data import archives

PREPARABLE: tuple[str, ...] = ("mnist", "fashion_mnist", "cifar10", "cifar100")


def prepare(name: str, data_dir: Path, source: str = "", *, checksum: bool = True) -> Path:
    """Fetches and converts the data set `name` and returns its folder, DATA_DIR/NAME/VERSION.

    Does nothing where that exists. Archives stay in DATA_DIR/downloads/NAME; the folder appears whole or not at all.
    `source`: another address or a local folder that holds the archives under their original names. `checksum`: they
    must be the published ones. Raises `UserError` for another name, missing or damaged archives, and no room.
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
                files = _archives(name, downloads, source, checksum)
                _convert(name, archives.read(name, files), downloads / "unfinished", folder)
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
    import tensorflow_datasets as tfds

    if re.split("[/:]", name)[0] in tfds.list_builders(with_community_datasets=False):
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
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
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


def _convert(name: str, raw: archives.Contents, unfinished: Path, folder: Path) -> None:
    """Writes `raw` as ArrayRecord files under `unfinished`, checks their counts and renames the whole to `folder`."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        with download.progress(f"converting {name}", "images") as show, redirect_stdout(io.StringIO()):
            builder = _builder_class(name)(data_dir=unfinished, file_format="array_record")
            done, total = itertools.count(1), sum(len(content["image"]) for content in raw.splits.values())
            for label, names in raw.names.items():
                builder.info.features[label].names = names
            # In place of the method that downloads, extracts and reads with TensorFlow.
            builder._split_generators = lambda dl_manager: {
                split: _examples(split, content, "id" in builder.info.features, lambda: show(next(done), total))
                for split, content in raw.splits.items()
            }
            builder.download_and_prepare()
        _check_counts(builder, raw)
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(builder.data_dir).rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _examples(
    split: str, content: archives.Arrays, ids: bool, count: Callable[[], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The key (TFDS orders the files by its hash) and the features of each example; `ids`: whether `id` is one."""
    for index, image in enumerate(content["image"]):
        example: dict[str, Any] = {label: int(content[label][index]) for label in content if label != "image"}
        example["image"] = _png(image)
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


def _check_counts(builder: Any, raw: archives.Contents) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    for split, content in raw.splits.items():
        found = sum(ArrayRecordReader(str(path)).num_records() for path in builder.info.splits[split].filepaths)
        if found != len(content["image"]):
            raise RuntimeError(f"{builder.info.full_name} {split}: wrote {found} of {len(content['image'])} records")


if __name__ == "__main__":
    command.run(main)
