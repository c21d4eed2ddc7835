"""WebDataset shards: examples at random by a kept index, over https, in the order of any data set; bad ones told."""

import functools
import http.server
import importlib.util
import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from tests import tiny
from tests.data import shards
from tests.serving import running
from vit_jax import config, sharding, tasks, train
from vit_jax.command import UserError
from vit_jax.data import Settings, open_data
from vit_jax.data.sources import MissingDataset, open_dataset, webdataset

SIZES = {"train": (5, 7, 4), "test": (3,)}
NOWHERE = Path("/no/such/folder")
NEEDS_HTTP = pytest.mark.skipif(
    not importlib.util.find_spec("aiohttp"), reason="no aiohttp: pip install vit_jax[remote]"
)


@pytest.fixture(autouse=True)
def kept(tmp_path_factory, monkeypatch) -> Path:
    """Where indices are kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VIT_JAX_CACHE", str(folder))
    return folder / "shards"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return shards.write_all(tmp_path_factory.mktemp("data") / "shards", SIZES)


def opened(place: object, data_dir: Path = NOWHERE):
    return open_dataset(f"webdataset/{place}", data_dir)


def test_each_example_is_read_at_random_from_its_shard(root):
    dataset = open_dataset("webdataset/shards", root.parent)
    assert dataset.splits == {"train": 16, "test": 3} and dataset.class_names == ("0", "1", "2")
    assert dataset.image_shape == (8, 6, 3) and dataset.fields == ("image", "label")
    source = pickle.loads(pickle.dumps(dataset.open_split("train")))
    for i in (15, 0, 4, 5, 11, 12):
        assert source.read(i) == {"image": shards.png(i), "label": i % 3}
    np.testing.assert_array_equal(source.labels(), np.arange(16) % 3)
    assert source.describe(5) == f"{root}/train-001.tar, example 00005"
    assert dataset.open_split("test").read(2)["image"] == shards.png(18)
    with pytest.raises(IndexError):
        source.read(16)


def test_an_index_is_made_once_for_each_version_of_a_shard(root, kept, tmp_path, monkeypatch):
    shard = shards.write(tmp_path / "a-train-0.tar", shards.example("x", 1, "0") + shards.example("y", 2, "1"))
    shards.write(tmp_path / "a-test-0.tar", shards.example("z", 3, "1"))
    assert opened(tmp_path).splits["train"] == 2 and len(list(kept.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda **options: pytest.fail("the members are known"))
        assert opened(tmp_path).open_split("train").read(1) == {"image": shards.png(2), "label": 1}
    shards.write(shard, shards.example("x", 4, "1"))
    assert opened(tmp_path).open_split("train").read(0) == {"image": shards.png(4), "label": 1}
    for path in kept.iterdir():
        path.write_bytes(b"damaged")
    assert opened(tmp_path).splits["train"] == 1


def test_a_description_names_shards_and_classes(tmp_path):
    for i, label in enumerate(("dog", "0", "cat")):
        shards.write(tmp_path / f"p{i:02d}.tar", shards.example("k", i, label))
    shards.write(tmp_path / "q.tar", [("k.jpg", shards.png(3)), ("k.json", b'{"label": "dog", "width": 6}')])
    (tmp_path / "shards.json").write_text('{"train": "p{00..02}.tar", "val": ["q.tar"], "classes": ["cat", "dog"]}')
    dataset = opened(tmp_path)
    assert dataset.class_names == ("cat", "dog") and dataset.splits == {"train": 3, "validation": 1}
    assert dataset.open_split("train").labels().tolist() == [1, 0, 0]
    assert dataset.open_split("validation").labels().tolist() == [1]


def test_a_pattern_is_a_data_set_of_one_split(root):
    dataset = opened(f"{root}/train-{{000..002}}.tar")
    assert dataset.splits == {"train": 16} and len(dataset.source("train[:50%]")) == 8
    beside = open_dataset("webdataset/train-{000..002}.tar", root)  # in `data_dir`
    assert beside.splits == {"train": 16}
    assert webdataset._expanded("a{1..2}-{08..10}.tar")[-2:] == ["a2-09.tar", "a2-10.tar"]


def test_shards_without_labels_have_images_alone_and_pre_train(tmp_path):
    shards.write_all(tmp_path, SIZES, labelled=False)
    dataset = opened(tmp_path)
    assert dataset.fields == ("image",) and dataset.class_names == ()
    c = tiny.get_config("vit")
    c.data.name = f"webdataset/{tmp_path}"
    c.data.validation = "none"
    c.model.update(patch_size=(2,))
    c.task = tasks.settings("masked_autoencoder", decoder_width=12, decoder_depth=1, decoder_heads=3)
    c.train.batch_size = 8
    built = train.set_up(config.from_dict(c), devices=jax.devices()[:1], described=True)
    assert set(built.batch) <= {"image", "index"} and jax.eval_shape(built.train_step, *built.arguments)
    c.task = tasks.settings("classification")
    with pytest.raises(UserError, match="have no label, only image"):
        train.set_up(config.from_dict(c), devices=jax.devices()[:1], described=True)


def test_streamed_and_cached_batches_are_those_of_seed_and_step(root):
    """The order of images is that of every data set, wherever they are kept and whatever step is asked for first."""
    mesh = sharding.make_mesh(sharding.Settings(), jax.devices()[:1])
    batches = {}
    for cache in ("none", "host"):
        data = open_data(Settings(name=f"webdataset/{root}", validation="none", cache=cache))
        loader = data.loader(data.split("train"), mesh)
        batches[cache] = [jax.device_get(batch) for batch in loader.train(7, 4, 0, 9)]
        late = jax.device_get(next(iter(loader.train(7, 4, 6, 9))))
        np.testing.assert_array_equal(late["image"], batches[cache][6]["image"])
    for streamed, cached in zip(batches["none"], batches["host"], strict=True):
        for field in ("image", "label"):
            np.testing.assert_array_equal(streamed[field], cached[field])
    first_epoch = np.concatenate([batch["image"] for batch in batches["none"][:4]])
    assert sorted(map(bytes, first_epoch)) == sorted(bytes(shards.pixels(i)) for i in range(16))


@pytest.mark.slow
def test_a_streamed_run_resumes_exactly(root, tmp_path):
    def start(workdir: Path) -> train.Result:
        c = tiny.get_config("cnn")
        c.data.update(name=f"webdataset/{root}", validation="none", cache="none")
        c.train.update(batch_size=4, steps=9)
        c.log.report = False
        return tiny.train_quietly(c, workdir)

    assert start(tmp_path / "whole").exit_code == 0
    tiny.assert_resumes(start, tmp_path / "resumed", tmp_path / "whole", at=5)


class Parts(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, unless the server is told not to."""

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def send_head(self):
        asked = self.headers.get("Range")
        if not asked or not self.server.parts:
            return super().send_head()
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().send_head()
        content = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.server.asked.append(len(part))
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.end_headers()
        return io.BytesIO(part)


