"""From nested dicts, JSON and overrides to a validated `Config`, and back."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from vit_jax.command import UserError
from vit_jax.config import older, plugins, values
from vit_jax.config.schema import NAMED, Config, Schema, schema, validate

# What a resumed run may change: where and how fast it computes, not what.
MAY_DIFFER = (
    r"^plugins$|^mesh\.|^log\.|^checkpoint\.|^corruption\.|^data\.(data_dir|cache|threads|max_bad_fraction)$|"
    r"^model\.(scan|remat|attention)$|"
    r"^evaluate\.(every_steps|batch_size|split)$|^train\.deterministic$"
)

Tree: TypeAlias = Mapping[str, Any] | ConfigDict


def from_dict(tree: Tree, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a nested dict with all or some of the fields, changed by `field=value` overrides.

    Raises `UserError` for an unknown field, a wrong type or a value out of range.
    """
    tree = _plain(tree)
    loaded = load_plugins(tree, overrides)
    names = {group: name_of(group, tree.get(group, getattr(Config(), group))) for group in NAMED}
    known = schema(names)
    flat = {f"{group}.name": name for group, name in names.items()} | older.upgrade(dict(_flatten(tree)), known)
    flat = {key: value for key, value in flat.items() if value != {} or not _beside(key, known)}  # {}: the defaults
    for key in flat:
        require_known(key, known)
    for override in older.rename_flags(overrides, known):
        key, _, text = override.partition("=")
        require_known(key, known)
        if (group := key.removesuffix(".name")) in NAMED:
            raise UserError(f"{key} decides the other fields of `{group}`; choose the {group} by the config's argument")
        flat[key] = values.from_text(text, known[key].type, key)
    flat["plugins"] = loaded
    config = _build({key: values.check(value, known[key], key) for key, value in flat.items()})
    validate(config)
    return config


def load_plugins(tree: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Imports the plug-ins, which decide what other fields there are; their names."""
    given = [text for key, _, text in (override.partition("=") for override in overrides) if key == "plugins"]
    kind = tuple[str, ...]
    names = values.from_text(given[-1], kind, "plugins") if given else tree.get("plugins", ())
    return plugins.load(values.convert(names, kind, "plugins"))


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts."""
    return dataclasses.asdict(config) | {group: dict(getattr(config, group)) for group in NAMED}


def to_json(config: Config) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields, of those that decide a run's result, in which two configurations differ: path -> (old, new)."""
    before, after = dict(_flatten(to_dict(old))), dict(_flatten(to_dict(new)))
    if new.task["name"] == "classification":  # whose `auto` is what its old default said
        before, after = ({key: older.new_value(key, value) for key, value in x.items()} for x in (before, after))
    # Where images are kept decides where they are cropped, if nothing else does: the host's crops are others.
    placed = {"data.cache"} if new.augment.crop_area and new.data.crop_on == "auto" else set()
    if after.get("model.dtype") == "auto":  # which a run keeps as it was chosen
        after["model.dtype"] = before.get("model.dtype", "auto")
    return {
        key: (before.get(key), after.get(key))
        for key in before | after
        if before.get(key) != after.get(key) and (key in placed or not re.search(MAY_DIFFER, key))
    }


def name_of(group: str, values: Any) -> str:
    """The name that decides the fields of the group `model` or `task`."""
    name = values.get("name") if isinstance(values, Mapping | ConfigDict) else values
    if not isinstance(name, str):
        example = NAMED[group].names()[0]
        raise UserError(f"config.{group} has no name; start from {group}s.settings(NAME), e.g. {example!r}")
    return name


def require_known(key: str, known: Schema) -> None:
    """Raises `UserError`, with what was meant, unless the field is known."""
    if key in known:
        return
    if fields := _beside(key, known):
        raise UserError(f"config.{key} is a group; set its fields: {', '.join(fields)}")
    group, _, name = key.rpartition(".")
    beside = _beside(group, known)
    near = difflib.get_close_matches(name, [field.removeprefix(f"{group}.") for field in beside], 1)
    close = [f"{group}.{near[0]}"] if near else difflib.get_close_matches(key, known, 2, 0.7)
    close = close or [field for field in known if field.endswith(f".{name}")]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(beside or known)}"
    raise UserError(f"config has no field {key!r}; {hint}")


def _beside(group: str, known: Schema) -> list[str]:
    return [key for key in known if key.startswith(f"{group}.")]


def _plain(tree: Tree) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping | ConfigDict) else value for key, value in tree.items()}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _build(flat: Mapping[str, Any]) -> Config:
    parts: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        if group:
            parts.setdefault(group, {})[name] = value
        else:
            parts[name] = value
    for part in dataclasses.fields(Config):
        if part.name in NAMED:
            parts[part.name] = NAMED[part.name].settings(**parts[part.name])
        elif part.name in parts and isinstance(part.type, type) and dataclasses.is_dataclass(part.type):
            parts[part.name] = part.type(**parts[part.name])
    return Config(**parts)
