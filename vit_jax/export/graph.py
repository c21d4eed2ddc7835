"""What is exported: a function of images alone, with the trained arrays inside, and what its user must know of it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num, UInt8

from vit_jax import augment, step, tasks, trees
from vit_jax.augment import input_shape
from vit_jax.export.about import About
from vit_jax.inference import Predictor
from vit_jax.inference.opening import load_variables
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir


@dataclass(frozen=True)
class Graph:
    """A trained model as a pure function of images, and what travels with it."""

    model: nn.Module  # unrolled
    variables: Mapping[str, PyTree]  # in the canonical, unstacked tree
    about: About

    def __call__(self, images: Num[Array, "n h w c"]) -> Float[Array, "n *places k"]:
        """The output, float32, of images as `about` says the graph takes them."""
        x = augment.eval_view(self.about.settings, images) if self.about.with_preprocessing else images
        found = self.model.apply(self.variables, x, train=False)
        assert isinstance(found, jax.Array)
        return found.astype(jnp.float32)

    @property
    def symbolic_images(self) -> jax.ShapeDtypeStruct:
        """Images whose number is only known when the graph runs."""
        return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), *self.about.input_shape), self.about.dtype)

    @cached_property
    def compiled(self) -> jax.stages.Wrapped:
        return jax.jit(self.__call__)


@dataclass(frozen=True)
class Trained:
    """All that predicts of a trained model: a task's whole module where that gives one array, else the backbone."""

    predictor: Predictor
    module: nn.Module
    variables: Mapping[str, PyTree]
    class_names: tuple[str, ...]

    @cached_property
    def forward(self) -> Callable[[PyTree, Any], jax.Array]:
        """`(variables, images uint8 [n h w c]) -> output`, compiled: the original that exports are compared with."""
        return jax.jit(tasks.make_forward(self.module, self.predictor.config.augment))

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> np.ndarray:
        return np.asarray(self.forward(self.variables, images), np.float32)


def find_trained(predictor: Predictor, workdir: Workdir | None = None) -> Trained:
    """What of a trained model is exported, whatever its task.

    A task whose module turns images into one array, such as masks, is exported whole. Of others, such as masked
    autoencoding, the backbone is: it gives what a head would read. `workdir`: the run, which has all arrays of the
    task; None of published weights.
    """
    if predictor.class_names or workdir is None:
        return Trained(predictor, predictor.model, predictor.variables, predictor.class_names)
    given = predictor.config
    shape, class_names = input_shape(given.augment, predictor.preprocessing.shape), workdir.class_names()
    parts = tasks.Parts(predictor.model, shape, class_names, given.augment, given.augment)
    module = tasks.create(given.task, parts).module
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    found = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False)[0], images)
    if not isinstance(found, jax.ShapeDtypeStruct):
        return Trained(predictor, predictor.model, predictor.variables, ())
    _, variables = load_variables(workdir, module, shape, given)
    return Trained(predictor, module, variables, class_names)


def make_graph(trained: Trained, *, with_preprocessing: bool = False, dtype: str = "") -> Graph:
    """The graph of a trained model.

    Args:
        trained: what is exported.
        with_preprocessing: the graph takes images uint8 of the predictor's size; else float32 ones, normalised.
        dtype: of its products; "": the model's own.
    """
    predictor = trained.predictor
    given, view = predictor.config.augment, dataclasses.replace(predictor.preprocessing, draft=False)
    about = About(
        model=predictor.config.model["name"],
        step=predictor.step,
        output="logits" if trained.class_names else "features",
        class_names=trained.class_names,
        loss=str(predictor.config.task.get("loss", "")) if trained.class_names else "",
        with_preprocessing=with_preprocessing,
        input_shape=view.shape if with_preprocessing else input_shape(given, view.shape),
        view=view,
        resize=given.resize,
        interpolation=given.interpolation,
        mean=given.mean,
        std=given.std,
    )
    module = step.plain(trained.module)
    variables = jax.tree.map(jnp.asarray, trees.unstack_layers(trained.variables))
    return Graph(step.with_field(module, "dtype", dtype) if dtype else module, variables, about)
