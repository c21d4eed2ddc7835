"""Addresses of weights, against a server that speaks the Hub's protocol, and a file system in memory."""

import hashlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import huggingface_hub
import pytest

from tests.serving import running
from vit_jax.command import UserError
from vit_jax.pretrained import address, augreg
from vit_jax.pretrained.address import locate

COMMIT = hashlib.sha1(b"main").hexdigest()
FILES = {
    "config.json": b'{"hidden_size": 768}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"pickle",
    "extra/model.safetensors": b"others",
    "extra/config.json": b'{"hidden_size": 1}',
}


class Hub(ThreadingHTTPServer):
    """A Hub of one repository, org/name, and files at /plain/."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.refuse: tuple[int, str] = (0, "")  # status and X-Error-Code for everything
        self.seen: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> tuple[int, bytes, str]:
        """Status, body and error code."""
        tree = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in self.files.items()]
        if self.refuse[0]:
            return self.refuse[0], b"", self.refuse[1]
        if path.startswith("/plain/"):
            body = self.files.get(path.removeprefix("/plain/"))
            return (404, b"", "") if body is None else (200, body, "")
        if not re.match(r"/(api/models/)?org/name/", path):
            return 401, b"", "RepoNotFound"
        if f"/tree/{COMMIT}" in path:
            return 200, json.dumps(tree).encode(), ""
        if re.fullmatch(r"/api/models/org/name/revision/(main|v1)", path):
            info = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": p} for p in self.files]}
            return 200, json.dumps(info).encode(), ""
        resolved = re.fullmatch(rf"/org/name/resolve/{COMMIT}/(.+)", path)
        if resolved and resolved[1] in self.files:
            return 200, self.files[resolved[1]], ""
        return 404, b"", "RevisionNotFound"


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self, send_body: bool = True) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append(f"{self.command} {path}")
        status, body, code = self.server.answer(path)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_oid(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET(send_body=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub, and an empty cache."""
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with running(Hub()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def _dead_end() -> str:
    """Where nothing answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def refused(given: str) -> str:
    """The message, which is one line and names the address."""
    with pytest.raises(UserError) as caught:
        locate(given)
    assert given in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Here.


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.npz").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "a b.npz"), "~/a b.npz", "a b.npz", f"file://{tmp_path}/a%20b.npz"):
        assert locate(given).read_bytes() == b"x"
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "google" / "vit").mkdir(parents=True)
    assert locate("google/vit") == Path("google/vit")


def test_no_such_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = "google/vit-base-patch16-224"
    assert refused(given).endswith(f"train that first; of the Hub, write hf://{given}")
    for given in ("runs/best.npz", "/nowhere", "a/b/c", "weights"):
        assert f"{given} does not exist; give a file (.npz, .safetensors), a folder, https" in refused(given)
    assert refused("weights").endswith("or a name: " + ", ".join(augreg.PUBLISHED))
    assert refused("vit_b61") == "vit_b61 does not exist; did you mean vit_b16?"
    assert "./vit_b16 does not exist" in refused("./vit_b16")
    assert "address of the weights is empty" in refused("")


def test_a_name_is_the_address_that_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetched: list[str] = []
    monkeypatch.setattr(address, "fetch", lambda given, place: fetched.append(given) or tmp_path)
    for name in ("vit_b16", "ViT-B_16", "vit/B16"):
        assert locate(name) == tmp_path and fetched.pop() == augreg.PUBLISHED["vit_b16"][1]
    (tmp_path / "vit_b16").mkdir()
    assert locate("vit_b16") == Path("vit_b16")  # what is here goes first


def test_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIT_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert address.cache() == Path("/home/me/.cache/vit_jax")
    monkeypatch.setenv("VIT_JAX_CACHE", "~/weights")
    assert address.cache() == Path("/home/me/weights")


# URLs.


def test_a_url_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {"one/model.npz": b"one", "two/model.npz": b"two"}
    for _ in range(2):
        path = locate(f"{hub.url}/plain/one/model.npz?download=true")
        assert path.name == "model.npz" and path.read_bytes() == b"one"
        assert locate(f"{hub.url}/plain/two/model.npz").read_bytes() == b"two"
    assert len(hub.seen) == 2
    assert path.is_relative_to(tmp_path / "cache")


def test_a_url_without_a_name_stays_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    hub.files["%2E%2E"] = b"x"
    path = locate(f"{hub.url}/plain/%2E%2E")
    assert path.name == "weights" and path.is_relative_to(tmp_path / "cache")


def test_a_url_that_is_not_there(hub: Hub) -> None:
    assert "answered 404" in refused(f"{hub.url}/plain/other.npz")


def test_a_model_of_augreg(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augreg, "AUGREG", f"{hub.url}/plain")
    monkeypatch.setattr(augreg, "INDEX", f"{hub.url}/plain/index.csv")
    rows = ["B/16,i21k,0.4,worse,cifar100,224,0.9,a", "B/16,i21k,0.5,better,cifar100,224,0.8,b"]
    hub.files |= {"index.csv": "\n".join([",".join(augreg.COLUMNS), *rows]).encode(), "better.npz": b"x", "b.npz": b"y"}
    assert locate("augreg://B/16").read_bytes() == b"x"
    assert locate("augreg://B/16/cifar100").read_bytes() == b"y"
    assert hub.seen == [f"GET /plain/{name}" for name in ("index.csv", "better.npz", "b.npz")]


def test_unknown_schemes() -> None:
    assert refused("htps://host/a.npz").endswith("the scheme htps:// is unknown; did you mean https://?")
    expected = "is unknown; known: https://, http://, hf://, augreg://, gs://, s3://, file://"
    assert refused("nonsense://host/a.npz").endswith(expected)


# Other file systems.


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.pipe({f"/bucket/vit/{path}": body for path, body in FILES.items()})
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_file_of_another_file_system_is_copied_once(bucket: fsspec.AbstractFileSystem) -> None:
    given = "memory://bucket/vit/model.safetensors"
    path = locate(given)
    assert path.name == "model.safetensors" and path.read_bytes() == FILES["model.safetensors"]
    bucket.rm("/bucket", recursive=True)
    assert locate(given) == path
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert refused("memory://bucket/vit/other.npz").endswith("does not exist; check its spelling")


def test_a_folder_of_another_file_system(bucket: fsspec.AbstractFileSystem) -> None:
    folder = locate("memory://bucket/vit/")
    assert contents(folder) == {name: FILES[name] for name in ("config.json", "model.safetensors")}


def test_a_copy_that_breaks_off_is_not_taken_for_whole(
    bucket: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, copy_file = "memory://bucket/vit", address._copy_file

    def breaks(system, path, to, show):
        if path.endswith("model.safetensors"):
            to.write_bytes(b"half")
            raise ConnectionResetError("reset by peer")
        copy_file(system, path, to, show)

    with monkeypatch.context() as broken:
        broken.setattr(address, "_copy_file", breaks)
        message = refused(given)
    assert f"cannot fetch {given} (ConnectionResetError: reset by peer); check the network" in message
    assert (locate(given) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("given", "module", "install"),
    [
        (
            "gs://vit_models/augreg/a.npz",
            "gcsfs",
            "pip install gcsfs, or read a public file at https://storage.googleapis.com/vit_models/augreg/a.npz",
        ),
        ("s3://bucket/a.npz", "s3fs", "pip install s3fs"),
    ],
)
def test_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, module: str, install: str
) -> None:
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        locate(given)
    assert str(caught.value) == f"reading {given[:5]} needs another package: {install}"


# The Hub.


@pytest.mark.parametrize("given", ["hf://org/name", "hf://org/name/", "hf://org/name@v1", "https://hf.co/org/name"])
def test_a_repository(hub: Hub, tmp_path: Path, given: str) -> None:
    folder = locate(given)
    assert contents(folder) == {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert folder.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    "given",
    ["hf://org/name/extra/model.safetensors", "https://huggingface.co/org/name/blob/v1/extra/model.safetensors"],
)
def test_a_file_of_a_repository(hub: Hub, given: str) -> None:
    path = locate(given)
    assert contents(path.parent) == {"model.safetensors": b"others", "config.json": FILES["extra/config.json"]}
    assert contents(path.parents[1]).keys() == {"extra/model.safetensors", "extra/config.json"}


def test_an_index_brings_its_shards(hub: Hub) -> None:
    hub.files |= {"model.safetensors.index.json": b"{}", "model-00001-of-00001.safetensors": b"shard"}
    path = locate("hf://org/name/model.safetensors.index.json")
    assert (path.parent / "model-00001-of-00001.safetensors").read_bytes() == b"shard"


def test_a_cached_repository_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate("hf://org/name")
    monkeypatch.setenv("HF_ENDPOINT", _dead_end())
    assert locate("hf://org/name") == folder
    assert "cannot fetch hf://org/name@v1, and it is not in the cache (" in refused("hf://org/name@v1")
    assert "cannot fetch hf://org/name/extra/model.safetensors" in refused("hf://org/name/extra/model.safetensors")


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = locate("hf://org/name")
    requests = len(hub.seen)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read from the environment at its import
    assert locate("hf://org/name") == folder
    assert "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it" in refused("hf://org/other")
    assert len(hub.seen) == requests


def test_a_repository_without_weights(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    assert "has no .safetensors or .npz file at its top (only PyTorch's .bin?)" in refused("hf://org/name")
    assert "the repository has no other.npz" in refused("hf://org/name/other.npz")


@pytest.mark.parametrize("given", ["hf://resnet", "hf://", "hf://org/na me", "hf://@main/name", "hf://org/name@"])
def test_no_address_on_the_hub(given: str) -> None:
    expected = "expected hf://org/name[@revision][/file], e.g. hf://google/vit-base-patch16-224"
    assert refused(given) == f"{given} is no address on the Hugging Face Hub: {expected}"


def test_a_name_that_the_hub_does_not_allow(hub: Hub) -> None:
    assert "is no address on the Hugging Face Hub: " in refused("hf://org/na--me")
    assert not hub.seen


@pytest.mark.parametrize(
    ("refuse", "given", "message"),
    [
        ((0, ""), "hf://org/other", "does not exist on the Hub, or is private: .* run `hf auth login` or set HF_TOKEN"),
        ((0, ""), "hf://org/name@v7", "org/name has no revision 'v7'; expected a branch, a tag or a commit"),
        ((403, "GatedRepo"), "hf://org/name", "accept its conditions at https://huggingface.co/org/name, then run `hf"),
        ((403, ""), "hf://org/name", r"the Hub refuses access \(403\); run `hf auth login`"),
        ((500, ""), "hf://org/name", r"cannot fetch hf://org/name, and it is not in the cache \(HfHubHTTPError: "),
    ],
)
def test_what_the_hub_refuses(hub: Hub, refuse: tuple[int, str], given: str, message: str) -> None:
    hub.refuse = refuse
    assert re.search(message, refused(given))


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("hf://org/name").endswith("needs the package huggingface_hub: pip install 'vit_jax[hf]'")
