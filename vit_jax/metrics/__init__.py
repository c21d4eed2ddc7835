"""Exact metrics of a whole split, on the host in float64, and the registry of what metrics are called.

`registry` holds names and formats, `classification` computes, `probes` asks features of a backbone for classes.
"""

from vit_jax.metrics.classification import (
    NO_CLASS,
    NO_EXAMPLES,
    Examples,
    check_labels,
    confusion,
    error_consistency,
    expected_calibration_error,
    f1_macro,
    most_predicted,
    of_examples,
    per_class_accuracy,
    per_example,
    predict,
    shape_bias,
)
from vit_jax.metrics.probes import PROBES, Labelled
from vit_jax.metrics.registry import METRICS, Metric, register, score

register("loss", Metric("loss", "loss", percent=False, higher_is_better=False, brief=True))
