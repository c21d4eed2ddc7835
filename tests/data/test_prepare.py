"""Preparing from tiny archives, over HTTP or from a folder, and reading back through TFDS."""

import functools
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data import archives
from tests.serving import running
from vit_jax.command import UserError
from vit_jax.data import prepare as module
from vit_jax.data.prepare import PREPARABLE, prepare, tf_command

VERSIONS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1", "cifar10": "3.0.2", "cifar100": "3.0.2"}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def tiny(name: str, tmp_path: Path, **sizes: int) -> tuple[Path, Path, archives.Content]:
    """A folder for data sets, one with tiny archives of `name`, and what these hold."""
    content = archives.write(name, tmp_path / "archives", **sizes)
    return tmp_path / "data", tmp_path / "archives", content


def original_order(source: object, features: tuple[str, ...], content: dict[str, np.ndarray]) -> list[int]:
    """For each example of `source`, its index in `content`; fails where pixels or labels differ."""
    indices = []
    for example in source:
        [index] = np.flatnonzero((content["image"] == example["image"]).all(axis=(1, 2, 3)))
        assert {name: example[name] for name in features} == {name: content[name][index] for name in features}
        indices.append(int(index))
    return indices


@pytest.mark.parametrize("name", PREPARABLE)
def test_reading_back_through_tfds_gives_the_archives(name: str, tmp_path: Path) -> None:
    data_dir, folder, content = tiny(name, tmp_path)
    with serving(folder) as url:
        assert prepare(name, data_dir, url + "/", checksum=False) == data_dir / name / VERSIONS[name]
    labels = ("coarse_label", "label") if name == "cifar100" else ("label",)
    for split, count in (("train", archives.TRAIN), ("test", archives.TEST)):
        source = tfds.data_source(name, split=split, data_dir=data_dir)
        order = original_order(source, labels, content[split])
        assert sorted(order) == list(range(count)) != order  # TFDS shuffles on disk
        if "cifar" in name:
            assert [example["id"].decode() for example in source] == [f"{split}_{index:05d}" for index in order]
        assert len(tfds.builder_from_directory(data_dir / name / VERSIONS[name]).as_data_source(split)) == count
    assert "tensorflow" not in sys.modules


def test_label_names_and_features_are_those_of_tfds(tmp_path: Path) -> None:
    data_dir, folder, _ = tiny("cifar100", tmp_path)
    archives.write("fashion_mnist", folder)
    for name in ("cifar100", "fashion_mnist"):
        prepare(name, data_dir, str(folder), checksum=False)
        builder = tfds.builder_from_directory(data_dir / name / VERSIONS[name])
        assert set(builder.info.features) == set(tfds.builder(name, data_dir=tmp_path).info.features)
        assert builder.info.supervised_keys == ("image", "label")
        info = json.loads((data_dir / name / VERSIONS[name] / "dataset_info.json").read_text())
        assert info["moduleName"] == tfds.builder_cls(name).__module__
        names = builder.info.features["label"].names
        assert names[9] == ("label_9" if name == "cifar100" else "Ankle boot")
    cifar = tfds.builder_from_directory(data_dir / "cifar100" / "3.0.2").info.features
    assert cifar["coarse_label"].names == [f"coarse_{i}" for i in range(20)]
    assert cifar["label"].names == [f"label_{i}" for i in range(100)]


