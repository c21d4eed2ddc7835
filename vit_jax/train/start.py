"""How a new run starts from weights, of another run or published: image size, normalisation, parameters."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from vit_jax import sharding, trees
from vit_jax.config import Config
from vit_jax.data import Data
from vit_jax.pretrained import Preprocessing
from vit_jax.step import TrainState

Arrays = Mapping[str, np.ndarray]


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


def start_from(state: TrainState, found: Arrays) -> TrainState:
    """The state with these arrays in their places; averages start from them too."""
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    places = jax.tree.map(lambda leaf: leaf.sharding, fresh)
    filled = trees.map_with_name(lambda name, leaf: found.get(name, leaf), trees.unstack_layers(fresh))
    stacked = trees.stack_layers(filled) if any(map(trees.is_stacked, trees.names(fresh))) else filled
    variables = jax.tree.map(sharding.put, stacked, places)
    ema = jax.tree.map(lambda leaf: leaf.copy(), variables) if state.ema else {}
    return state.replace(**variables, ema=ema)
