"""WebDataset shards: tar files with NAME.jpg and NAME.cls for each example, on a disk or wherever fsspec reads.

The index of each shard (`tar_index`) makes them one long list, in the order of the shards' names: any image can be read
at any time, so that the order of training is a function of (seed, epoch), as of every data set.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vit_jax.command import UserError
from vit_jax.data.sources.dataset import Dataset, Example, MissingDataset
from vit_jax.data.sources.layouts import split_of
from vit_jax.data.sources.sampled import sampled_shape
from vit_jax.data.sources.tar_index import Index, file_system, index_of
from vit_jax.text import listed

DESCRIPTION = "shards.json"
EXPECTED = (
    f'{DESCRIPTION}: expected {{"train": "train-{{0000..0146}}.tar", "test": ["test-0.tar", ...], "classes": [...]}}'
)
AT_ONCE = 16  # shards whose indices are made
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NUMBERED = re.compile(r"(.*?)(\d+)\.tar")


class Shards:
    """The examples of one split."""

    def __init__(self, indices: Sequence[Index], labels: Int[np.ndarray, " n"] | None) -> None:
        self._indices, self._labels = indices, labels  # None: there are none
        self._ends = np.cumsum([len(index) for index in indices])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> Example:
        shard, row = self._locate(index)
        image: Example = {"image": shard.read(row)}
        return image if self._labels is None else {**image, "label": int(self._labels[index])}

    def describe(self, index: int) -> str:
        shard, row = self._locate(index)
        return f"{shard.address}, example {shard.keys[row]}"

    def labels(self) -> Int[np.ndarray, " n"]:
        return np.full(len(self), -1) if self._labels is None else self._labels

    def _locate(self, index: int) -> tuple[Index, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._indices[shard], index - int(self._ends[shard] - len(self._indices[shard]))


def open_webdataset(name: str, data_dir: Path) -> Dataset:
    """The shards in `webdataset/PLACE`: a folder, in `data_dir` or not, or an address such as gs://BUCKET/FOLDER.

    PLACE may be a pattern itself: `https://host/train-{000..146}.tar` is a data set of one split, train. A folder's
    `shards.json` says which shards make which split, and what the classes are called; without it the shards' names
    say it: `train-000.tar`, `imagenet1k-validation-00.tar`. Data sets without any label have images alone. Raises
    `MissingDataset`, or `UserError` for shards that cannot be used.
    """
    place = name.removeprefix("webdataset/")
    splits, classes = _find(place, data_dir)
    addresses = [address for split in splits.values() for address in split]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        indices = dict(zip(addresses, pool.map(index_of, addresses), strict=True))
    found = {
        split: [indices[address] for address in shards if len(indices[address])] for split, shards in splits.items()
    }
    if empty := [split for split, shards in found.items() if not shards]:
        raise UserError(f"{name}: the shards of {empty[0]} hold no example ({listed(splits[empty[0]])})")
    labels, classes = _numbered(name, found, classes)
    sources = {split: Shards(shards, labels.get(split)) for split, shards in found.items()}
    sizes = {split: len(source) for split, source in sources.items()}
    fields = ("image", "label") if labels else ("image",)
    shape = sampled_shape(name, list(sources.values()))
    return Dataset(name, classes, shape, sizes, sources.__getitem__, fields=fields)


def _find(place: str, data_dir: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The addresses of each split's shards, and the classes' names where the data set says them."""
    root = place if "://" in place else str(next((p for p in (data_dir / place, Path(place)) if p.exists()), place))
    if place.endswith(".tar"):
        shards = _expanded(place)
        there = "://" not in place and (data_dir / shards[0]).exists()
        return {"train": [str(data_dir / shard) if there else shard for shard in shards]}, ()
    system, path = file_system(root)
    described = f"{root.rstrip('/')}/{DESCRIPTION}"
    try:
        if system.exists(f"{path.rstrip('/')}/{DESCRIPTION}"):
            return _described(described, root)
        names = sorted(p.rpartition("/")[2] for p in system.glob(f"{path.rstrip('/')}/*.tar"))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot list {root} ({type(error).__name__}: {error}); write {described}") from error
    if not names:
        raise MissingDataset(
            f"no shard (*.tar) in {root}; expected train-000.tar ... and test-000.tar ..., or {DESCRIPTION}"
        )
    return {
        split: [f"{root.rstrip('/')}/{n}" for n in _complete(root, group)]
        for split, group in _by_split(root, names).items()
    }, ()


