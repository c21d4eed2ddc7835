"""Names under which models, tasks, metrics and the like are registered, also from outside the package."""

from typing import Any

from vit_jax.command import UserError


def claim(kind: str, name: str, new: Any, old: Any = None) -> None:
    """Raises `UserError` where something else, `old`, has the name already.

    A definition that is run again, as a notebook's cell is, may have its name again.
    """
    if old is not None and _origin(old) != _origin(new):
        raise UserError(f"the {kind} name {name!r} is taken; choose another")


def _origin(value: Any) -> Any:
    """Where a class or a function stands; of an object with functions, where the first one does."""
    if not hasattr(value, "__qualname__"):
        value = next((part for part in getattr(value, "__dict__", {}).values() if callable(part)), value)
    return (value.__module__, value.__qualname__) if hasattr(value, "__qualname__") else value