def test_the_second_call_does_nothing(tmp_path: Path) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    prepared = prepare("mnist", data_dir, str(folder), checksum=False)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    shutil.rmtree(folder)
    assert prepare("mnist", data_dir, str(folder)) == prepared
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def with_checksums(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Makes the archives in `folder` the published ones."""
    for url, info in tfds.builder_cls(name).url_infos.items():
        digest = hashlib.sha256((folder / url.rsplit("/", 1)[1]).read_bytes()).hexdigest()
        monkeypatch.setattr(info, "checksum", digest)


def test_archives_are_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, folder, _ = tiny("cifar10", tmp_path)
    with_checksums(monkeypatch, "cifar10", folder)
    with serving(folder) as url:
        prepared = prepare("cifar10", data_dir, url)
    kept = data_dir / "downloads" / "cifar10"
    assert [path.name for path in kept.iterdir()] == ["cifar-10-binary.tar.gz"]
    shutil.rmtree(prepared)
    prepare("cifar10", data_dir, url)  # the server is gone
    prepare("cifar10", tmp_path / "elsewhere", str(data_dir / "downloads"))
    assert not (tmp_path / "elsewhere" / "downloads" / "cifar10" / "cifar-10-binary.tar.gz").exists()


@pytest.mark.parametrize("name", PREPARABLE)
def test_other_archives_than_the_published_ones_are_refused(name: str, tmp_path: Path) -> None:
    data_dir, folder, _ = tiny(name, tmp_path)
    with serving(folder) as url, pytest.raises(UserError, match="expected [0-9a-f]{64}: it is damaged or another file"):
        prepare(name, data_dir, url)
    with pytest.raises(UserError, match="has not the published sha256 .*--no_checksum"):
        prepare(name, data_dir, str(folder))
    assert not (data_dir / name).exists()


def test_published_addresses_and_checksums() -> None:
    """As the authors and TFDS publish them; a silent change would fetch something else."""
    published = {name: tfds.builder_cls(name).url_infos for name in PREPARABLE}
    assert [len(published[name]) for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")] == [4, 4, 1, 1]
    cifar100 = published["cifar100"]["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    assert cifar100.checksum == "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"


def test_archives_of_different_sources_are_kept_apart_without_checksums(tmp_path: Path) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    with serving(folder) as url:
        shutil.rmtree(prepare("mnist", data_dir, url, checksum=False))
    content = archives.write("mnist", tmp_path / "other", seed=1)
    with serving(tmp_path / "other") as url:
        prepare("mnist", data_dir, url, checksum=False)
    source = tfds.data_source("mnist", split="test", data_dir=data_dir)
    assert len(original_order(source, ("label",), content["test"])) == archives.TEST


def test_missing_archives(tmp_path: Path) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with serving(folder) as url, pytest.raises(UserError, match="answered 404 .*put it at .*t10k-labels-idx1-ubyte.gz"):
        prepare("mnist", data_dir, url, checksum=False)
    with pytest.raises(UserError, match="holds no t10k-labels-idx1-ubyte.gz"):
        prepare("mnist", data_dir, str(folder), checksum=False)
    with pytest.raises(UserError, match="cannot reach http://127.0.0.1:1/"):
        prepare("mnist", data_dir, "http://127.0.0.1:1", checksum=False)


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("file", "damage", "why"),  # the whole file's bytes -> those of a damaged one, or values to write
    [
        (IMAGES, lambda whole: np.zeros((23, 28 * 28), np.uint8), "begins with 00000802, expected 00000803"),
        (IMAGES, lambda whole: np.zeros((23, 28, 27), np.uint8), "expected 18032 of n x \\[28, 28\\]"),
        (IMAGES, lambda whole: gzip.compress(gzip.decompress(whole)[:-1]), "18031 bytes of 23 x \\[28, 28\\]"),
        (LABELS, lambda whole: gzip.compress(b"\0\0\x08"), "begins with 000008, expected 00000801"),
        (IMAGES, lambda whole: whole[:-1009], "ended before"),
        (IMAGES, lambda whole: b"<html>not found</html>", "Not a gzipped file"),
        (LABELS, lambda whole: np.zeros(22, np.uint8), "22 labels .*expected 23"),
        (LABELS, lambda whole: np.full(23, 10, np.uint8), "23 labels up to 10, expected 23 up to 9"),
    ],
)
def test_damaged_mnist_archives(file: str, damage: Callable[[bytes], bytes | np.ndarray], why: str, tmp_path: Path):
    data_dir, folder, _ = tiny("mnist", tmp_path)
    content = damage((folder / file).read_bytes())
    if isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        archives.write_idx(folder / file, content)
    with pytest.raises(UserError, match=f"train-.*is damaged or another file .*{why}"):
        prepare("mnist", data_dir, str(folder), checksum=False)
    assert not (data_dir / "mnist").exists()


def test_damaged_cifar_archives(tmp_path: Path) -> None:
    data_dir, folder, content = tiny("cifar100", tmp_path)
    path = folder / "cifar-100-binary.tar.gz"
    whole = path.read_bytes()
    records = {split: b"".join(archives.cifar_records(content[split], ("coarse_label", "label"))) for split in content}
    names = [bytes(f"x{i}\n" * n, "ascii") for i, n in enumerate((20, 100))]

    def fails(why: str, train: bytes = records["train"], fine: bytes = names[1], **more: bytes) -> None:
        if train:
            members = {"train.bin": train, "coarse_label_names.txt": names[0], "fine_label_names.txt": fine}
            archives.write_tar(path, "cifar-100-binary", members | more)
        with pytest.raises(UserError, match=f"is damaged or another file .*{why}"):
            prepare("cifar100", data_dir, str(folder), checksum=False)

    fails("holds no cifar-100-binary/test.bin")
    rest = {"test.bin": records["test"]}
    fails("70701 bytes, expected a multiple of 3074", records["train"][:-1], **rest)
    fails("99 names in fine_label_names.txt, expected 100", fine=b"x\n" * 99, **rest)
    fails("label 100, expected less than 100", bytes([0, 100]) + records["train"][2:], **rest)
    fails("coarse_label 20, expected less than 20", bytes([20]) + records["train"][1:], **rest)
    for cut in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        fails("", train=b"")
    path.write_bytes(whole[:-8] + bytes(8))  # gzip's checksum and size
    fails("CRC check failed", train=b"")
    assert not (data_dir / "cifar100").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(error: BaseException, tmp_path: Path, monkeypatch) -> None:
    data_dir, folder, content = tiny("mnist", tmp_path)
    images = iter(range(11))

    def png(image: np.ndarray) -> object:
        if next(images, None) is None:
            raise error
        return whole_png(image)

    whole_png = module._png
    monkeypatch.setattr(module, "_png", png)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        prepare("mnist", data_dir, str(folder), checksum=False)
    assert not (data_dir / "mnist").exists()
    assert not any(path.is_file() for path in data_dir.rglob("*"))
    monkeypatch.setattr(module, "_png", whole_png)
    prepare("mnist", data_dir, str(folder), checksum=False)
    source = tfds.data_source("mnist", split="train", data_dir=data_dir)
    assert len(original_order(source, ("label",), content["train"])) == archives.TRAIN


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    unfinished, left = data_dir / "downloads" / "mnist" / "unfinished", tmp_path / "left"

    def at_the_last_moment(*arguments: object) -> None:
        assert not (data_dir / "mnist").exists()
        shutil.copytree(unfinished, left, dirs_exist_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_check_counts", at_the_last_moment)
        with pytest.raises(KeyboardInterrupt):
            prepare("mnist", data_dir, str(folder), checksum=False)
    left.rename(unfinished)  # a process that is killed clears nothing up
    prepare("mnist", data_dir, str(folder), checksum=False)
    assert not unfinished.exists()
    assert len(tfds.data_source("mnist", split="train", data_dir=data_dir)) == archives.TRAIN


def test_a_wrong_count_of_records_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    examples = module._examples
    monkeypatch.setattr(module, "_examples", lambda *args: list(examples(*args))[1:])
    with pytest.raises(RuntimeError, match="train: wrote 22 of 23"):
        prepare("mnist", data_dir, str(folder), checksum=False)
    assert not (data_dir / "mnist").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no readable data set .*remove it"):
        prepare("mnist", tmp_path)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(UserError, match="holds tfrecord files, expected array_record"):
        prepare("mnist", tmp_path)
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_unknown_name_gets_the_command_if_it_can_work(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare("oxford_flowers102", tmp_path)
    assert "'oxford_flowers102' is none of mnist, fashion_mnist, cifar10, cifar100" in str(caught.value)
    assert tf_command("oxford_flowers102", tmp_path) in str(caught.value)
    for name in ("imagenet21k", "imagenet21k/full:1.0.0"):
        with pytest.raises(UserError, match="TFDS has no data set of that name; name a folder of images") as caught:
            prepare(name, tmp_path)
        assert f"in {tmp_path} with" in str(caught.value) and "pip install" not in str(caught.value)


def test_tf_command_survives_the_shell(tmp_path: Path) -> None:
    assert tf_command("NAME", Path("D")) == (
        'pip install "vit_jax[tf]" && python -c "import tensorflow_datasets as tfds; '
        "tfds.builder('NAME', data_dir='D', file_format='array_record').download_and_prepare()\""
    )
    package = tmp_path / "tensorflow_datasets.py"
    package.write_text(
        "def builder(*args, **kwargs):\n    print(args, kwargs)\n    class B:\n"
        "        download_and_prepare = staticmethod(lambda: print('done'))\n    return B\n"
    )
    for where in ("plain", "with space", 'a "quote"', "it's", "$HOME", "`ls`"):
        command = tf_command("NAME", Path(where)).split(" && ")[1].replace("python", sys.executable, 1)
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == f"('NAME',) {dict(data_dir=where, file_format='array_record')}\ndone\n", done.stderr


COMMAND = """
import runpy, sys
import vit_jax.data
before = set(sys.modules)
import vit_jax.data.prepare
heavy = {"tensorflow", "tensorflow_datasets", "array_record", "rich"} & (set(sys.modules) - before)
assert not heavy and "tensorflow" not in sys.modules, f"importing is not cheap: {heavy}"
del sys.modules["vit_jax.data.prepare"]
runpy.run_module("vit_jax.data.prepare", run_name="__main__", alter_sys=True)  # as python -m
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir, folder, _ = tiny("mnist", tmp_path)
    archives.write("cifar10", folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    lines = f"mnist: prepared in {data_dir}/mnist/3.0.1\ncifar10: prepared in {data_dir}/cifar10/3.0.2\n"
    words = ["mnist", "cifar10", "--source", str(folder), "--no_checksum"]
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, lines, "")
    with pytest.raises(UserError, match="^'cifra10' is none of mnist"):
        module.main(["mnist", "cifra10"])
    capsys.readouterr()
    assert module.main(["mnist", "cifar10"]) == 0
    assert capsys.readouterr().out == lines.replace("prepared", "already prepared")


@pytest.mark.parametrize("words", [[], ["mnist", "--sorce", "x"], ["mnist", "--config.train.epochs=3"]])
def test_wrong_words_are_the_users_mistake(words: list[str]) -> None:
    with pytest.raises(UserError):
        module.main(words)
