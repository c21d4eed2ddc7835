"""A folder of images as a data set: train/CLASS/*.jpg with test/ or val/, or CLASS/*.jpg split automatically.

`layouts` knows the other ways in which well-known data sets lie in folders.
"""

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from vit_jax.command import UserError
from vit_jax.data import decoding
from vit_jax.data.sources import layouts
from vit_jax.data.sources.dataset import Dataset, Images

_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow names these files, but needs help to read them
_HEADERS_READ = 1000
# What lies beside images and is none, without a word.
_SIDE_FILES = (
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".html", ".ini", ".db", ".yaml", ".yml", ".mat", ".npy"),
    *(".py", ".log", ".pdf"),
)
_COMPARED_BYTES = 2**28  # of files, to find copies of training images among those that are tested

Files = dict[str, list[str]]  # class -> its images' paths, relative to the root
Split = tuple[list[str], Int[np.ndarray, " n"]]  # paths and labels, in the order in which they are read


def open_folder(name: str) -> Dataset:
    """The images below the folder `name`, one class per folder, at any depth; class names in sorted order.

    Without train/ and test/ folders a fifth of each class becomes the test split. Which fifth depends on the files'
    names alone, so it is the same on any machine. Within a split the classes are interleaved: every slice of it keeps
    their proportions. Hidden files and files that are no image (by extension) are passed over. `image_shape` is what
    the headers say, of up to 1,000 files evenly spaced. Files that are passed over though they may be images, and
    copies of training images in other splits are told. Raises `UserError` where the layout is none that is known.
    """
    root = Path(os.path.expanduser(name))
    if not os.path.isdir(root):
        there = "not a folder" if os.path.exists(root) else "not there"
        raise UserError(f"{name} is {there}; expected a folder of images")
    try:
        folders = split_folders(root)
        found = {split: _classes(root, path) for split, path in folders.items()} if folders else _divided(root)
        if copies := shared_files(root, found):
            logging.getLogger(__name__).warning("%s: %s", name, copies)
    except OSError as fault:
        raise UserError(f"cannot read the folder {name}: {fault}") from fault
    _check_same_classes(name, found)
    classes = tuple(sorted(next(iter(found.values()))))
    splits = {split: _ordered(files, classes) for split, files in found.items()}
    sizes = {split: len(paths) for split, (paths, _) in splits.items()}
    classes_in = tuple(map(str, folders.values() or [root]))

    def open_split(split: str) -> Images:
        files, labels = splits[split]
        return Images(labels, partial(_content, root, files), partial(_path, root, files))

    shape = image_shape(root, [path for paths, _ in splits.values() for path in paths])
    return Dataset(name, classes, shape, sizes, open_split, classes_in)


def _path(root: Path, files: Sequence[str], index: int) -> str:
    return os.path.join(root, files[index])


def _content(root: Path, files: Sequence[str], index: int) -> bytes:
    return (root / files[index]).read_bytes()


def split_folders(root: Path) -> dict[str, Path]:
    """train, validation and test, where the root is laid out so; empty where its folders are classes."""
    visible, folders = _visible_folders(root), dict[str, Path]()
    for path, split in layouts.splits_of(visible).items():
        if split in folders:
            raise UserError(f"{root} holds both {folders[split].name}/ and {path.name}/; leave one of them")
        folders[split] = layouts.inner(path, _visible_folders(path))
    if folders and "train" not in folders:
        raise UserError(f"{root} holds {_listed(folders.values())} but no train/; expected train/CLASS/IMAGE")
    if set(folders) == {"train"}:
        raise UserError(
            f"{root} holds {folders['train'].name}/ but neither test/ nor val/; add one, or give "
            f"{folders['train']}, of which a fifth becomes the test split"
        )
    unlabelled = []
    if {"validation", "test"} <= folders.keys() and not _has_classes(folders["test"]):
        unlabelled = [folders.pop("test")]
        logging.getLogger(__name__).warning(
            "%s: %s/ has no classes and is passed over; the images of %s/ are the test images",
            *(root, unlabelled[0].name, folders["validation"].name),
        )
    others = [p for p in visible if folders and not any(f.is_relative_to(p) for f in (*folders.values(), *unlabelled))]
    if others := [path for path in others if next(images_below(path), None)]:
        logging.getLogger(__name__).warning("%s: folders that are no split, passed over: %s", root, _listed(others))
    return {split: folders[split] for split in ("train", "validation", "test") if split in folders}


