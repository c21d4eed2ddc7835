"""Proof of a folder's files: one manifest with the size and the checksum of each, which checks itself.

Only the process that trains writes it. A file's new proof is there before the file, beside the old one: whatever moment
a process is killed at, the file that is there has its proof.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vit_jax.command import UserError
from vit_jax.files import write_atomically

FILE = "checksums.json"
FORMAT = 1
RETRIES, RETRY_SECONDS = 3, 0.05  # a reader may meet a file and a manifest of different moments
Proof = dict[str, Any]  # {"bytes": size, "sha256": checksum of so many bytes}
T = TypeVar("T")


class Manifest:
    """The proofs of the files in a folder; without a manifest, or where it does not list a file, there is none."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._prefixes: dict[str, tuple[Any, int, int]] = {}  # of growing files: checksum so far, of how much, inode

    def proofs(self) -> dict[str, list[Proof]]:
        """By file name; {} without a manifest, and with a warning of one that is damaged."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            files = content["files"]
            if content["format"] > FORMAT:
                raise UserError(
                    f"{self.path} has format {content['format']}, this version reads up to {FORMAT}; "
                    "install a newer vit_jax"
                )
            if content["sha256"] != _sha256(_canonical(files)):
                raise ValueError("its checksum differs")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = "%s is damaged (%s): the files beside it are read unchecked; delete it, the next start of the "
            logging.getLogger(__name__).warning(text + "training writes it anew", self.path, error)
            return {}
        return files

    def write(self, path: Path, content: str) -> None:
        """Writes a file of the folder, whole or not at all, and its proof."""
        before = [proof_of(path.read_bytes())] if path.is_file() else []
        self._update({path.name: [*before, proof_of(content.encode())]})
        write_atomically(path, content)

    def note(self, paths: Sequence[Path]) -> None:
        """Lists files as they are; those that are not there are forgotten."""
        self._update({path.name: [self._proof_of_file(path)] if path.is_file() else [] for path in paths})

    def forget(self, paths: Sequence[Path]) -> None:
        """No longer lists these files: call it before something else changes them."""
        self._update({path.name: [] for path in paths})

    def fault(self, path: Path) -> str:
        """What is wrong with a file; "" of one that is as it was written, or not listed."""
        for attempt in range(RETRIES):
            if attempt:
                time.sleep(RETRY_SECONDS * attempt)
            listed = self.proofs().get(path.name)
            if not listed or any(_fits(path, proof) for proof in listed):
                return ""
        if not path.exists():
            return "it is missing"
        return f"it is not what was written; where you changed it yourself, delete {FILE} beside it"

    def check(self, path: Path, remedy: str) -> None:
        """Raises `UserError` for a file that is not as it was written."""
        if fault := self.fault(path):
            raise damaged(path, fault, remedy)

    def _proof_of_file(self, path: Path) -> Proof:
        """Reads only what was added since it last did."""
        checksum, done, inode = self._prefixes.get(path.name, (hashlib.sha256(), 0, 0))
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            if now.st_ino != inode or now.st_size < done:  # a file of its own: the former one was removed
                checksum, done = hashlib.sha256(), 0
            file.seek(done)
            while chunk := file.read(2**20):
                checksum.update(chunk)
                done += len(chunk)
        if path.suffix == ".jsonl":
            self._prefixes[path.name] = checksum.copy(), done, now.st_ino
        return {"bytes": done, "sha256": checksum.hexdigest()}

    def _update(self, changes: Mapping[str, list[Proof]]) -> None:
        before = self.proofs()
        files = {name: proofs for name, proofs in sorted({**before, **changes}.items()) if proofs}
        if files == before:
            return
        for name in changes:
            if not changes[name]:
                self._prefixes.pop(name, None)
        content = {"format": FORMAT, "files": files, "sha256": _sha256(_canonical(files))}
        write_atomically(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def proof_of(content: bytes) -> Proof:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_json(path: Path, kind: type[T], remedy: str, keys: Sequence[str] = ()) -> T:
    """The content of a JSON file, of this kind and with these keys; `remedy` says what to do if it is not."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), remedy) from error
    content = parse_json(path, text, kind, remedy, keys)
    Manifest(path.parent).check(path, remedy)
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with its own checksum: of a file that others than the training process write."""
    return {**content, "sha256": _sha256(_canonical(json.loads(json.dumps(content))))}


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """What `sealed` was given; the file of an earlier version, which has no checksum, is read as it is."""
    content = read_json(path, dict, remedy)
    seal = content.pop("sha256", None)
    if seal is not None and seal != _sha256(_canonical(content)):
        raise damaged(path, "its checksum differs", remedy)
    return content


def parse_json(path: Path, text: str, kind: type[T], remedy: str, keys: Sequence[str] = ()) -> T:
    """As `read_json`, of the text that a file holds."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error), remedy) from error
    if not isinstance(content, kind):
        raise damaged(path, f"it holds a JSON {type(content).__name__}, expected a {kind.__name__}", remedy)
    if missing := [key for key in keys if key not in content]:  # type: ignore[operator]
        raise damaged(path, f"it lacks {missing[0]!r}", remedy)
    return content


def damaged(path: Path, fault: str, remedy: str) -> UserError:
    return UserError(f"{path} cannot be read ({fault}); {remedy}")


def _fits(path: Path, proof: Proof) -> bool:
    """Whether the file has this checksum; one that grows line by line may have become longer."""
    try:
        if path.suffix != ".jsonl" and path.stat().st_size != proof["bytes"]:
            return False
        checksum, left = hashlib.sha256(), proof["bytes"]
        with path.open("rb") as file:
            while left and (chunk := file.read(min(left, 2**20))):
                checksum.update(chunk)
                left -= len(chunk)
    except OSError:
        return False
    return not left and checksum.hexdigest() == proof["sha256"]


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
