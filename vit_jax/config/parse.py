"""From config files, JSON and overrides to a validated `Config`, and back."""

import dataclasses
import difflib
import importlib.util
import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.config.schema import Config, validate
from vit_jax.config.values import a, convert, from_text

# What a resumed run may change: where and how fast it computes, not what.
MAY_DIFFER = (
    r"^mesh\.|^log\.|^checkpoint\.|^perturb\.|^data\.(data_dir|cache|threads|max_bad_fraction)$|^model\.(scan|remat|attention)$|"
    r"^evaluate\.(every_steps|batch_size|split)$|^train\.deterministic$"
)

_OTHER_TYPE = r"Could not override field '(\w+)' .*?\. (.*) is of original type <class '(\w+)'> .* <class '(\w+)'>"

Tree: TypeAlias = Mapping[str, Any] | ConfigDict


def default() -> ConfigDict:
    """Every field at its default: locked, so that a misspelt field is an error where it is written."""
    return ConfigDict(to_dict(Config())).lock()


def choose(arg: str, choices: Mapping[str, Any]) -> Any:
    """The choice that a config file's argument names; "" is the first. Raises `UserError` that lists them."""
    if arg and not any(choices):
        raise UserError(f"config argument {arg!r}: this file takes none; leave out `:{arg}`")
    if arg and arg not in choices:
        raise UserError(f"config argument {arg!r} is unknown; choose from {', '.join(choices)}")
    return choices[arg or next(iter(choices))]


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of `path.py[:arg]` or `path.json`, changed by `field=value` overrides.

    Raises `UserError` for a missing file, an unknown field, a wrong type or a value out of range.
    """
    path, _, arg = spec.partition(":")
    if (Path(path) / "config.json").is_file():
        raise UserError(f"config file {path!r} is a run's folder; give {os.path.join(path, 'config.json')}")
    if not Path(path).is_file():
        folder, name = os.path.split(path)
        near = difflib.get_close_matches(name, [known.name for known in Path(folder).glob("*.py")], 1)
        hint = (
            f"did you mean {os.path.join(folder, near[0])}?"
            if near
            else "give the path of a config file, e.g. configs/digits.py"
        )
        raise UserError(f"config file {path!r} does not exist; {hint}")
    tree = _read_json(Path(path), arg) if path.endswith(".json") else run_file(Path(path), arg)
    return from_dict(tree, overrides)


def from_dict(tree: Tree, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a nested dict with all or some of the fields."""
    tree = {"model": dict(Config().model), **_plain(tree)}
    schema = dict(_schema(_model_name(tree)))
    flat = dict(_leaves(tree, schema))
    for override in overrides:
        key, _, text = override.partition("=")
        _require_known(key, schema)
        if key == "model.name":
            raise UserError("model.name decides the other fields of `model`; choose the model by the config's argument")
        flat[key] = from_text(text, schema[key], key)
    values = {key: convert(value, schema[key], key) for key, value in flat.items()}
    config = _build(values)
    validate(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts."""
    return {**dataclasses.asdict(config), "model": dict(config.model)}


def to_json(config: Config) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields, of those that decide a run's result, in which two configurations differ: path -> (old, new)."""
    before, after = dict(_flatten(to_dict(old))), dict(_flatten(to_dict(new)))
    # Where images are kept decides where they are cropped, if nothing else does: the host's crops are others.
    placed = {"data.cache"} if new.augment.crop_area and new.data.crop_on == "auto" else set()
    return {
        key: (before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and (key in placed or not re.search(MAY_DIFFER, key))
    }


def _read_json(path: Path, arg: str) -> Mapping[str, Any]:
    if arg:
        raise UserError(f"config argument {arg!r}: {path} takes none; leave out `:{arg}`")
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; repair it, or give the config file that it came from") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a JSON {type(tree).__name__}, expected an object of config groups")
    return tree


def run_file(path: Path, arg: str) -> Tree:
    """What the file's `get_config(arg)` returns, for another config file too; its mistakes become one line.

    Raises `UserError` with the place of the mistake.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{path} has no function get_config(arg); see configs/digits.py")
        tree = module.get_config(arg)
    except UserError:
        raise
    except Exception as error:  # whatever a mistake in the file leads to
        file = str(path.absolute())
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        lines = [(frame.lineno, frame.line or "") for frame in frames]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append((error.lineno, ""))
        number, line = lines[-1] if lines else (None, "")
        place = f"{path}:{number}" if lines else str(path)
        raise UserError(f"{place}: {_mistake(error, line)}") from error
    if not isinstance(tree, Mapping | ConfigDict):
        raise UserError(f"get_config returned {type(tree).__name__}, not a ConfigDict; start from config.default()")
    return tree


def _mistake(error: Exception, line: str) -> str:
    """What is wrong in a line of a config file; of a field that is unknown or of another type what to write instead."""
    text = " ".join(str(error).split())
    if unknown := re.match(r"""\W*Key "(\w+)" does not exist .* Other fields present: (.*)""", text):
        name, fields = unknown[1], re.findall(r"'(\w+)\\?': ", unknown[2])
        close = difflib.get_close_matches(name, fields, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known beside it: {', '.join(fields)}"
        return f"config has no field {_path(name, line)!r}; {hint}"
    if other := re.match(_OTHER_TYPE, text):
        name, value, kind, wanted = other.groups()
        value = repr(value) if kind == "str" else value
        example = f"; write ({value},)" if wanted == "tuple" else ""
        return f"{_path(name, line)}={value} is {a(kind)}, expected {a(wanted)}{example}"
    return f"{type(error).__name__}: {text}"


def _path(name: str, line: str) -> str:
    """`data.name` of `c.data.name = 3`; the name alone where the line does not show it."""
    found = re.search(rf"\w+\.((?:\w+\.)*{name})\b", line)
    return found[1] if found else name


def _model_name(tree: Mapping[str, Any]) -> str:
    """The model that decides the fields of the group `model`."""
    name = tree["model"].get("name") if isinstance(tree["model"], Mapping) else tree["model"]
    if not isinstance(name, str):
        raise UserError("config.model has no name; start from models.settings(NAME), e.g. models.settings('vit/S16')")
    return name


def _schema(model_name: str) -> Iterator[tuple[str, Any]]:
    """Each field's path and type."""
    for f in dataclasses.fields(Config):
        if f.name == "model":
            yield "model.name", str
            yield from ((f"model.{name}", part.type) for name, part in models.fields(model_name).items())
        elif dataclasses.is_dataclass(f.type):
            yield from ((f"{f.name}.{part.name}", part.type) for part in dataclasses.fields(f.type))
        else:
            yield f.name, f.type


def _leaves(tree: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in _flatten(tree):
        if value == {} and _fields_of(key, schema):  # a group, all of it at the defaults
            continue
        _require_known(key, schema)
        yield key, value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _require_known(key: str, schema: Mapping[str, Any]) -> None:
    if key in schema:
        return
    if fields := _fields_of(key, schema):
        raise UserError(f"config.{key} is a group; set its fields: {', '.join(fields)}")
    by_name = [known for known in schema if known.endswith(f".{key.rsplit('.', 1)[-1]}")]
    close = difflib.get_close_matches(key, schema, 2, 0.7) or by_name
    group = _fields_of(key.split(".")[0], schema)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(group or schema)}"
    raise UserError(f"config has no field {key!r}; {hint}")


def _fields_of(group: str, schema: Mapping[str, Any]) -> list[str]:
    return [key for key in schema if key.startswith(f"{group}.")]


def _plain(tree: Tree) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping | ConfigDict) else value for key, value in tree.items()}


def _build(values: Mapping[str, Any]) -> Config:
    groups: dict[str, Any] = {}
    for key, value in values.items():
        group, _, name = key.partition(".")
        if name:
            groups.setdefault(group, {})[name] = value
        else:
            groups[group] = value
    given = groups.pop("model")
    built: dict[str, Any] = {
        f.name: f.type(**groups[f.name])
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type)
        else groups[f.name]
        for f in dataclasses.fields(Config)
        if f.name in groups
    }
    model = models.settings(given["name"], **{name: value for name, value in given.items() if name != "name"})
    return Config(model=model, **built)
