"""What both kinds of models read from config.json."""

import re
from collections.abc import Mapping
from typing import Any

NAME = "Hugging Face"


def class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The names in `id2label`, by label; () without a head of so many classes, or if they are placeholders."""
    given = {int(label): str(name) for label, name in (config.get("id2label") or {}).items()}
    if not classes or sorted(given) != list(range(classes)):
        return ()
    names = tuple(given[label] for label in range(classes))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
