"""WebDataset shards that are wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.case import Case
from tests.bad_input.data import NOWHERE, Door
from tests.data import shards
from vit_jax.data.sources import open_dataset

Members = list[tuple[str, bytes]]


def shard(*members: tuple[str, bytes], change: Callable[[bytes], bytes] | None = None, **description: object) -> Door:
    """A good shard to train with and one to test with, the first with these members, too; and a `shards.json`."""

    def make(folder: Path) -> None:
        shards.write(folder / "test-0.tar", shards.example("t", 0, "0"))
        path = shards.write(folder / "train-0.tar", shards.example("a", 0, "0") + list(members))
        if change:
            path.write_bytes(change(path.read_bytes()))
        if description:
            given = {"train": "train-0.tar", "test": "test-0.tar"} | description
            (folder / "shards.json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))

    return opened(make)


def files(**contents: Members | str) -> Door:
    """A folder of shards by their names, and `shards.json` as text, and nothing else."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            if isinstance(content, str):
                (folder / "shards.json").write_text(content)
            else:
                shards.write(folder / f"{name.replace('_', '-')}.tar", content)

    return opened(make)


def opened(make: Callable[[Path], None]) -> Door:
    def door(folder: Path) -> None:
        make(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VIT_JAX_CACHE", str(folder / "cache"))
            open_dataset(f"webdataset/{folder}", NOWHERE)

    return door


A, B = shards.example("a", 0, "0"), shards.example("b", 1, "1")
TWO = ["cat", "dog"]
CASES = [
    Case("Shards", given, answer, door)
    for given, answer, door in (
        ("an example without an image", "example 'b' has no image, only .cls", shard(("b.cls", b"1"))),
        ("an example with two images", "'b.jpg' is a second image", shard(*B, ("b.jpg", b""))),
        ("an example without a label, among others", "example 'b' has no label", shard(("b.png", shards.png(1)))),
        ("a label that is a word", "has the label 'dog'; expected a whole", shard(*shards.example("b", 1, "dog"))),
        ("a label that is a fraction", "the label '1.5'; expected a whole", shard(*shards.example("b", 1, "1.5"))),
        ("a label below 0", "the label '-1'; expected a whole number", shard(*shards.example("b", 1, "-1"))),
        ("a damaged .json beside an image", "b.json' is no JSON", shard(("b.png", shards.png(1)), ("b.json", b"{"))),
        ("a list as .json beside an image", "is no JSON object", shard(("b.png", shards.png(1)), ("b.json", b"[1]"))),
        (
            "a class that shards.json does not name",
            "the label 'emu'; expected one of the classes, cat, dog",
            shard(*shards.example("b", 1, "emu"), classes=TWO),
        ),
        (
            "a number above the classes of shards.json",
            "the label 2; shards.json names 2 classes",
            shard(*shards.example("b", 1, "2"), classes=TWO),
        ),
        ("a shard cut within an image", "is damaged, compressed, or no tar file", shard(*B, change=lambda b: b[:2700])),
        ("a shard cut after an example", "without the mark of a tar file's end", shard(*B, change=lambda b: b[:2048])),
        ("a .tar.gz called .tar", "make or fetch it anew, as a plain .tar", shard(change=gzip.compress)),
        ("a web page called .tar", "is damaged, compressed, or no tar file", shard(change=lambda b: b"<html>" * 200)),
        ("a gap in the shards' numbers", "shard 1 of train-... is missing", files(train_0=A, train_2=B)),
        ("no shard", "expected train-000.tar", files()),
        ("a shard of no split, among others", "of which split is x.tar?", files(train_0=A, x=B)),
        ("no shard of train", "holds shards of test, but none of train", files(test_0=A)),
        ("shards without any example", "the shards of train hold no example", files(train_0=[], test_0=A)),
        ("only images that cannot be read", "can be read", files(train_0=[("a.png", b"no"), ("a.cls", b"0")])),
        ("a damaged shards.json", "shards.json is no such file (JSONDecodeError", files(train_0=A, json="{")),
        ("a split that is none in shards.json", "'dev' is no split", shard(dev="train-0.tar")),
        ("no train in shards.json", "names no shards of train", shard(train=None)),
        ("a shard in shards.json that is not there", "x-0.tar is not there", shard(train="x-{0..2}.tar")),
        ("numbers that count down in shards.json", "counts down", shard(train="x-{2..0}.tar")),
    )
]