def _described(address: str, root: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """What `shards.json` says; shards without a scheme lie beside it."""
    system, path = file_system(address)
    try:
        given: Any = json.loads(system.cat_file(path))
        classes = tuple(map(str, given.pop("classes", ())))
        patterns = {split: [p] if isinstance(p, str) else list(p) for split, p in given.items()}
        complete = [
            p if "://" in p or p.startswith("/") else f"{root.rstrip('/')}/{p}" for ps in patterns.values() for p in ps
        ]
    except Exception as error:
        raise UserError(f"{address} is no such file ({type(error).__name__}: {error}); {EXPECTED}") from error
    if unknown := [split for split in patterns if not split_of(split)]:
        raise UserError(f"{address}: {unknown[0]!r} is no split, expected train, val or test; {EXPECTED}")
    rest = iter(complete)
    named = {split_of(split): [next(rest) for _ in ps] for split, ps in patterns.items()}
    if "train" not in named:
        raise UserError(f"{address} names no shards of train; {EXPECTED}")
    return {split: [shard for p in ps for shard in _expanded(p)] for split, ps in named.items()}, classes


def _expanded(pattern: str) -> list[str]:
    """The names that `{000..146}` in a pattern stands for."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    if int(first) > int(last):
        raise UserError(f"{pattern}: {found[0]} counts down; expected {{{last}..{first}}}")
    names = (
        f"{pattern[: found.start()]}{i:0{len(first)}d}{pattern[found.end() :]}"
        for i in range(int(first), int(last) + 1)
    )
    return [name for one in names for name in _expanded(one)]


def _by_split(root: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The shards by the split that a word of their names says; all train where none says one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        words = re.split(r"[-_.]", name.lower())
        groups.setdefault(next((split for word in words if (split := split_of(word))), ""), []).append(name)
    if set(groups) == {""}:
        return {"train": groups[""]}
    if "" in groups:
        raise UserError(f"{root}: of which split is {groups[''][0]}? Name it train-..., or write {DESCRIPTION}")
    if "train" not in groups:
        raise UserError(f"{root} holds shards of {' and '.join(groups)}, but none of train; add them")
    return groups


def _complete(root: str, names: Sequence[str]) -> Sequence[str]:
    """The names; raises `UserError` where their numbers have a gap: a shard is missing."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        if parts := _NUMBERED.fullmatch(name):
            numbers.setdefault(parts[1], []).append(int(parts[2]))
    for prefix, found in numbers.items():
        if absent := sorted(set(range(min(found), max(found) + 1)) - set(found)):
            raise UserError(
                f"{root}: shard {absent[0]} of {prefix}... is missing between {min(found)} and {max(found)}; add it, "
                f"or name the shards in {DESCRIPTION}"
            )
    return names


def _numbered(
    name: str, found: Mapping[str, Sequence[Index]], classes: tuple[str, ...]
) -> tuple[dict[str, Int[np.ndarray, " n"]], tuple[str, ...]]:
    """The labels of each split as numbers, and the classes; no labels and no classes where there are none at all."""
    texts = {split: np.concatenate([index.labels for index in shards]) for split, shards in found.items()}
    known = np.unique(np.concatenate(list(texts.values())))
    if set(known) <= {""}:
        return {}, ()
    faulty = partial(_where, name, found)
    names = {text: i for i, text in enumerate(classes)}
    numbers = {}
    for text in map(str, known):
        if not text:
            raise UserError(f'{faulty(text)} has no label (.cls, or .json with "label"), though others have; add it')
        if text not in names and not text.isdecimal():
            expected = f"one of the classes, {listed(classes)}" if classes else "a whole number from 0 on"
            raise UserError(f"{faulty(text)} has the label {text!r}; expected {expected}, or name it in {DESCRIPTION}")
        numbers[text] = names[text] if text in names else int(text)
        if classes and numbers[text] >= len(classes):
            raise UserError(
                f"{faulty(text)} has the label {text}; {DESCRIPTION} names {len(classes)} classes, from 0 on"
            )
    classes = classes or tuple(map(str, range(max(numbers.values()) + 1)))
    lookup = np.array([numbers[str(text)] for text in known])
    return {split: lookup[np.searchsorted(known, labels)] for split, labels in texts.items()}, classes


def _where(name: str, found: Mapping[str, Sequence[Index]], label: str) -> str:
    """The first example with this label."""
    for index in (index for shards in found.values() for index in shards):
        if len(rows := np.flatnonzero(index.labels == label)):
            return f"shard {index.address}: example {str(index.keys[rows[0]])!r}"
    return name
