"""Checksums of all files below a folder that is written once: a checkpoint."""

import hashlib
import json
from pathlib import Path

from vit_jax.files import write_atomically

CHECKSUMS = "checksums.json"


class Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def write_checksums(folder: Path) -> None:
    """Notes the checksums of all files in a folder, unless it has done so before."""
    path = folder / CHECKSUMS
    if not path.exists():
        write_atomically(path, json.dumps(_checksums(folder), indent=1))


def verify(folder: Path, part: Path | None = None) -> None:
    """Raises `Damaged` if a file is missing or differs. A checkpoint cut off before its checksums passes.

    `part`: only what lies in this folder of it.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        inside = f"{part.relative_to(folder)}/" if part else ""
        written = {name: checksum for name, checksum in written.items() if name.startswith(inside)}
    except (ValueError, AttributeError) as error:
        raise Damaged(f"{CHECKSUMS} is not JSON") from error
    try:
        found = _checksums(folder, part)
    except OSError as error:
        raise Damaged(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            raise Damaged(f"{name} {'is missing' if name not in found else 'has changed since it was written'}")


def _checksums(folder: Path, part: Path | None = None) -> dict[str, str]:
    found = {}
    for path in sorted((part or folder).rglob("*")):
        if path.is_file() and not path.name.startswith(CHECKSUMS.split(".")[0]):
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