@pytest.fixture
def server(root) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(Parts, directory=str(root.parent))
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        server.parts, server.asked = True, []
        yield server


@NEEDS_HTTP
def test_shards_on_a_web_server_are_read_in_parts(server):
    address = f"http://127.0.0.1:{server.server_address[1]}/shards"
    for place in (address, f"{address}/train-{{000..002}}.tar"):  # a folder that the server lists, and a pattern
        source = opened(place).open_split("train")
        server.asked.clear()
        assert source.read(11) == {"image": shards.png(11), "label": 2}
        assert server.asked == [len(shards.png(11))]


@NEEDS_HTTP
def test_a_copy_of_a_shard_is_read_where_fsspec_keeps_one(server, tmp_path, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "filecache", {"cache_storage": str(tmp_path)})
    source = opened(f"filecache::http://127.0.0.1:{server.server_address[1]}/shards").open_split("train")
    server.asked.clear()
    assert source.read(11) == {"image": shards.png(11), "label": 2}
    assert server.asked == [] and len(list(tmp_path.iterdir())) >= 4


@NEEDS_HTTP
def test_a_missing_shard_and_a_server_without_parts_are_told(server, monkeypatch):
    address = f"http://127.0.0.1:{server.server_address[1]}/shards"
    with pytest.raises(UserError, match=r"shard http.*train-003.tar is not there"):
        opened(f"{address}/train-{{000..003}}.tar")
    source = opened(f"{address}/train-{{000..002}}.tar").open_split("train")
    server.parts = False
    with pytest.raises(OSError, match="the server gives no parts of files"):
        source.read(3)


def test_a_place_that_is_not_there():
    with pytest.raises(MissingDataset, match="no shard"):
        opened("nowhere")
    with pytest.raises(UserError, match="cannot open strange://x"):
        opened("strange://x")
