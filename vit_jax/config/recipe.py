"""Config files: what they start from and change, how they run, and where in them a mistake is."""

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from vit_jax.command import UserError
from vit_jax.config import plugins, values
from vit_jax.config.older import rename
from vit_jax.config.parse import Tree, from_dict, load_plugins, name_of, require_known, to_dict
from vit_jax.config.schema import NAMED, Config, Schema, schema, schema_of
from vit_jax.manifest import Manifest

PATIENCE_SECONDS = 5.0  # a config file sets fields, and computes nothing


class FieldError(UserError):
    """A mistake in a field that a config file sets."""


class Recipe(ConfigDict):
    """The whole configuration, or one group of it. While it is locked, a wrong field is an error where it is set.

    A copy checks no more than a locked ConfigDict does: it knows neither its group nor the whole.
    """

    _group: str | None = None  # "" of the whole
    _whole: "Recipe"

    def __init__(self, tree: Mapping[str, Any] | None = None, group: str | None = None, whole: "Recipe | None" = None):
        super().__init__()
        object.__setattr__(self, "_group", group)
        object.__setattr__(self, "_whole", whole or self)
        for name, value in (tree or {}).items():
            self[name] = Recipe(value, name, self) if isinstance(value, Mapping) else value

    def __getitem__(self, name: str) -> Any:
        if self._group is None or name in self:
            return super().__getitem__(name)
        owner, name = self._owner(self._path(name, self._known()))
        return super(Recipe, owner).__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if self._group is None or not self.is_locked or isinstance(value, FieldReference):
            super().__setitem__(name, value)
            return
        known = self._known()
        path = self._path(name, known)
        try:
            if path in self._whole and path not in known:
                value = self._whole._filled(path, value)
            else:
                require_known(path, known)
                value = values.check(value, known[path], path)
                value = plugins.load(value) if path == "plugins" else value
        except UserError as mistake:
            raise FieldError(str(mistake)) from mistake
        owner, name = self._owner(path)
        with owner.unlocked(), owner.ignore_type():
            super(Recipe, owner).__setitem__(name, value)

    def _known(self) -> Schema:
        names = {group: self._whole[group]["name"] for group in NAMED}
        return schema(names | {self._group: self["name"]} if self._group in NAMED else names)

    def _path(self, name: str, known: Schema) -> str:
        """The path that a field of this group has today."""
        return rename(f"{self._group}.{name}" if self._group else name, known, tell=True)

    def _owner(self, path: str) -> tuple["Recipe", str]:
        """The group in which a field lies, and its name there."""
        group, _, name = path.rpartition(".")
        return (self if group == self._group else self._whole[group] if group else self._whole), name

    def _filled(self, group: str, given: Any) -> "Recipe":
        """A group of the given fields, each checked; the others at their defaults."""
        if group in NAMED:
            named = Recipe({"name": name_of(group, given)}, group, self).lock()
            named.update(given)
            return Recipe(NAMED[group].settings(**named), group, self).lock()
        if not isinstance(given, Mapping | ConfigDict):
            require_known(group, schema_of(Config()))
        filled = Recipe(dataclasses.asdict(getattr(Config(), group)), group, self).lock()
        filled.update(given)
        return filled


def default() -> Recipe:
    """Every field at its default: locked, so that a misspelt field is an error where it is written."""
    return Recipe(to_dict(Config()), "").lock()


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of `path.py[:arg]` or `path.json`, changed by `field=value` overrides.

    Raises `UserError` for a missing file, an unknown field, a wrong type or a value out of range.
    """
    path, _, arg = spec.partition(":")
    path = os.path.expanduser(path)
    if os.path.isfile(os.path.join(path, "config.json")):
        raise UserError(f"config file {path!r} is a run's folder; give {os.path.join(path, 'config.json')}")
    if not os.path.isfile(path):
        folder, name = os.path.split(path)
        near = difflib.get_close_matches(name, [known.name for known in Path(folder).glob("*.py")], 1)
        hint = (
            f"did you mean {os.path.join(folder, near[0])}?"
            if near
            else "give the path of a config file, e.g. configs/digits.py"
        )
        raise UserError(f"config file {path!r} does not exist; {hint}")
    load_plugins({}, overrides)  # whose names the file may use
    tree = _read_json(Path(path), arg) if path.endswith(".json") else run_file(Path(path), arg)
    return from_dict(tree, overrides)


class UnknownChoice(UserError):
    """An argument that a config file does not know; `choices` are those that it does."""

    def __init__(self, message: str, choices: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.choices = choices


def choose(arg: str, choices: Mapping[str, Any]) -> Any:
    """The choice that a config file's argument names; "" is the first. Raises `UnknownChoice`, which lists them."""
    if arg and not any(choices):
        raise UnknownChoice(f"config argument {arg!r}: this file takes none; leave out `:{arg}`", choices)
    if arg and arg not in choices:
        raise UnknownChoice(f"config argument {arg!r} is unknown; choose from {', '.join(choices)}", choices)
    return choices[arg or next(iter(choices))]


def variants(path: Path) -> Mapping[str, Any]:
    """The choices of a config file's argument, with what each stands for; none of a file that reads it by itself."""
    try:
        run_file(path, "?")  # which no file knows
    except UnknownChoice as unknown:
        return unknown.choices
    except UserError:
        pass
    return {}


def run_file(path: Path, arg: str) -> Tree:
    """What the file's `get_config(arg)` returns, for another config file too; its mistakes become one line.

    Raises `UserError` with the place of the mistake.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {str(path)!r} ends in neither .py nor .json; give a config file")
    module = importlib.util.module_from_spec(spec)
    try:
        with _told_of_loops(path):
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError(f"{path} has no function get_config(arg); see configs/digits.py")
            tree = module.get_config(arg)
    except FieldError as mistake:
        raise UserError(f"{plugins.place(mistake, path)}: {mistake}") from mistake
    except UserError:  # of the argument
        raise
    except (Exception, SystemExit) as error:  # whatever a mistake in the file leads to
        text = " ".join(str(error).split())
        raise UserError(f"{plugins.place(error, path)}: {type(error).__name__}: {text}") from error
    if not isinstance(tree, Mapping | ConfigDict):
        raise UserError(f"get_config returned {type(tree).__name__}, not a ConfigDict; start from config.default()")
    return tree


@contextlib.contextmanager
def _told_of_loops(path: Path) -> Iterator[None]:
    """Warns where a config file runs longer than it can need; Python cannot end it."""
    warning = "%s has been running for %g seconds; if it loops, end it with Ctrl-C and mend it"
    timer = threading.Timer(PATIENCE_SECONDS, logging.getLogger(__name__).warning, (warning, path, PATIENCE_SECONDS))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read_json(path: Path, arg: str) -> Mapping[str, Any]:
    if arg:
        raise UserError(f"config argument {arg!r}: {path} takes none; leave out `:{arg}`")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; repair it, or give the config file that it came from") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a JSON {type(tree).__name__}, expected an object of config groups")
    Manifest(path.parent).check(path, "put a copy back, or give the config file that it came from")
    return tree
