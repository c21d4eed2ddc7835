"""Probes against scikit-learn, several devices against one, and features that have collapsed."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import sharding
from vit_jax.metrics import METRICS, probes

D, K = 7, 3
MESHES = {n: sharding.make_mesh(sharding.Settings(), jax.devices()[:n]) for n in (1, 4)}


def blobs(n: int, seed: int, apart: float = 0.7) -> probes.Labelled:
    """Classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    centres = apart * np.random.default_rng(0).normal(size=(K, D))
    return probes.Labelled((centres[labels] + rng.normal(size=(n, D)) + 0.3).astype(np.float32), labels)


TRAIN, TEST = blobs(211, 1), blobs(89, 2)


@pytest.mark.parametrize(("devices", "temperature"), [(1, 0.07), (4, 1.0)])
def test_knn_is_that_of_scikit_learn(devices, temperature):
    def weights(distances):  # cosine distances, 1 - similarity
        return np.exp((1 - distances) / temperature)

    theirs = KNeighborsClassifier(13, weights=weights, metric="cosine").fit(*TRAIN).predict(TEST.features)
    options = {"neighbours": 13, "temperature": temperature}
    found = probes.knn(TRAIN, TEST.features, K, MESHES[devices], **options)
    np.testing.assert_array_equal(found, theirs)
    assert 0.4 < np.mean(found == TEST.labels) < 0.95


def test_knn_takes_queries_in_parts_and_all_neighbours_where_there_are_few(monkeypatch):
    whole = probes.knn(TRAIN, TEST.features, K, MESHES[1])
    monkeypatch.setattr(probes, "SIMILARITIES", 10 * len(TRAIN.labels))
    np.testing.assert_array_equal(probes.knn(TRAIN, TEST.features, K, MESHES[1]), whole)
    few = probes.Labelled(TRAIN.features[:2], np.array([2, 2]))
    assert (probes.knn(few, TEST.features, K, MESHES[1]) == 2).all()


def test_the_linear_probe_is_that_of_scikit_learn():
    found, strength = probes.linear_probe(TRAIN, TEST.features, K, MESHES[4])
    mean, std = TRAIN.features.mean(axis=0), TRAIN.features.std(axis=0)

    def theirs(x, y, strength):
        return LogisticRegression(C=1 / (strength * len(y)), tol=1e-6, max_iter=1000).fit((x - mean) / std, y)

    n = len(TRAIN.labels)
    chosen = np.random.default_rng(0).permutation(n)[: n // 10]
    rest = np.setdiff1d(np.arange(n), chosen)
    scores = [
        theirs(TRAIN.features[rest], TRAIN.labels[rest], s).score(
            (TRAIN.features[chosen] - mean) / std, TRAIN.labels[chosen]
        )
        for s in probes.STRENGTHS
    ]
    assert strength == probes.STRENGTHS[int(np.argmax(scores))]
    expected = theirs(*TRAIN, strength).predict((TEST.features - mean) / std)
    np.testing.assert_array_equal(found, expected)


def test_a_few_images_of_each_class_by_least_squares():
    shares = []
    for seed in range(probes.DRAWS):
        order = np.random.default_rng(seed).permutation(len(TRAIN.labels))
        chosen = np.concatenate([order[TRAIN.labels[order] == label][:5] for label in range(K)])
        x = TRAIN.features[chosen].astype(np.float64)
        mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
        ridge = Ridge(alpha=2**10, fit_intercept=False)
        with_bias = [np.c_[(v - mean) / std, np.full(len(v), 100.0)] for v in (x, TEST.features)]
        ridge.fit(with_bias[0], 2.0 * (TRAIN.labels[chosen][:, None] == np.arange(K)) - 1)
        shares.append(np.mean(ridge.predict(with_bias[1]).argmax(axis=1) == TEST.labels))
    assert probes.few_shot(TRAIN, TEST, K, 5) == pytest.approx(np.mean(shares)) and len(set(shares)) > 1


def test_both_systems_of_equations_have_the_same_solution():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 5)), rng.normal(size=(11, 2))
    expected = np.linalg.inv(x.T @ x + probes.RIDGE * np.eye(5)) @ x.T @ y
    np.testing.assert_allclose(probes._ridge(x, y), expected)
    wide = np.pad(x, ((0, 0), (0, 9)))
    np.testing.assert_allclose(probes._ridge(wide, y)[:5], expected)


def test_every_probe_has_its_metrics():
    found = probes.measure(tuple(probes.PROBES), TRAIN, TEST, MESHES[4])
    assert list(found) == [*(name for names in probes.PROBES.values() for name in names), "feature_spread"]
    assert set(found) < set(METRICS) and all(0 < value <= 1 for value in found.values())
    assert found["shot1_accuracy"] < found["shot10_accuracy"] <= found["linear_accuracy"] + 0.1
    assert probes.warnings(found, TEST.labels) == []


def test_collapsed_features_are_noticed():
    rng = np.random.default_rng(0)
    alike = probes.Labelled(np.float32(1 + 1e-4 * rng.normal(size=(50, D))), rng.integers(0, K, 50))
    found = probes.measure(("knn",), alike, alike, MESHES[1])
    assert found["feature_spread"] < 1e-3
    assert "the features of all images are alike" in probes.warnings(found, alike.labels)[0]
    meaningless = [probes.Labelled(rng.normal(size=(300, D)).astype(np.float32), np.arange(300) % K) for _ in range(2)]
    found = probes.measure(("knn",), *meaningless, MESHES[1])
    assert found["feature_spread"] == pytest.approx(1, abs=0.1)
    assert "no better than chance, 33.33 %" in probes.warnings(found, meaningless[1].labels)[0]
