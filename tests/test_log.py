"""The diagnosis of a model that learns nothing, and numbers with units."""

import math

import jax.numpy as jnp
import pytest

from vit_jax import log
from vit_jax.log.diagnosis import guessing
from vit_jax.losses import one_hot, sigmoid_cross_entropy, softmax_cross_entropy

LEARNS = {
    "loss": 4.0,
    "accuracy": 0.01,
    "num_classes": 100,
    "predicted_class_share": 0.02,
    "predicted_class": "cat",
    "true_class_share": 0.01,
}


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        ({}, []),
        ({"loss": 4.51}, []),  # 0.98 ln(100) = 4.513
        ({"loss": 4.52}, ["the training loss 4.52 is still about ln(100) = 4.61, what guessing gives."]),
        ({"loss": 9.0, "accuracy": 0.029}, ["the training loss 9.00 is still"]),
        ({"loss": 9.0, "accuracy": 0.031}, []),  # it has learned: the loss is large for another reason
        ({"loss": 4.602, "accuracy": 0.7}, ["the training loss 4.60 is still"]),  # its logits hardly differ
        ({"loss": 4.608, "accuracy": 0.7}, ["the training loss 4.61 is still"]),
        ({"loss": 4.6, "accuracy": 0.7}, []),  # 0.999 ln(100) = 4.6006
        ({"loss": 4.61, "accuracy": 0.7}, []),  # 1.001 ln(100) = 4.6098
        ({"loss": 9.0}, ["the training loss 9.00 is still about ln(100) = 4.61"]),
        ({"loss": 0.69, "num_classes": 2}, ["the training loss 0.69 is still about ln(2) = 0.69"]),
        ({"loss": 0.0, "num_classes": 1}, []),
        ({"loss": 0.0, "num_classes": 1, "kind": "sigmoid"}, []),
        ({"loss": 5.48, "kind": "sigmoid"}, []),  # 0.98 (ln(100) + 99 ln(100/99)) = 5.488
        ({"loss": 5.49, "kind": "sigmoid"}, ["the training loss 5.49 is still about ln(100) + 99 ln(100/99) = 5.60,"]),
        (
            {"loss": 0.0549, "kind": "multi_hot"},
            ["the training loss 0.055 is still about (ln(100) + 99 ln(100/99)) / 100 ="],
        ),
        ({"loss": 0.0548, "kind": "multi_hot"}, []),
        ({"loss": math.nan, "kind": "sigmoid"}, ["the training loss is nan"]),
        ({"predicted_class_share": 0.95}, ["95.00 % of the validation predictions are 'cat', the class of 1.00 %"]),
        ({"predicted_class_share": 0.89}, []),
        ({"predicted_class_share": 0.95, "true_class_share": 0.77}, []),
        ({"predicted_class_share": 0.95, "true_class_share": 0.75}, ["95.00 % of the validation predictions"]),
        ({"loss": 4.61, "predicted_class_share": 1.0}, ["the training loss 4.61", "100.00 % of the validation"]),
        ({"loss": math.nan, "predicted_class_share": 1.0}, ["the training loss is nan"]),
        ({"loss": math.inf}, ["the training loss is inf"]),
    ],
)
def test_diagnose(change, starts):
    warnings = log.diagnose(**LEARNS | change)
    assert len(warnings) == len(starts)
    for warning, start in zip(warnings, starts, strict=True):
        assert warning.startswith(start)
        assert "Likely:" in warning


@pytest.mark.parametrize(("loss", "kind"), [(softmax_cross_entropy, "softmax"), (sigmoid_cross_entropy, "sigmoid")])
def test_guessing_is_the_least_that_constant_logits_reach(loss, kind):
    """Of each class once: at the classes' frequencies, also with smoothed labels; any other logit costs more."""
    k = 7
    logit = -math.log(k - 1)  # sigmoid: 1/k
    for smoothing in (0.0, 0.3):
        targets = one_hot(jnp.arange(k), k, smoothing)
        at, near = (float(loss(jnp.full((k, k), logit).at[:, 0].add(off), targets).mean()) for off in (0.0, 0.1))
        assert at == pytest.approx(guessing(k, kind), rel=1e-6) and near > at + 1e-4
    assert guessing(2, kind) == pytest.approx(math.log(2) * (1 if kind == "softmax" else 2))
    assert guessing(k, "multi_hot") == guessing(k, "sigmoid") / k


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (425, "7 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86_399, "1 d 00 h"),
        (3 * 86_400 + 4 * 3600, "3 d 04 h"),
        (-1, "0 s"),
        (math.nan, "unknown"),
    ],
)
def test_human_seconds(seconds, text):
    assert log.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**20 - 1, "1.00 MiB"), (5.89 * 2**30, "5.89 GiB")],
)
def test_human_bytes(n, text):
    assert log.human_bytes(n) == text


def test_human_count():
    assert log.human_count(45_923_300) == "45.92 M"
