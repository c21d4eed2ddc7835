"""Files of arrays: .npz, .safetensors, sharded .safetensors. Shapes are known before any array is read.

What a file is, its content says, not its name.
"""

import fnmatch
import importlib
import json
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.command import UserError

SIDE_FILES = ("config.json", "preprocessor_config.json")
INDEX = "*.safetensors.index.json"
WEIGHTS = (INDEX, "*.safetensors", "*.npz")  # in a folder, the first that is there
# The whole file before its parts, as `transformers` reads them: an index may have been left behind.
PREFERRED = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")

PICKLED = (
    "is a pickle (PyTorch's .bin, .pth), which may run any code when it is read; "
    "convert it to .safetensors, or look for one where it came from"
)
# How files begin that are taken for weights by mistake.
MISTAKEN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file that it stands for; run `git lfs pull` there"),
    (b"<", "is a web page (an error of the server's?), not weights; delete it and fetch it again"),
    (b"\x80", PICKLED),
    (b"\x89HDF", "is HDF5 (Keras); convert it to .safetensors or .npz"),
    (b"\x93NUMPY", "is a single array (.npy); save all arrays by name with numpy.savez"),
)
# What zipfile, its decompressors and numpy raise for a damaged file. RuntimeError: encrypted; NotImplementedError: an
# unknown compression; TokenError, SyntaxError: the header of an array is no Python literal.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError),
    *(RuntimeError, NotImplementedError, OSError, tokenize.TokenError, SyntaxError),
)


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is asked for; float16 and bfloat16 come as float32, others as stored."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        self.shapes = shapes
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return _widened(self._read(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_arrays(path: Path) -> Arrays:
    """The arrays of a .npz or .safetensors file, of a sharded file's index, or of a folder that holds one of them.

    Raises:
        UserError: missing, truncated, damaged or no such file (what it is instead is said), or a folder with several.
    """
    path = Path(path)
    path = _in_folder(path) if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if fnmatch.fnmatch(path.name, INDEX):
        return _open_sharded(path)
    if start.startswith(b"PK"):
        return _open_npz(path)
    if start[8:9] == b"{":  # after the length of the header, which is JSON
        return _open_safetensors(path)
    raise UserError(f"{path} {_instead(start)}")


def read_about(path: Path) -> dict[str, dict[str, Any]]:
    """What `config.json` and `preprocessor_config.json` beside the weights (or in their folder) hold, by file name."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return {name: _read_json(folder / name) for name in SIDE_FILES if (folder / name).is_file()}


def need(package: str, what: str) -> ModuleType:
    """The module of a package of the extra `hf`; where it is missing, a `UserError` tells how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"reading {what} needs the package {package}: pip install 'vit_jax[hf]'") from error


def _widened(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.dtype("V2"):  # NumPy writes bfloat16 into .npz without its name
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array


def _in_folder(folder: Path) -> Path:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for preferred in PREFERRED:
        if preferred in names:
            return folder / preferred
    for pattern in WEIGHTS:
        found = fnmatch.filter(names, pattern)
        if len(found) > 1:
            raise UserError(f"{folder} holds several files of weights: {', '.join(found[:5])}; give the path of one")
        if found:
            return folder / found[0]
    pickles = [name for name in names for pattern in PICKLES if fnmatch.fnmatch(name, pattern)]
    if pickles:
        raise UserError(f"{folder} holds no .safetensors or .npz: {pickles[0]} {PICKLED}")
    raise UserError(
        f"{folder} holds no weights: expected a .safetensors or .npz file in it; of a run give its whole folder"
    )


def _instead(start: bytes) -> str:
    if not start:
        return "is empty; delete it and fetch it again"
    for begin, meaning in MISTAKEN:
        if start.lstrip().startswith(begin):
            return meaning
    return "is neither .npz nor .safetensors, or only the beginning of one"


def _damaged(path: Path, error: Exception, what: str = "") -> UserError:
    return UserError(f"{path} is truncated or damaged{what} ({error}); delete it and fetch it again")


def _open_npz(path: Path) -> Arrays:
    try:
        archive = zipfile.ZipFile(path)
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        if any(name.endswith("data.pkl") for name in archive.namelist()):
            raise UserError(f"{path} {PICKLED}")
        shapes = {key: _npy_shape(archive, member, path) for key, member in members.items()}
    except UserError:
        raise
    except DAMAGED as error:
        raise _damaged(path, error) from error
    if not shapes:
        raise UserError(f"{path} is a zip archive without arrays (.npy); expected what numpy.savez writes")

    def read(name: str) -> np.ndarray:
        try:
            with archive.open(members[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGED as error:
            raise _damaged(path, error, f" at {name!r}") from error

    return Arrays(shapes, read)


def _npy_shape(archive: zipfile.ZipFile, member: str, path: Path) -> tuple[int, ...]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        begin = file.tell()
    if dtype.hasobject:
        raise UserError(f"{path}: {member!r} holds pickled Python objects, which are not read; save plain arrays")
    size, promised = archive.getinfo(member).file_size, begin + math.prod(shape) * dtype.itemsize
    if size != promised or min(shape, default=0) < 0:  # of too large a shape the memory would not be enough
        raise ValueError(f"{member!r} has {size:,} bytes, and by its header {promised:,}")
    return shape


def _open_safetensors(path: Path) -> Arrays:
    safetensors = need("safetensors", str(path))
    try:
        file = safetensors.safe_open(path, framework="numpy")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from error

    def read(name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (safetensors.SafetensorError, TypeError) as error:
            raise UserError(f"{path}: cannot read {name!r}: {error}") from error

    return Arrays(shapes, read)


def _open_sharded(index: Path) -> Arrays:
    where = _read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index} has no 'weight_map' from names to files; fetch it again")
    shards = {name: _open_shard(index, name) for name in sorted(set(where.values()))}
    lost = [key for key, name in where.items() if key not in shards[name]]
    if lost:
        raise UserError(f"{index.parent / where[lost[0]]} lacks {lost[0]!r}, which {index.name} promises; fetch both")
    return Arrays({key: shards[name].shapes[key] for key, name in where.items()}, lambda key: shards[where[key]][key])


def _open_shard(index: Path, name: str) -> Arrays:
    if Path(name).name != name:
        raise UserError(f"{index} names the file {name!r}; expected one in its own folder")
    if not (index.parent / name).is_file():
        raise UserError(f"{index.parent / name} is missing: {index.name} names it; fetch it into the same folder")
    return open_arrays(index.parent / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}; fetch it again or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again or remove it")
    return content
