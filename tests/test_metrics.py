"""Metrics by hand, against scikit-learn, and their laws."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score, log_loss, recall_score, top_k_accuracy_score

from vit_jax import metrics
from vit_jax.command import UserError

K = 7
RNG = np.random.default_rng(11)
LABELS = RNG.integers(0, K, 101)
LOGITS = RNG.normal(0, 2, (101, K)).astype(np.float32) + 2 * np.eye(K, dtype=np.float32)[LABELS]
PREDICTIONS = LOGITS.argmax(axis=1)


def summarize(logits, labels, names=(), loss="softmax") -> dict[str, float]:
    return metrics.of_examples(metrics.per_example(logits, labels, loss), labels, logits.shape[1], names)


def test_metrics_agree_with_scikit_learn():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    summary = summarize(LOGITS, LABELS)
    assert summary.keys() == {"loss", "accuracy", "top5", "f1_macro", "ece"}
    assert summary["loss"] == pytest.approx(log_loss(LABELS, p), rel=1e-12)
    assert summary["accuracy"] == pytest.approx(np.mean(PREDICTIONS == LABELS), rel=1e-12)
    assert summary["top5"] == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5), rel=1e-12)
    assert summary["f1_macro"] == pytest.approx(f1_score(LABELS, PREDICTIONS, average="macro"), rel=1e-12)


def test_metrics_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]))
    summary = summarize(logits, np.array([0, 1, 1, 0]))
    assert summary["loss"] == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4)
    assert summary["accuracy"] == 0.5
    assert "top5" not in summary  # of three classes
    assert summary["f1_macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)  # class 2 is predicted, wrongly, once
    assert summary["ece"] == pytest.approx(0, abs=1e-15)  # half of them right at confidence one half


@pytest.mark.parametrize("loss", ["sigmoid", "multi_hot"])
def test_where_each_class_is_judged_by_itself_so_are_loss_and_confidence(loss):
    summary, softmax = (summarize(LOGITS, LABELS, loss=kind) for kind in (loss, "softmax"))
    p, hot = 1 / (1 + np.exp(-LOGITS.astype(np.float64))), np.eye(K)[LABELS]
    of_classes = -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).sum(axis=1)
    expected = of_classes.mean() / (K if loss == "multi_hot" else 1)
    assert summary["loss"] == pytest.approx(expected, rel=1e-12)
    ece = metrics.expected_calibration_error(p.max(axis=1), PREDICTIONS == LABELS)
    assert summary["ece"] == pytest.approx(ece, rel=1e-9) and abs(ece - softmax["ece"]) > 0.01
    assert {k: summary[k] for k in ("accuracy", "top5", "f1_macro")} == {
        k: softmax[k] for k in ("accuracy", "top5", "f1_macro")
    }
    large = summarize(np.array([[900.0, -900.0]]), np.array([0]), loss=loss)
    assert (large["loss"], large["ece"]) == (0, 0)


def test_calibration_error_by_hand():
    confidence = np.array([0.61, 0.65, 0.95, 0.99, 1.0])  # bins (0.6, 0.667], (0.933, 1]
    correct = np.array([True, False, True, True, False])
    expected = (2 * abs(0.5 - 0.63) + 3 * abs(2 / 3 - 0.98)) / 5
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert metrics.expected_calibration_error(confidence, correct, bins=1) == pytest.approx(abs(0.6 - 0.84))


def test_calibration_bins_include_their_upper_edge():
    confidence, correct = np.array([0.5, 0.51]), np.array([True, False])
    # bins (0, 0.5] and (0.5, 1]: in one bin the two would nearly cancel
    assert metrics.expected_calibration_error(confidence, correct, bins=2) == pytest.approx((0.5 + 0.51) / 2)


def test_ties_go_to_the_lowest_class():
    summary = summarize(np.zeros((K, K), np.float32), np.arange(K))
    assert summary["accuracy"] == pytest.approx(1 / K)
    assert summary["top5"] == pytest.approx(5 / K)
    np.testing.assert_array_equal(metrics.predict(np.zeros((2, K))), [0, 0])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "multi_hot"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_count_as_wrong(bad, loss):
    logits = 9 * np.eye(3, dtype=np.float32)
    logits[1, 0] = bad
    with warnings.catch_warnings(action="error"):
        summary = summarize(logits, np.arange(3), ["a", "b", "c"], loss)
    np.testing.assert_array_equal(metrics.predict(logits), [0, -1, 2])
    assert math.isnan(summary["loss"]) and math.isnan(summary["ece"])
    assert summary["accuracy"] == summary["f1_macro"] == pytest.approx(2 / 3)
    assert [summary[f"accuracy/{name}"] for name in "abc"] == [1, 0, 1]


def test_confusion_has_the_true_class_in_rows():
    counts = metrics.confusion(np.array([1, 1, 2, -1]), np.array([0, 1, 2, 2]), 3)
    np.testing.assert_array_equal(counts, [[0, 1, 0], [0, 1, 0], [0, 0, 1]])
    expected = confusion_matrix(LABELS, PREDICTIONS, labels=np.arange(K))
    np.testing.assert_array_equal(metrics.confusion(PREDICTIONS, LABELS, K), expected)


def test_small_label_types_do_not_overflow():
    labels = np.full(3, 199, np.uint8)
    assert metrics.confusion(labels, labels, 200)[199, 199] == 3


def test_per_class_accuracy_is_recall_and_nan_without_examples():
    expected = recall_score(LABELS, PREDICTIONS, average=None)
    np.testing.assert_allclose(metrics.per_class_accuracy(PREDICTIONS, LABELS, K), expected)
    np.testing.assert_array_equal(metrics.per_class_accuracy(np.array([0, 1]), np.array([0, 0]), 2), [0.5, np.nan])


def test_class_names_add_the_accuracy_of_each_class_that_occurs():
    summary = summarize(np.eye(3), np.array([0, 1, 1]), ["cat", "dog", "cow"])
    assert {name: summary[name] for name in summary if "/" in name} == {"accuracy/cat": 1, "accuracy/dog": 0.5}


def test_macro_f1_ignores_classes_that_never_occur():
    with warnings.catch_warnings(action="error"):
        assert metrics.f1_macro(np.array([0, 3]), np.array([0, 1]), 1000) == pytest.approx(1 / 3)


def test_blocks_of_rows_do_not_show(monkeypatch):
    whole = summarize(LOGITS, LABELS)
    monkeypatch.setattr(metrics.classification, "ROWS_AT_ONCE", 13)
    assert summarize(LOGITS, LABELS) == whole


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(len(LABELS))))
def test_order_does_not_matter_to_the_last_bit(order):
    assert summarize(LOGITS[order], LABELS[order]) == summarize(LOGITS, LABELS)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_metrics_stay_in_range_and_agree_with_scikit_learn(k, labels, seed):
    labels = np.array(labels) % k
    logits = np.random.default_rng(seed).integers(-2, 3, (len(labels), k)).astype(np.float32)  # many ties
    summary = summarize(logits, labels)
    predictions = metrics.predict(logits)
    assert summary["accuracy"] == pytest.approx(np.mean(predictions == labels))
    assert 0 <= summary["accuracy"] <= summary.get("top5", 1) <= 1 and 0 <= summary["ece"] <= 1 and summary["loss"] >= 0
    with warnings.catch_warnings(action="ignore"):  # scikit-learn takes many classes for a regression
        expected = f1_score(labels, predictions, average="macro", zero_division=0)
    assert summary["f1_macro"] == pytest.approx(expected)


def test_most_predicted():
    assert metrics.most_predicted(np.array([3, 3, 2, 3, -1]), 5) == (3, 0.6)
    assert metrics.most_predicted(np.full(5, -1), 7) == (0, 0)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([], (), "no examples"),
        ([0, 3], (), "0 to 3.*3 classes"),
        ([-1, 2], (), "-1 to 2"),
        ([0, 1], ("a", "b"), "2 class names for 3 classes"),
    ],
)
def test_mistakes_are_explained(labels, names, message):
    with pytest.raises(UserError, match=message):
        metrics.of_examples(metrics.per_example(LOGITS, LABELS), np.array(labels, int), 3, names)


def test_shape_bias_by_hand():
    predictions, shapes, textures = (np.array(x) for x in ([0, 1, 2, 3, 0, 6], [0, 1, 0, 4, 0, 6], [1, 0, 2, 5, 0, 5]))
    # two as the shape, one as the texture, one as neither, one whose shape and texture are the same, one as the shape
    assert metrics.shape_bias(predictions, shapes, textures) == 3 / 4
    assert metrics.shape_bias(textures[:3], shapes[:3], textures[:3]) == 0
    assert math.isnan(metrics.shape_bias(np.array([7]), np.array([1]), np.array([2])))


def test_error_consistency_is_cohens_kappa():
    a, b = RNG.random((2, 101)) < np.array([[0.7], [0.4]])
    b = np.where(RNG.random(101) < 0.5, a, b)
    assert metrics.error_consistency(a, b) == pytest.approx(cohen_kappa_score(a, b), rel=1e-12)
    assert metrics.error_consistency(a, a) == pytest.approx(1)
    assert metrics.error_consistency(a, ~a) < 0
    perfect = np.ones(5, bool)
    assert math.isnan(metrics.error_consistency(perfect, perfect))


def test_what_is_not_finite_never_ranks_a_checkpoint():
    good = {"val/loss": 1.0, "val/accuracy": 0.5}
    assert metrics.score("accuracy", good, "val") == 0.5 and metrics.score("loss", good, "val") == -1.0
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert metrics.score("accuracy", good | {"val/loss": bad}, "val") == -float("inf")
        assert metrics.score("accuracy", good | {"val/accuracy": bad}, "val") == -float("inf")
        assert metrics.score("loss", good | {"val/loss": bad}, "val") == -float("inf")
