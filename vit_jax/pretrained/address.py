"""From the address of weights to a file or folder here: paths, URLs, buckets, and the Hugging Face Hub.

What was fetched stays in a cache and is not asked for again, but on the Hub, whose branches may move.
"""

import difflib
import fnmatch
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vit_jax.command import UserError
from vit_jax.download import alone, cache_dir, fetch, progress
from vit_jax.pretrained import augreg
from vit_jax.pretrained.files import SIDE_FILES, WEIGHTS, need

FORMS = "a file (.npz, .safetensors), a folder, https://..., gs://..., s3://..., hf://org/name or augreg://B/16"
SCHEMES = ("https", "http", "hf", "augreg", "gs", "s3", "file")  # and what fsspec knows
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}
REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"
ON_THE_HUB = re.compile(rf"{REPOSITORY}(@(?P<revision>[^/@]+))?(/(?P<file>.+))?")
IN_A_BROWSER = re.compile(rf"https?://(huggingface\.co|hf\.co)/{REPOSITORY}(/(resolve|blob|tree)/(?P<rest>[^?#]+))?")
NAME = r"[A-Za-z][\w+-]*(/[\w+-]+)?"
LOG_IN = "run `hf auth login` or set HF_TOKEN"


def cache() -> Path:
    """Where fetched weights lie."""
    return cache_dir()


def locate(address: str) -> Path:
    """The local file or folder of the weights at an address, fetched where need be.

    A path; a name, as `augreg.known` takes them; http(s):// (resumed where it broke off); hf://org/name[@revision][/file]
    and the Hub's web addresses; augreg://B/16 (see `augreg.resolve`); gs://, s3:// and whatever else fsspec reads: a
    file, or a folder, of which the weights and their side files are fetched.

    Raises:
        UserError: an address of no known form, nothing there, no access, or neither network nor a cached copy.
    """
    scheme, separator, rest = address.partition("://")
    in_browser = IN_A_BROWSER.match(address)
    if not separator:
        return _local(address)
    if in_browser:
        revision, _, file = (in_browser["rest"] or "main").partition("/")
        return _hub(address, in_browser["repo"], revision, file.rstrip("/"))
    match scheme.lower():
        case "hf":
            return _hub(address, **_parse_hub(address, rest))
        case "augreg":
            return locate(augreg.resolve(address, lambda url: fetch(url, _place(url)).read_text(encoding="utf-8")))
        case "http" | "https":
            return fetch(address, _place(address))
        case "file":
            return _local(unquote(rest))
    return _remote(address, scheme.lower())


def _local(path: str) -> Path:
    if not path:
        raise UserError(f"the address of the weights is empty; give {FORMS}")
    if os.path.exists(os.path.expanduser(path)):  # False also for a path that no file system takes
        return Path(os.path.expanduser(path))
    if re.fullmatch(NAME, path) and (known := augreg.known(path)):
        return locate(known[1])
    if re.fullmatch(REPOSITORY, path) and not any(fnmatch.fnmatch(path, pattern) for pattern in WEIGHTS):
        raise UserError(f"{path} does not exist here; if it is a run, train that first; of the Hub, write hf://{path}")
    close = difflib.get_close_matches(path.lower(), augreg.PUBLISHED, 1)
    hint = f"did you mean {close[0]}?" if close else f"give {FORMS}, or a name: {', '.join(augreg.PUBLISHED)}"
    raise UserError(f"{path} does not exist; {hint}")


def _place(address: str) -> Path:
    """A file of its own in the cache for each address, with the address's last name."""
    name = unquote(urlsplit(address).path).rstrip("/").rpartition("/")[2]
    return cache() / hashlib.sha256(address.encode()).hexdigest()[:16] / (name if name.strip(".") else "weights")


def _remote(address: str, scheme: str) -> Path:
    """A copy of what fsspec reads there."""
    place = _place(address)
    if place.exists():
        return place
    system, path = _file_system(address, scheme)
    part = place.with_name(f"{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with alone(place):
            if not place.exists():  # another process may have fetched it meanwhile
                _copy(system, path, part)
                os.replace(part, place)
    except FileNotFoundError as error:
        raise UserError(f"{address} does not exist; check its spelling") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"cannot fetch {address} ({_told(error)}); check the network and your credentials, or "
            f"fetch it elsewhere and give its path"
        ) from error
    return place