def _has_classes(folder: Path) -> bool:
    flat = layouts.by_file_name(_loose(folder))
    return len(_visible_folders(folder)) > 1 or bool(flat) or layouts.annotations(folder).is_file()


def _loose(folder: Path) -> list[str]:
    """The images that lie in the folder itself, in no class."""
    return [path.name for path in folder.iterdir() if is_image(path.name)]


def _classes(root: Path, folder: Path) -> Files:
    """The images of each class folder in `folder`; raises `UserError` unless there are two or more, none empty."""
    if layouts.annotations(folder).is_file():
        return {label: [os.path.relpath(file, root) for file in files] for label, files in layouts.annotated(folder)}
    folders, passed_over = _visible_folders(folder), Counter[str]()
    if not folders and (flat := layouts.by_file_name(_loose(folder))):
        return {label: [os.path.relpath(folder / file, root) for file in files] for label, files in flat.items()}
    if around := [p for p in folders if p.is_symlink() and folder.resolve().is_relative_to(p.resolve())]:
        raise UserError(
            f"{around[0]} links to a folder that it lies in, so that its images would come twice; remove it"
        )
    names = {path: _name_of(folder, path) for path in folders}
    files = {names[path]: [os.path.relpath(file, root) for file in images_below(path, passed_over)] for path in folders}
    if len(files) < len(folders):
        same = next(name for name in files if sum(other == name for other in names.values()) > 1)
        raise UserError(f"{folder} holds two folders named {same!r}, in two Unicode spellings; join them")
    if passed_over:
        logging.getLogger(__name__).warning("%s: %s", folder, told(passed_over))
    loose = len(_loose(folder))
    if len(files) < 2:
        found = f"one class folder only, {folders[0].name}/," if files else "no class folder"
        raise UserError(
            f"{folder} holds {found} and {loose:,} images beside it; expected a folder per class: "
            f"{folder}/CLASS/IMAGE.jpg, two classes or more (or files that are all called CLASS.NUMBER.jpg)"
        )
    if loose:
        logging.getLogger(__name__).warning("%s: images beside its classes, passed over: %d", folder, loose)
    if empty := [path for path in folders if not files[names[path]]]:
        raise UserError(
            f"{folder} holds class folders without an image: {_listed(empty)}; remove them, or add images "
            "(.jpg, .png and what else Pillow reads)"
        )
    return files


def _divided(root: Path) -> dict[str, Files]:
    """Train and test: of each class the fifth with the lowest SHA-1 is test; of a single image none."""
    files = _classes(root, root)
    train, test = Files(), Files()
    for label, paths in files.items():
        count = max(1, (len(paths) + 2) // 5) if len(paths) > 1 else 0
        if not count:
            logging.getLogger(__name__).warning("class %r has a single image: none of it is in the test split", label)
        by_hash = sorted(paths, key=hash_of)
        train[label], test[label] = by_hash[count:], by_hash[:count]
    return {"train": train, "test": test}


def _check_same_classes(name: str, found: Mapping[str, Files]) -> None:
    for split, files in found.items():
        extra, lacking = set(files) - set(found["train"]), set(found["train"]) - set(files)
        if extra or lacking:
            raise UserError(
                f"{name}: the classes of {split} differ from those of train: only in {split}: "
                f"{sorted(extra)[:5]}, only in train: {sorted(lacking)[:5]}; give both the same class folders"
            )


def _ordered(files: Files, classes: tuple[str, ...]) -> Split:
    """Paths and labels: each class in the order of its hashes, the classes interleaved in proportion."""
    keyed = []
    for label, name in enumerate(classes):
        hashes = sorted((hash_of(path), path) for path in files[name])
        keyed += [((rank + 0.5) / len(hashes), key, path, label) for rank, (key, path) in enumerate(hashes)]
    keyed.sort()
    return [path for *_, path, _ in keyed], np.array([label for *_, label in keyed], np.int32)


def image_shape(root: Path, paths: Sequence[str]) -> tuple[int, int, int]:
    """What the headers of up to 1,000 files say, evenly spaced: h, w, c, or (0, 0, c) where sizes differ."""
    sample = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _HEADERS_READ)).astype(int))
    shapes: set[tuple[int, int, int]] = set()
    broken = None
    for row in sample:
        try:
            shapes.add(decoding.header_shape(root / paths[row]))
        except decoding.BrokenImage as fault:  # reported when the image is read
            broken = fault
    if not shapes:
        raise UserError(f"none of {len(sample):,} files opened in {root} is an image that can be read: {broken}")
    sizes = {shape[:2] for shape in shapes}
    height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
    return height, width, max(channels for *_, channels in shapes)


