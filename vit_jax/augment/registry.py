"""Operations from outside the package, run under the names in `augment.extra`.

    augment.register("invert", lambda key, image: 255 - image, stage="colour")

The stage says when an operation runs and on which part of an example:

- `geometry`: after flip and warp, `(key, arrays) -> arrays`. arrays is {"image": float32 [h w c] in 0..1} and, for
  a task with masks, "mask" [h w]. It moves both alike.
- `colour`: after policy and colours, `(key, image) -> image`, uint8 [h w c].
- `normalised`: after erasing and cutout, `(key, image) -> image`, float32 [h w c].
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax
from jax import Array
from jaxtyping import Key

from vit_jax.augment.settings import Settings
from vit_jax.command import UserError
from vit_jax.names import claim

Stage = Literal["geometry", "colour", "normalised"]
Operation = Callable[[Key[Array, ""], Any], Any]
T = TypeVar("T")


_REGISTERED: dict[str, tuple[Operation, Stage]] = {}


def register(name: str, operation: Operation, *, stage: Stage) -> None:
    """Adds an operation for `augment.extra`; raises `UserError` for a name that is taken."""
    if stage not in get_args(Stage):
        raise ValueError(f"{stage=}: expected one of {', '.join(get_args(Stage))}")
    old, _ = _REGISTERED.get(name, (None, stage))
    claim("operation", name, operation, old)
    _REGISTERED[name] = operation, stage


def check_extra(settings: Settings) -> None:
    """Raises `UserError` unless all of `settings.extra` are registered.

    Apart from `check`: to evaluate a run takes no augmentation, and no module that registers one.
    """
    for name in settings.extra:
        if name not in _REGISTERED:
            known = ", ".join(sorted(_REGISTERED)) or "none"
            raise UserError(
                f"augment.extra={settings.extra!r}: {name!r} is not registered (known: {known}); "
                "name the module that calls `augment.register` for it in `plugins`"
            )


def has(settings: Settings, stage: Stage) -> bool:
    """Whether any of `settings.extra` runs at this stage."""
    return any(_REGISTERED[name][1] == stage for name in settings.extra)


def run(settings: Settings, stage: Stage, key: Key[Array, ""], x: T) -> T:
    """x after those of `settings.extra` that run at this stage, in their order.

    Each draws from a key that depends on its name alone, from 2**31 on: the package's operations have small numbers.
    """
    for name in settings.extra:
        operation, its_stage = _REGISTERED[name]
        if its_stage == stage:
            x = operation(jax.random.fold_in(key, zlib.crc32(name.encode()) | 2**31), x)
    return x
