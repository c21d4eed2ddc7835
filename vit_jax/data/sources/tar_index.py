"""Where each example lies in a tar file, found once and kept, so that its images can be read at random.

The file may lie wherever fsspec reads: on a disk, https://, gs:// ...
"""

import errno
import hashlib
import json
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Int

from vit_jax.command import UserError
from vit_jax.data.sources.folder import is_image
from vit_jax.download import cache_dir
from vit_jax.files import write_atomically

LABEL_FILES = ("cls", "cls.txt", "json")  # the class as text, or a JSON object's entry "label"
ATTEMPTS, PAUSE_SECONDS = 3, 1.0  # to read an image of a remote file
PACKAGES = {
    **dict.fromkeys(("http", "https"), "'vit_jax[remote]'"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "s3": "s3fs",
}
BLOCK = 512  # bytes; a tar file consists of such


@dataclass(frozen=True)
class Index:
    """The examples of one tar file, in its order."""

    address: str
    keys: np.ndarray  # text [n]: the members' common name
    start: Int[np.ndarray, " n"]  # of the image's bytes in the file
    size: Int[np.ndarray, " n"]
    labels: np.ndarray  # text [n]; "" where there is none

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, row: int) -> bytes:
        """The bytes of an image; raises `OSError` where the file cannot be read now."""
        system, path = file_system(self.address)
        start, size = int(self.start[row]), int(self.size[row])
        for attempt in range(ATTEMPTS):
            try:
                content: bytes = system.cat_file(path, start=start, end=start + size)
                break
            except Exception as fault:  # each file system has errors of its own
                if "://" not in self.address or attempt == ATTEMPTS - 1:
                    raise OSError(errno.EIO, f"{type(fault).__name__}: {fault}") from fault
                time.sleep(PAUSE_SECONDS * 2**attempt)
        if len(content) != size:
            raise OSError(errno.EIO, f"{len(content)} bytes came instead of {size}: the server gives no parts of files")
        return content


@lru_cache
def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it; raises `UserError`."""
    import fsspec  # with etils[epath]

    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        scheme = address.partition("://")[0]
        install = f"pip install {PACKAGES[scheme]}" if scheme in PACKAGES else str(error)
        raise UserError(f"reading {address} needs another package: {install}") from error
    except Exception as error:  # unknown schemes; credentials are looked for here, by some
        raise UserError(f"cannot open {address} ({error})") from error


def index_of(address: str) -> Index:
    """The index of a tar file: the kept one, if the file is as it was, else a new one, which is kept.

    To make it the headers of all members are read, of a remote file nearly everything. Raises `UserError` for a file
    that is not there, damaged or compressed, and for an example without an image.
    """
    system, path = file_system(address)
    try:
        version = repr((address, sorted(system.info(path).items())))
    except FileNotFoundError as error:
        raise UserError(f"shard {address} is not there; add it, or leave it out of the data set's shards") from error
    except Exception as error:
        raise UserError(f"cannot read shard {address} ({type(error).__name__}: {error})") from error
    kept = cache_dir() / "shards" / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}.npz"
    with suppress(Exception), np.load(kept) as arrays:  # not there, or damaged
        return Index(address, **arrays)
    found = _read(address, system, path)
    with suppress(OSError):  # where nothing can be written
        kept.parent.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        np.savez(buffer, keys=found.keys, start=found.start, size=found.size, labels=found.labels)
        write_atomically(kept, buffer.getvalue())
    return found


@dataclass
class _Example:
    image: tuple[int, int] | None = None  # start and size
    label: str = ""
    endings: list[str] = field(default_factory=list)


def _read(address: str, system: Any, path: str) -> Index:
    examples: dict[str, _Example] = {}
    try:
        with system.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if member.isfile() and stem:  # a name that begins with a dot is hidden
                    example = examples.setdefault(f"{folder}/{stem}".lstrip("./"), _Example())
                    _add(example, ending.lower(), member, archive)
            file.seek(archive.offset)
            complete = file.read(BLOCK) == bytes(BLOCK)
    except UserError as error:
        raise UserError(f"shard {address}: {error}") from error
    except Exception as error:  # tarfile's, and those of each file system
        raise UserError(
            f"shard {address} is damaged, compressed, or no tar file ({type(error).__name__}: {error}); make or fetch "
            "it anew, as a plain .tar"
        ) from error
    if not complete:
        raise UserError(f"shard {address} ends without the mark of a tar file's end: it is incomplete; fetch it anew")
    for key, example in examples.items():
        if example.image is None:
            raise UserError(
                f"shard {address}: example {key!r} has no image, only {', '.join(example.endings)}; expected "
                f"{key}.jpg, .png or what else Pillow reads"
            )
    places = np.array([example.image for example in examples.values()], np.int64).reshape(-1, 2)
    labels = np.array([example.label for example in examples.values()], str)
    return Index(address, np.array(list(examples), str), places[:, 0], places[:, 1], labels)


def _add(example: _Example, ending: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
    example.endings.append(f".{ending}")
    if is_image(f"x.{ending}") and "." not in ending:
        if example.image is not None:
            raise UserError(f"{member.name!r} is a second image of the same example; leave one of them")
        example.image = member.offset_data, member.size
    elif ending in LABEL_FILES:
        file = archive.extractfile(member)
        assert file is not None
        text = file.read().decode()
        found = _label_of(member.name, text) if ending == "json" else text
        example.label = str(found).strip() or example.label


def _label_of(name: str, text: str) -> str | int:
    """What a JSON object says of the class; "" for nothing, or null."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name!r} is no JSON ({error}); mend it") from error
    if not isinstance(found, dict):
        raise UserError(f'{name!r} is no JSON object; expected an entry "label" in one')
    label = found.get("label")
    return "" if label is None else label