def images_below(folder: Path, passed_over: Counter[str] | None = None) -> Iterator[str]:
    """The paths of the images in `folder`, at any depth, in the file system's order; raises `OSError`.

    Hidden ones are passed over, and symbolic links to folders are not followed. `passed_over` counts other files by
    their extensions, but those that are no images for sure.
    """

    def fail(fault: OSError) -> None:
        raise fault

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if _is_visible(name)]
        yield from (os.path.join(parent, name) for name in names if is_image(name))
        if passed_over is not None:
            ends = (os.path.splitext(name)[1].lower() for name in names if _is_visible(name) and not is_image(name))
            passed_over.update(end for end in ends if end not in _SIDE_FILES)


def told(passed_over: Counter[str]) -> str:
    """What `images_below` counted, and what to do."""
    kinds = ", ".join(f"{n:,} {end or 'without an extension'}" for end, n in passed_over.most_common(5))
    photos = "; `pip install pillow-heif` reads .heic" if {".heic", ".heif"} & passed_over.keys() else ""
    return f"files that Pillow does not read by their extension, passed over: {kinds}; convert or rename them{photos}"


def shared_files(root: Path, found: Mapping[str, Files]) -> str:
    """How many files of validation and test are copies of training files, byte by byte; "" where none is found.

    Of files of one length the contents are compared, until `_COMPARED_BYTES` have been read.
    """
    by_size: dict[int, dict[str, list[str]]] = {}
    for split, files in found.items():
        for path in (path for paths in files.values() for path in paths):
            by_size.setdefault(_size(root / path), {}).setdefault(split, []).append(path)
    copies, left = dict[str, list[str]](), _COMPARED_BYTES
    for size, paths in by_size.items():
        if not size or len(paths) < 2 or "train" not in paths:
            continue
        left -= size * sum(map(len, paths.values()))
        if left < 0:
            break
        trained = {_digest(root / path) for path in paths["train"]}
        for split in paths.keys() - {"train"}:
            copies.setdefault(split, []).extend(p for p in paths[split] if _digest(root / p) in trained)
    parts = [f"{len(paths):,} files of {split} (such as {min(paths)})" for split, paths in copies.items() if paths]
    if not parts:
        return ""
    return f"{' and '.join(parts)} are copies of training files: what is measured on them is too good; remove them"


def _size(path: Path) -> int:
    """In bytes; 0 of a file that cannot be read, which its reader will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        return os.urandom(16)  # like no other


def is_image(name: str) -> bool:
    """Whether a file of this name, not hidden, is one of those that Pillow reads by itself."""
    return _is_visible(name) and os.path.splitext(name)[1].lower() in _extensions()


def _name_of(folder: Path, path: Path) -> str:
    """The name of a class's folder, whatever the locale takes the bytes of file names for."""
    try:
        return _normal(os.fsencode(path.name).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{folder} holds a class folder whose name is not UTF-8, {path.name!r}; rename it") from error


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_visible(path.name) and path.is_dir())


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


@cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NO_PIXELS)


def _normal(name: str) -> str:
    """The name in one Unicode form: macOS stores accents apart from their letters, Linux as they were given."""
    return unicodedata.normalize("NFC", name)


def hash_of(path: str) -> bytes:
    """By which the images of a folder are ordered and divided: the same on any machine."""
    name = _normal(path.replace(os.sep, "/"))
    return hashlib.sha1(name.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()


def _listed(paths: Iterable[Path]) -> str:
    names = [f"{path.name}/" for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
