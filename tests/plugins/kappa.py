"""Cohen's kappa of predictions and labels (Cohen 1960): 1 where they agree, 0 where they agree as by chance."""

import numpy as np

from vit_jax import metrics


def kappa(found: metrics.Examples, labels: np.ndarray, k: int) -> float | None:
    of_label = np.bincount(labels, minlength=k) / len(labels)
    of_prediction = np.bincount(found.prediction[found.prediction >= 0], minlength=k) / len(labels)
    expected = float(of_label @ of_prediction)
    return (float(np.mean(found.prediction == labels)) - expected) / (1 - expected) if expected < 1 else None


metrics.register("kappa", metrics.Metric("Cohen's kappa", "kappa", percent=False, compute=kappa))
