"""The weights at an address, of a run or published, before a model is made of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from vit_jax import pretrained, trees
from vit_jax.augment import input_shape
from vit_jax.inference.predictor import has_head, load, whole_preprocessing
from vit_jax.pretrained import Weights
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir


def find_weights(address: str | Path | Workdir) -> Weights:
    """What lies at an address: a run's folder, published weights in a file or folder, a URL. Reads no array yet."""
    workdir = Workdir(address)
    return _weights_of_run(workdir) if workdir.is_run() else pretrained.open_weights(str(address))


def _weights_of_run(workdir: Workdir) -> Weights:
    given = workdir.config()
    view, filled = workdir.preprocessing(given.augment)
    class_names = workdir.class_names() if has_head(given) else ()
    model = {**given.model, "num_classes": len(class_names)}
    prepared = dataclasses.replace(given, augment=filled)
    return Weights(
        address=str(workdir),
        layout_name="vit_jax run",
        model=model,
        grid=pretrained.position_grid(model, input_shape(prepared.augment, view.shape)),
        preprocessing=whole_preprocessing(prepared, view),
        class_names=class_names,
        reader=lambda: canonical_arrays(load(workdir).variables),
    )


def canonical_arrays(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """The leaves of a model's variables by their paths in the tree that does not depend on `scan`."""
    tree = trees.unstack_layers(variables)
    return dict(zip(trees.names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
