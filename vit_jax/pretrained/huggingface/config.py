"""What both kinds of models read from config.json."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.command import UserError

NAME = "Hugging Face"
MULTI_LABEL = "multi_label_classification"  # of `problem_type`


def class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The names in `id2label`, by label; () without a head of so many classes, or if they are placeholders."""
    given = {int(label): str(name) for label, name in (config.get("id2label") or {}).items()}
    if not classes or sorted(given) != list(range(classes)):
        return ()
    names = tuple(given[label] for label in range(classes))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def loss(config: Mapping[str, Any], classes: int) -> str:
    """What the logits mean, by `problem_type`: "sigmoid" where each class is judged by itself; "": as usual."""
    kind = config.get("problem_type")
    if kind == "regression" and classes:
        raise UserError(
            f"{NAME}: problem_type='regression' in config.json: the outputs are numbers, not classes; "
            "give weights that classify, or take the classifier out of the file for the features alone"
        )
    return "sigmoid" if kind == MULTI_LABEL else ""