def _file_system(address: str, scheme: str) -> tuple[Any, str]:
    import fsspec  # with etils[epath]

    if scheme not in (*SCHEMES, *fsspec.available_protocols()):
        close = difflib.get_close_matches(scheme, SCHEMES, 1)
        hint = f"did you mean {close[0]}://?" if close else f"known: {', '.join(f'{s}://' for s in SCHEMES)}"
        raise UserError(f"{address}: the scheme {scheme}:// is unknown; {hint}")
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        public = f", or read a public file at https://storage.googleapis.com/{address[5:]}" if scheme == "gs" else ""
        install = f"pip install {PACKAGES[scheme]}" if scheme in PACKAGES else str(error)
        raise UserError(f"reading {scheme}:// needs another package: {install}{public}") from error
    except Exception as error:  # credentials are looked for here, by some
        raise UserError(f"cannot open {address} ({_told(error)})") from error


def _told(error: BaseException) -> str:
    """Its kind and first line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _copy(system: Any, path: str, to: Path) -> None:
    if not system.isdir(path):
        with progress(path.rpartition("/")[2]) as show:
            return _copy_file(system, path, to, show)
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for inside in system.ls(path, detail=False):
        name = inside.rstrip("/").rpartition("/")[2]
        if name in SIDE_FILES or any(fnmatch.fnmatch(name, pattern) for pattern in WEIGHTS):
            with progress(name) as show:
                _copy_file(system, inside, to / name, show)


def _copy_file(system: Any, path: str, to: Path, show: Callable[[int, int], None]) -> None:
    total = system.size(path) or 0
    with system.open(path, "rb") as source, open(to, "wb") as target:
        while chunk := source.read(1 << 22):
            target.write(chunk)
            show(target.tell(), total)


def _parse_hub(address: str, rest: str) -> dict[str, str]:
    found = ON_THE_HUB.fullmatch(rest.rstrip("/"))
    if not found:
        raise UserError(
            f"{address} is no address on the Hugging Face Hub: expected hf://org/name[@revision][/file], "
            "e.g. hf://google/vit-base-patch16-224"
        )
    return {key: unquote(value or "") for key, value in found.groupdict().items()}


def _hub(address: str, repo: str, revision: str, file: str) -> Path:
    """The snapshot of a repository, or one file in it; cached by huggingface_hub, in $VIT_JAX_CACHE where that is set.

    Without $VIT_JAX_CACHE the cache is the one that other programs share, see HF_HOME.
    """
    hub = need("huggingface_hub", address)
    parent = file.rpartition("/")[0] + "/" if "/" in file else ""
    wanted = [file, *(parent + name for name in SIDE_FILES)] if file else [*WEIGHTS, *SIDE_FILES]
    if file.endswith(".index.json"):
        wanted.append(f"{parent}*.safetensors")
    try:
        folder = hub.snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=wanted,
            ignore_patterns=None if file else ["*/*"],
            endpoint=os.environ.get("HF_ENDPOINT") or None,
            cache_dir=cache() / "hub" if os.environ.get("VIT_JAX_CACHE") else None,
        )
    except Exception as error:  # its HTTP library's errors pass through, and that library changes between versions
        raise UserError(_hub_mistake(hub, address, repo, revision, error)) from error
    return _in_snapshot(Path(folder), address, file)


def _in_snapshot(folder: Path, address: str, file: str) -> Path:
    if file and not (folder / file).exists():
        raise UserError(f"{address}: the repository has no {file}; see its list of files")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not file and not any(fnmatch.filter(names, pattern) for pattern in WEIGHTS):
        raise UserError(
            f"{address} has no .safetensors or .npz file at its top (only PyTorch's .bin?); choose another repository, "
            "or name a file in a folder of it: hf://org/name/folder/file"
        )
    return folder / file if file else folder


def _hub_mistake(hub: Any, address: str, repo: str, revision: str, error: Exception) -> str:
    """What went wrong on the Hub, and what to do, in one line."""
    errors, cause = hub.errors, error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if isinstance(error, errors.HFValidationError):
        return f"{address} is no address on the Hugging Face Hub: {error}"
    if isinstance(error, errors.GatedRepoError):
        return f"{address} is gated: accept its conditions at https://huggingface.co/{repo}, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address}: {repo} has no revision {revision!r}; expected a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{address} does not exist on the Hub, or is private: check its spelling; if it is private, {LOG_IN}"
    if status in (401, 403):
        return f"{address}: the Hub refuses access ({status}); {LOG_IN} with an account that may read it"
    if isinstance(error, errors.LocalEntryNotFoundError) and hub.constants.HF_HUB_OFFLINE:
        return f"{address} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or fetch it elsewhere"
    return (
        f"cannot fetch {address}, and it is not in the cache ({_told(cause)}); check the network, or "
        "fetch it elsewhere and give its path"
    )
