"""Where a new run's parameters come from: another run, or published weights."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from vit_jax import models, pretrained, sharding, step, trees
from vit_jax.augment import input_shape
from vit_jax.config import Config
from vit_jax.data import Data
from vit_jax.pretrained import Preprocessing, Report, Weights
from vit_jax.run.folder import LABELS, is_run, read_config, read_preprocessing
from vit_jax.run.trained import open, preprocessing_of
from vit_jax.step import TrainState
from vit_jax.trees import PyTree

Arrays = Mapping[str, np.ndarray]


def find_weights(address: str) -> Weights:
    """What lies at an address: a run's folder, published weights in a file or folder, a URL. Reads no array yet."""
    return _weights_of_run(Path(address)) if is_run(Path(address)) else pretrained.open_weights(address)


def _weights_of_run(folder: Path) -> Weights:
    given = read_config(folder)
    view, filled = read_preprocessing(folder, given.augment)
    class_names = tuple(json.loads((folder / LABELS).read_text()))
    model = {**given.model, "num_classes": len(class_names)}
    prepared = dataclasses.replace(given, augment=filled)
    shape = input_shape(prepared.augment, view.shape)
    return Weights(
        address=str(folder),
        layout_name="vit_jax run",
        model=model,
        grid=pretrained.position_grid(model, shape),
        preprocessing=preprocessing_of(prepared, view),
        class_names=class_names,
        reader=lambda: canonical_arrays(open(folder).variables),
    )


def canonical_arrays(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """The leaves of a model's variables by their paths in the tree that does not depend on `scan`."""
    tree = trees.unstack_layers(variables)
    return dict(zip(trees.names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def default_size(given: Config, source: Preprocessing | None) -> tuple[int, int]:
    """The (h, w) of images that differ in size, where `data.image_size` does not say: the model's input.

    That is `augment.resize`, else the size of the weights that the model starts from; (0, 0): nothing says it.
    """
    height, width = (given.augment.resize * 2)[:2] or (source.size if source else (0, 0))
    return height, width


def follow(given: Config, data: Data, source: Preprocessing | None) -> Config:
    """The configuration with the image size and the normalisation of `source`, where it gives none itself."""
    if source is None:
        return given
    view = given.augment
    if not (view.resize or given.data.image_size) and data.preprocessing.size != source.size:
        view = dataclasses.replace(view, resize=source.size)
    if not view.mean:
        mean, std = (_for_channels(values, data.preprocessing.channels) for values in (source.mean, source.std))
        view = dataclasses.replace(view, mean=mean, std=std)
    return dataclasses.replace(given, augment=view)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics of colour images for grey ones: the mean over the channels."""
    return values if len(values) in (1, channels) else (float(np.mean(values)),)


def fit_weights(weights: Weights, given: Config, data: Data) -> tuple[dict[str, np.ndarray], Report]:
    """The arrays of `weights` for the model of a configuration, by their paths, and what became of each.

    Arrays that the weights do not have are left out. Raises `UserError` where the two do not fit. Touches no device.
    """
    model = {**given.model, "num_classes": len(data.class_names)}
    shape = input_shape(given.augment, data.preprocessing.shape)
    looped = models.create({**model, "scan": False} if "scan" in model else model)
    wanted = jax.eval_shape(lambda: step.init_variables(looped, 0, shape))
    return pretrained.fit(
        weights.read(),
        source=weights.model,
        grid=weights.grid,
        model=model,
        image_shape=shape,
        shapes={name: leaf.shape for name, leaf in zip(trees.names(wanted), jax.tree.leaves(wanted), strict=True)},
        head=given.init.head,
        class_names=data.class_names,
        source_names=weights.class_names,
        interpolation=given.init.interpolation,
    )


def start_from(state: TrainState, found: Arrays) -> TrainState:
    """The state with these arrays in their places; averages start from them too."""
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    places = jax.tree.map(lambda leaf: leaf.sharding, fresh)
    filled = trees.map_with_name(lambda name, leaf: found.get(name, leaf), trees.unstack_layers(fresh))
    stacked = trees.stack_layers(filled) if any(map(trees.is_stacked, trees.names(fresh))) else filled
    variables = jax.tree.map(sharding.put, stacked, places)
    ema = jax.tree.map(lambda leaf: leaf.copy(), variables) if state.ema else {}
    return state.replace(**variables, ema=ema)
