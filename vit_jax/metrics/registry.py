"""What each metric is called, how it is written, and whether more is better: read wherever a metric is shown or ranked.

A metric of classification can also say here how it is computed: it is then part of every evaluation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vit_jax.command import UserError
from vit_jax.names import claim


@dataclass(frozen=True)
class Metric:
    """The name of a metric in results, `test/accuracy`, is its key in `METRICS`."""

    label: str  # in the table of a result
    short: str  # on the lines of progress, and as a column
    percent: bool = True  # a share in [0, 1], written as a percentage; else a decimal number
    higher_is_better: bool = True
    brief: bool = False  # stands on the line that progress prints of each evaluation
    # `(examples, labels, k) -> value` of a classified split, see `metrics.Examples`; None where there is no value.
    # Without it the task's own evaluator computes the metric.
    compute: Callable[..., float | None] | None = None


METRICS: dict[str, Metric] = {}


def register(name: str, metric: Metric) -> Metric:
    """Adds a metric, also from outside the package; raises `UserError` for a name that is taken."""
    if "/" in name:
        raise UserError(f"the metric name {name!r} holds a slash, which follows a split's name; choose another")
    claim("metric", name, metric, METRICS.get(name))
    METRICS[name] = metric
    return metric


def score(name: str, scalars: dict[str, float], split: str) -> float:
    """The value by which checkpoints are compared: higher is better, and -inf of what is not a number.

    Nor are metrics of a model whose loss is not finite, whatever its accuracy.
    """
    if f"{split}/{name}" not in scalars:
        known = ", ".join(key.rpartition("/")[2] for key in scalars)
        raise UserError(f"evaluate.metric={name!r} has no value on this split: what is measured is {known}")
    value: Any = scalars[f"{split}/{name}"]
    if not math.isfinite(value) or not math.isfinite(scalars.get(f"{split}/loss", 0.0)):
        return -float("inf")
    return value if METRICS[name].higher_is_better else -value
