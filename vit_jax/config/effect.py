"""A flag that changes nothing is a mistake, told before the run: each field declares what reads it, see `setting`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from vit_jax.command import UserError
from vit_jax.config.older import rename_flags
from vit_jax.config.schema import Config, schema_of, value_of
from vit_jax.setting import active_if

# Who reads fields of a finished model, and how its mistakes end.
READERS = {
    "evaluate": "the evaluation of a finished run; train with it or leave it out",
    "texture": "this report; leave it out",
    "predict": "the predictions of this model; leave it out",
    "weights": "the predictions of this model; leave it out",  # which have no run
}


def check_effect(configs: Sequence[Config], overrides: Sequence[str]) -> None:
    """Raises `UserError` for one of the `field=value` overrides that changes nothing in any of the configurations.

    An override that turns off what would read the value excuses it: a policy turned off by hand may keep its strength.
    What a file sets is left alone, too: its variants build on each other, and turn off what others tuned.
    """
    known = {key for config in configs for key in schema_of(config)}
    flags = [override.partition("=")[0] for override in rename_flags(overrides, known)]
    for longer in ("steps", "seconds", "flops") if "train.epochs" in flags else ():
        if all(lengths := [getattr(config.train, longer) for config in configs]):
            raise UserError(
                f"train.epochs changes nothing beside train.{longer}={lengths[0]:g}; "
                f"leave it out, or set train.{longer}=0"
            )
    for key in flags:
        if key.startswith("corruption."):
            raise UserError(
                f"{key} changes nothing in training, nor in its test; corrupt images with "
                f"`vit_jax.evaluate --config.{key}`, or `vit_jax.compare --evaluate {key}=...`"
            )
        for value, default, needed in unread(configs, key):
            decided = [need for need in map(_key, needed) if need in flags]
            if not any(value_of(config, need) in ("none", "", 0, False, ()) for config in configs for need in decided):
                raise UserError(
                    f"{key}={value!r} changes nothing without {' or '.join(needed)}; "
                    f"set that too, or leave {key} at {default!r}"
                )


def check_read(overrides: Sequence[str], by: str, config: Config | None = None) -> None:
    """Raises `UserError` for one of the `field=value` overrides that one of `READERS` does not read.

    `config` is the one that it reads, if that is known yet. Of what is no field, opening the model tells.
    """
    config = config or Config()
    known, groups = schema_of(config), {f.name: f for f in fields(Config)}
    overrides = rename_flags(overrides, known)
    readers = {by, "predict"} if by == "weights" else {by}
    if config.evaluate.split == "train" or "evaluate.split=train" in overrides:
        readers.add("train_split")
    for key in (key for override in overrides if (key := override.partition("=")[0]) in known):
        declared = (groups[key.partition(".")[0]], known[key])
        if not readers & {reader for part in declared for reader in part.metadata.get("read_by", "").split()}:
            raise UserError(f"{key} changes nothing in {READERS[by]}")


def unread(configs: Sequence[Config], key: str) -> Iterator[tuple[Any, Any, list[str]]]:
    """If the field differs from its default and nothing reads it: its value, its default, what would make it read."""
    found = [(value_of(config, key), schema_of(config)[key]) for config in configs if key in schema_of(config)]
    changed = [(value, f) for value, f in found if value != f.default]
    for value, f in changed[:1]:
        for clause in filter(None, active_if(f).split(" and ")):
            needed = clause.split(" or ")
            if not any(_holds(config, need) for config in configs for need in needed):
                yield value, f.default, needed


def _key(need: str) -> str:
    return need.partition("=")[0].rstrip("!")


def _holds(config: Config, need: str) -> bool:
    wanted, value = need.partition("=")[2], value_of(config, _key(need))
    return (value == wanted) != ("!" in need) if wanted else bool(value)
