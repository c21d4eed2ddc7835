"""Folders, archives, prepared data sets, splits and configurations that are wrong."""

import gzip
import io
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.case import READ, Case
from tests.data import archives as whole
from tests.data.images import encoded, photo
from vit_jax import config
from vit_jax.data import Settings, archives, open_data
from vit_jax.data.sources import open_dataset

Door = Callable[[Path], str | None]
NOWHERE = Path("/no/such/folder")
IMAGES = [encoded(photo(5, 7, 1 + i)) for i in range(8)]


def put(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(IMAGES[i % 8] + b"%d" % i)  # no two are copies


def folder_of(*names: str) -> Door:
    def door(folder: Path) -> None:
        put(folder, *names)
        open_dataset(str(folder), NOWHERE)

    return door


def strange_folder(make: Callable[[Path], object], below: str = "") -> Door:
    def door(folder: Path) -> None:
        put(folder, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
        make(folder)
        open_dataset(str(folder / below), NOWHERE)

    return door


def all_broken(folder: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        put(folder, name)
        (folder / name).write_bytes(b"no image")
    open_dataset(str(folder), NOWHERE)


def one_broken(folder: Path) -> None:
    put(folder, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    for i in range(5):
        (folder / "a" / f"{i}.png").write_bytes(IMAGES[0][:60])
    open_data(Settings(name=str(folder), image_size=(4,), validation="none")).split("train").load()


def class_not_utf8(folder: Path) -> None:
    os.makedirs(os.path.join(os.fsencode(folder), b"caf\xe9"))


def loop(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)


def self_link(folder: Path) -> None:
    (folder / "self").symlink_to("self")


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """A .tar.gz of files (name, content) and links (name, target)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def archive(content: bytes | Callable[[bytes], bytes]) -> Door:
    """CIFAR-10's archive, of this content or made of a whole one."""

    def door(folder: Path) -> None:
        whole.write_cifar10(folder, 0, 10, 5)
        path = folder / "cifar-10-binary.tar.gz"
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
        archives.read("cifar10", {path.name: path})
        assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]  # nothing is unpacked

    return door


def mnist(name: str, content: bytes) -> Door:
    def door(folder: Path) -> None:
        whole.write("mnist", folder)
        (folder / name).write_bytes(content)
        archives.read("mnist", {path.name: path for path in folder.iterdir()})

    return door


def idx(*numbers: int) -> bytes:
    return gzip.compress(bytes([0, 0, 8, len(numbers)]) + struct.pack(f">{len(numbers)}I", *numbers))


def prepared(damage: Callable[[Path], object]) -> Door:
    """A prepared MNIST of 23 images, damaged, opened and read whole."""

    def door(folder: Path) -> None:
        from tests.bad_input.prepared import tiny_mnist

        shutil.copytree(tiny_mnist(), folder / "data")
        [version] = (folder / "data" / "mnist").iterdir()
        damage(version)
        open_data(Settings(name="mnist", data_dir=str(folder / "data"), image_size=(4,))).split("train").load()

    return door


def records(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(version: Path) -> None:
        for path in version.glob("*train*"):
            path.write_bytes(change(path.read_bytes()))

    return damage


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    for at in range(len(content) // 3, len(content), 997):  # some hit padding
        changed[at] ^= 0x10
    return bytes(changed)


def side_file(name: str, text: str | None) -> Callable[[Path], None]:
    return lambda version: (version / name).unlink() if text is None else (version / name).write_text(text) and None


def split(spec: str) -> Door:
    return lambda folder: open_dataset("digits", NOWHERE).source(spec) and None


def config_file(name: str, text: str) -> Door:
    def door(folder: Path) -> None:
        (folder / name).write_text(text)
        config.load(str(folder / name))

    return door


def flag(*overrides: str) -> Door:
    return lambda folder: config.load("configs/digits.py", overrides) and None


def data_set(name: str) -> Door:
    return lambda folder: open_dataset(name, folder) and None


CIFAR = "cifar-10-batches-bin/data_batch_1.bin"
CASES = [
    Case("Folders", "an empty folder", "holds no class folder", folder_of()),
    Case("Folders", "images but no class folder", "expected a folder per class", folder_of("1.png", "2.png")),
    Case("Folders", "a single class", "one class folder only, a/", folder_of("a/1.png")),
    Case("Folders", "a class without an image", "class folders without an image: b/", folder_of("a/1.png", "b/")),
    Case("Folders", "hidden classes only", "holds no class folder", folder_of(".a/1.png", ".b/1.png")),
    Case("Folders", "train/ alone", "neither test/ nor val/", folder_of("train/a/1.png", "train/b/1.png")),
    Case("Folders", "test/ alone", "but no train/", folder_of("test/a/1.png", "test/b/1.png")),
    Case(
        "Folders",
        "another class in test/",
        "the classes of test differ",
        folder_of(*(f"{s}/1.png" for s in ("train/a", "train/b", "test/a", "test/c"))),
    ),
    Case(
        "Folders",
        "train/ and training/",
        "holds both",
        folder_of(*(f"{s}/1.png" for s in ("train/a", "train/b", "training/a", "training/b"))),
    ),
    Case(
        "Folders", "one class in two Unicode spellings", "two folders named", folder_of("\u00e9/1.png", "e\u0301/1.png")
    ),
    Case("Folders", "a class whose name is not UTF-8", "whose name is not UTF-8", strange_folder(class_not_utf8)),
    Case("Folders", "a class that links to the folder it lies in", "links to a folder", strange_folder(loop)),
    Case("Folders", "a link to itself", READ, strange_folder(self_link)),
    Case("Folders", "a file instead of a folder", "is not a folder", strange_folder(lambda f: None, "a/1.png")),
    Case("Folders", "a folder that is not there", "is not there", strange_folder(lambda f: None, "c")),
    Case("Folders", "broken images only", "is an image that can be read", all_broken),
    Case("Folders", "broken images among others", "broken image", one_broken),
    Case("Archives", "a truncated .tar.gz", "is damaged or another file", archive(lambda b: b[: len(b) // 2])),
    Case("Archives", "flipped bits", "is damaged or another file", archive(flipped)),
    Case("Archives", "an empty file", "is damaged or another file", archive(b"")),
    Case("Archives", "a web page", "is damaged or another file", archive(b"<html>")),
    Case("Archives", "a member that links to /etc/passwd", "holds no cifar-10", archive(tar((CIFAR, "/etc/passwd")))),
    Case("Archives", "a member ../../x", "holds no cifar-10", archive(tar(("../../x", b"x")))),
    Case("Archives", "a member /tmp/x", "holds no cifar-10", archive(tar(("/tmp/x", b"x")))),
    Case("Archives", "nothing in it", "holds no cifar-10", archive(tar())),
    Case(
        "Archives",
        "labels of two images, images of 23",
        "is damaged or another file (2 labels",
        mnist("train-labels-idx1-ubyte.gz", gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 1]))),
    ),
    Case(
        "Archives",
        "4,294,967,295 images by the header",
        "expected 3367254359280 of",
        mnist("train-images-idx3-ubyte.gz", idx(2**32 - 1, 28, 28)),
    ),
    Case(
        "Archives",
        "another idx header",
        "begins with",
        mnist("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x0d\x03")),
    ),
    Case("Prepared data sets", "a whole one", READ, prepared(lambda version: None)),
    Case("Prepared data sets", "records with flipped bits", "", prepared(records(flipped))),
    Case("Prepared data sets", "records cut in half", "", prepared(records(lambda b: b[: len(b) // 2]))),
    Case("Prepared data sets", "empty records", "", prepared(records(lambda b: b""))),
    Case("Prepared data sets", "records that are a web page", "", prepared(records(lambda b: b"<html>" * 999))),
    Case("Prepared data sets", "no dataset_info.json", "", prepared(side_file("dataset_info.json", None))),
    Case("Prepared data sets", "a damaged dataset_info.json", "", prepared(side_file("dataset_info.json", "{"))),
    Case("Prepared data sets", "no features.json", "", prepared(side_file("features.json", None))),
    Case("Prepared data sets", "a damaged features.json", "", prepared(side_file("features.json", "[]"))),
    Case("Prepared data sets", "a name that there is not", "data set", data_set("no_such_data_set")),
    Case("Prepared data sets", "an empty name", "the data set's name is empty", data_set("")),
    Case("Prepared data sets", "synthetic/8x8", "expected synthetic/HxWxC", data_set("synthetic/8x8")),
    Case("Prepared data sets", "../../etc", "is not there", data_set("../../no/such")),
    *(
        Case("Splits", f"`{spec}`", "expected a split, a slice or a sum", split(spec))
        for spec in (
            "tset",
            "train[",
            "train[:200%]",
            "train[a:b]",
            "train[3shard]",
            "train+",
            "",
            "train[:10%",
            "+",
            "💥",
        )
    ),
    *(Case("Splits", f"`{spec}`", "selects no image", split(spec)) for spec in ("train[5:3]", "train[:0]")),
    Case(
        "Configurations",
        "a file that returns nothing",
        "returned NoneType",
        config_file("x.py", "def get_config(a): 0"),
    ),
    Case("Configurations", "a file that fails", "x.py:1: ZeroDivisionError", config_file("x.py", "1 / 0")),
    Case("Configurations", "a file that exits", "x.py:1: SystemExit", config_file("x.py", "raise SystemExit")),
    Case(
        "Configurations",
        "a file that calls itself for ever",
        "RecursionError",
        config_file("x.py", "def f(): f()\nf()"),
    ),
    Case("Configurations", "a file with a typing error", "SyntaxError", config_file("x.py", "def")),
    Case("Configurations", "a file without get_config", "has no function get_config", config_file("x.py", "")),
    Case("Configurations", "a file called .txt", "ends in neither .py nor .json", config_file("x.txt", "")),
    Case("Configurations", "no JSON", "is not JSON", config_file("x.json", "{")),
    Case("Configurations", "JSON, nested 100,000 times", "is not JSON", config_file("x.json", "[" * 100_000)),
    Case("Configurations", "a JSON list", "holds a JSON list", config_file("x.json", "[]")),
    Case(
        "Configurations", "a group that is a number", "config.train is a group", config_file("x.json", '{"train": 3}')
    ),
    Case("Configurations", "an unknown field", "did you mean train.epochs?", flag("train.epoch=3")),
    Case("Configurations", "a word for a number", "expected a float", flag("train.epochs=many")),
    Case("Configurations", "infinity", "is not a finite number", flag("optim.lr=1e999")),
    Case("Configurations", "a value out of range", "is not positive", flag("train.batch_size=-1")),
    Case("Configurations", "an expression", "expected", flag("train.batch_size=__import__('os')")),
    Case("Configurations", "a bracket too many, 9,999 times", "expected", flag(f"train.batch_size={'(' * 9999}")),
]
