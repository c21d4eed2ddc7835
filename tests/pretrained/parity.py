"""Compares our models with those of `transformers` on random weights."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from tests import quick
from vit_jax import models
from vit_jax.pretrained import parameter_shapes
from vit_jax.pretrained.layout import Layout

Arrays = Mapping[str, np.ndarray]


def randomise(model: Any) -> Any:
    """Random values in all parameters and statistics of a torch module, none of them 0 or 1; set to evaluate."""
    import torch

    rng = np.random.default_rng(19)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        shape = tuple(tensor.shape)
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            scale = np.prod(shape[1:], initial=1.0) ** -0.5 if len(shape) in (2, 4) else 0.5
            values = rng.standard_normal(shape, np.float32) * np.float32(scale)
        tensor.copy_(torch.from_numpy(np.asarray(values)))
    return model.eval()


def in_memory(model: Any) -> dict[str, np.ndarray]:
    """The arrays of a torch module by the names that it has in memory."""
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


def loaded(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and the side files by name, of a saved model."""
    about = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return load_file(folder / "model.safetensors"), about


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


def converted(layout: Layout, arrays: Arrays) -> dict[str, np.ndarray]:
    """Our arrays by their names."""
    return {entry.ours: entry.convert(arrays[entry.theirs]) for entry in layout.entries}


def run_ours(model: dict[str, Any], found: Arrays, images: np.ndarray, jit: Any = quick.jit) -> np.ndarray:
    """What our model returns for images [n H W c]; `found` must be the arrays that it needs."""
    assert shapes_of(found) == parameter_shapes(model, images.shape[1:])
    apply = jit(partial(models.create(model).apply, train=False))
    return np.asarray(apply(unflatten_dict(dict(found), sep="/"), images))


def run_theirs(model: Any, images: np.ndarray) -> Any:
    """What a torch module returns for images [n H W c]."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def assert_close(ours: np.ndarray, theirs: Any) -> None:
    """Equal to 1e-4 of the outputs' spread, which is neither 0 nor huge."""
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape and theirs.std() > 0.03, theirs.std()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * min(theirs.std(), 1.0))


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(23).normal(size=shape).astype(np.float32)
