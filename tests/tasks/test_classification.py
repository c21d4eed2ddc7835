"""Classification: its loss, what its evaluator keeps and finds, and the diagnosis of a model that learns nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.random_params import random_params
from tests.step.small import CALM, LABELS, SHAPE, K, N, create, task_of
from vit_jax import augment, data, losses, metrics, tasks
from vit_jax.command import UserError
from vit_jax.tasks.classification import Classification, ClassificationEvaluator, balanced


@pytest.mark.parametrize("loss", list(losses.LOSSES))
def test_the_loss_is_the_one_that_the_settings_name(loss):
    logits, targets = jnp.linspace(-3, 3, N * K).reshape(N, K), losses.one_hot(jnp.asarray(LABELS[:N]), K)
    task = task_of(create(CALM), tasks.settings("classification", loss=loss))
    expected = getattr(losses, f"{loss}_cross_entropy")(logits, targets)
    np.testing.assert_array_equal(task.per_example(logits, targets, jnp.zeros((N, *SHAPE)), {}, {}), expected)


def evaluated(logits, labels, names) -> ClassificationEvaluator:
    found = ClassificationEvaluator(len(labels), names)
    found.add({"index": np.arange(len(labels)), "label": labels, "logits": logits})
    return found


def test_details_name_the_classes_and_leave_out_what_does_not_occur():
    logits, labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1]], np.array([0, 0, 0, 1, 1])
    found = evaluated(logits, labels, ("a", "b", "c"))
    details = found.details()
    assert details["matrix"] == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert details["per_class_accuracy"] == {"a": pytest.approx(2 / 3), "b": 1.0, "c": None}
    assert found.scalars() == metrics.of_examples(metrics.per_example(logits, labels), labels, 3)
    assert found.scalars()["accuracy"] == 0.8


def test_parts_of_a_split_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(29, K)).astype(np.float32), rng.integers(0, K, 29)
    parts = ClassificationEvaluator(29, tuple("abcdefg"))
    for rows in (slice(0, 12), slice(12, 13), slice(13, 29)):
        parts.add({"index": np.arange(29)[rows], "label": labels[rows], "logits": logits[rows]})
    whole = evaluated(logits, labels, tuple("abcdefg"))
    assert parts.size == 29 and parts.scalars() == whole.scalars() and parts.details() == whole.details()


def test_a_split_without_examples_has_no_metrics():
    with pytest.raises(UserError, match="the split has no examples"):
        ClassificationEvaluator(0, ("a", "b")).scalars()


def diagnosed(
    *,
    loss: float = 4.0,
    accuracy: float = 0.01,
    num_classes: int = 100,
    kind: str = "softmax",
    predicted_class_share: float = 0.02,
    true_class_share: float = 0.01,
) -> list[str]:
    """The warnings of a run with these training metrics, and with these shares of class 0 in validation."""
    names = ("cat", *(f"class {i}" for i in range(1, num_classes)))
    settings, plain = tasks.settings("classification", loss=kind), augment.Settings()
    task = tasks.create(settings, tasks.Parts(create(CALM), (6, 4, 3), names, augment=plain, train_augment=plain))
    labels = np.where(np.arange(100) < 100 * true_class_share, 0, min(1, num_classes - 1))
    others = np.arange(100) % max(1, num_classes - 1) + (num_classes > 1)
    predicted = np.where(np.arange(100) < 100 * predicted_class_share, 0, others)
    of_split = evaluated(np.eye(num_classes, dtype=np.float32)[predicted], labels, names)
    of_split = of_split if num_classes > 1 else ClassificationEvaluator(0, names)
    warnings = task.warnings({"loss": loss, "accuracy": accuracy})
    return warnings + (of_split.warnings() if num_classes > 1 and math.isfinite(loss) else [])


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        ({}, []),
        ({"loss": 4.51}, []),  # 0.98 ln(100) = 4.513
        ({"loss": 4.52}, ["the training loss 4.52 is still about ln(100) = 4.61, what guessing gives."]),
        ({"loss": 9.0, "accuracy": 0.029}, ["the training loss 9.00 is above"]),
        ({"loss": 9.0, "accuracy": 0.031}, []),  # it has learned: the loss is large for another reason
        ({"loss": 4.602, "accuracy": 0.7}, ["the training loss 4.60 is still"]),  # its logits hardly differ
        ({"loss": 4.608, "accuracy": 0.7}, ["the training loss 4.61 is still"]),
        ({"loss": 4.6, "accuracy": 0.7}, []),  # 0.999 ln(100) = 4.6006
        ({"loss": 4.61, "accuracy": 0.7}, []),  # 1.001 ln(100) = 4.6098
        ({"loss": 9.0}, ["the training loss 9.00 is above ln(100) = 4.61"]),
        ({"loss": 0.69, "num_classes": 2}, ["the training loss 0.69 is still about ln(2) = 0.69"]),
        ({"loss": 0.9, "num_classes": 2, "accuracy": 0.74}, ["the training loss 0.90 is above ln(2) = 0.69"]),
        ({"loss": 0.9, "num_classes": 2, "accuracy": 0.76}, []),  # half-way between guessing and right
        ({"loss": 1.5, "num_classes": 3, "accuracy": 0.68}, []),
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
        ({"predicted_class_share": 0.95}, ["95.00 % of the predictions are 'cat', the class of 1.00 %"]),
        ({"predicted_class_share": 0.89}, []),
        ({"predicted_class_share": 0.95, "true_class_share": 0.77}, []),
        ({"predicted_class_share": 0.95, "true_class_share": 0.75}, ["95.00 % of the predictions"]),
        ({"loss": 4.61, "predicted_class_share": 1.0}, ["the training loss 4.61", "100.00 % of the predictions"]),
        ({"loss": math.nan, "predicted_class_share": 1.0}, ["the training loss is nan"]),
        ({"loss": math.inf}, ["the training loss is inf"]),
    ],
)
def test_a_model_that_learns_nothing_is_told_with_likely_causes(change, starts):
    warnings = diagnosed(**change)
    assert len(warnings) == len(starts)
    for warning, start in zip(warnings, starts, strict=True):
        assert warning.startswith(start)
        assert "Likely:" in warning


def test_classes_weigh_what_their_shares_say():
    np.testing.assert_allclose(balanced(np.array([0.75, 0.25]), 1.0), [2 / 3, 2])
    np.testing.assert_allclose(balanced(np.array([0.8, 0.2, 0.0]), 0.5) @ [0.8, 0.2, 0.0], 1)
    np.testing.assert_array_equal(balanced(np.array([0.8, 0.2]), 0.0), [1, 1])

    given = Classification.Settings(balance=1.0)
    assert Classification.with_data(given, None, 2) == Classification.Settings(class_weights=(1.0, 1.0))
    assert Classification.with_data(Classification.Settings(), None, 2) == Classification.Settings()
    split = data.open_data(data.Settings(name="synthetic/5x7x3/3/200", validation="none")).split("train")
    shares = np.bincount([split.source.read(i)["label"] for i in range(len(split))], minlength=3) / len(split)
    np.testing.assert_allclose(split.class_shares(3), shares)
    np.testing.assert_allclose(Classification.with_data(given, split, 3).class_weights, balanced(shares, 1.0))


def test_a_weight_multiplies_the_loss_of_its_class():
    plain = augment.Settings(mean=(0.5,), std=(0.5,))
    images = jnp.asarray(np.random.default_rng(3).integers(0, 256, (4, 6, 4, 3), np.uint8))
    parts = tasks.Parts(create(CALM), (6, 4, 3), tuple("abcdefg"), augment=plain, train_augment=plain)
    params = jax.tree.map(jnp.asarray, random_params(parts.model, np.zeros((1, 6, 4, 3), np.float32), train=False))

    @quick.jit
    def losses_of(labels: jax.Array) -> list[jax.Array]:
        """Without weights, and where the first class counts three times."""
        keys = jax.random.split(jax.random.key(1), 4)
        rngs, batch = tasks.Rngs(keys, keys[0], keys[1], keys), {"image": images, "label": labels}
        weights = (), (3.0, *(1.0,) * 6)
        both = [tasks.create(tasks.settings("classification", class_weights=given), parts) for given in weights]
        return [task.loss(params, {}, {}, batch, rngs, {})[0] for task in both]

    for label, factor in ((0, 3), (1, 1)):
        without, weighted = losses_of(jnp.full(4, label))
        assert float(weighted) == pytest.approx(factor * float(without), rel=1e-6)
