"""Modules from outside the package that register models, tasks, data sets and the like: the field `plugins`."""

import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path

from vit_jax.command import UserError


def load(names: Sequence[str]) -> tuple[str, ...]:
    """Imports each of the plug-ins, once; their names, those of files with the whole path.

    A plug-in is the name of a module or a file `.py`, looked up from the current folder. Raises `UserError` for one
    that is missing or fails.
    """
    return tuple(_load_file(name) if name.endswith(".py") else _load_module(name) for name in names)


def place(error: BaseException, path: Path) -> str:
    """`path:line` of the last line in the file that led to the error."""
    file = str(path.absolute())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)


def _load_file(name: str) -> str:
    path = Path(os.path.realpath(os.path.expanduser(name)))
    if not os.path.isfile(path):
        raise UserError(f"plugins: the file {name} does not exist; where it lies now, say by --config.plugins=FILE")
    if any(vars(module).get("__file__") == str(path) for module in list(sys.modules.values())):
        return str(path)  # also where another module imported it
    known_as = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files may have one name
    spec = importlib.util.spec_from_file_location(known_as, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[known_as] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a mistake in the file leads to
        del sys.modules[known_as]
        raise _told(error, place(error, path)) from error
    return str(path)


def _load_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"plugins: there is no module {name!r}; install it, or give its file, e.g. plugins=./{name}.py"
            ) from error
        raise _told(error, f"module {name}") from error
    return name


def _told(error: BaseException, where: str) -> UserError:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return UserError(f"plugins: {where}: {kind}{' '.join(str(error).split())}")
