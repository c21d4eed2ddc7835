"""What lies at an address, the folder of a run or published weights: a model that is ready, or its arrays."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from vit_jax import checkpoint, config, distributed, models, pretrained, sharding, step, tasks, trees
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Preprocessing as HostPreprocessing
from vit_jax.inference.precision import with_dtype
from vit_jax.inference.predictor import Predictor, whole_preprocessing
from vit_jax.pretrained import Weights
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir


def load(
    address: str | Path | Workdir, *, use: str = "", overrides: Sequence[str] = (), mesh: Mesh | None = None
) -> Predictor:
    """The trained model at an address: the folder of a run, or published weights.

    Args:
        address: a run's folder; or a file (.npz, .safetensors), a folder with one, https://, gs://, s3:// or
            hf://org/name, see `pretrained.address.locate`.
        use: of a run the "last" or the "best" checkpoint; "": as its configuration says.
        overrides: changes of the configuration, `field=value`. Published weights are made to fit another
            data.image_size.
        mesh: the devices that hold the variables, divided by the rules of training; of every process, which then all
            open it. None: the first device of this process.

    Raises:
        UserError: neither a run nor weights there; a run without a usable checkpoint; weights of no layout that is
            known.
    """
    if use not in ("", "last", "best"):
        raise UserError(f"{use=} is not last or best")
    workdir = Workdir(address)
    if workdir.is_run():
        return _load_run(workdir, use, list(overrides), mesh)
    try:
        weights = pretrained.open_weights(str(address))
    except UserError as mistake:
        if "://" in str(address) or os.path.isfile(address):
            raise
        lacking = f"{workdir.config_file.name} and {workdir.preprocessing_file.name}"
        raise UserError(
            f"{address} is neither a run (it has no {lacking}) nor published weights: {mistake}"
        ) from mistake
    if use:
        raise UserError(f"{use=} chooses a checkpoint of a run; {address} holds published weights: leave it out")
    return _load_weights(weights, overrides, mesh)


def _load_run(workdir: Workdir, use: str, overrides: list[str], mesh: Mesh | None) -> Predictor:
    given = with_dtype(workdir.config(overrides), jax.devices()[0])
    if not any(override.startswith("model.") for override in overrides):  # a changed model is not what was timed
        given = workdir.with_kernel(given)
    prepared, view, class_names = _prepared(workdir, given)
    model, shape = models.create(prepared.model), input_shape(prepared.augment, view.shape)
    model.check(shape)
    parts = tasks.Parts(model, shape, workdir.class_names(), prepared.augment, prepared.augment)
    trained = tasks.create(given.task, parts).module  # the model, and maybe more
    at, variables = load_variables(workdir, trained, shape, prepared, use, mesh)
    wanted = jax.eval_shape(lambda: step.init_variables(model, 0, shape))
    return Predictor(prepared, model, _part(variables, wanted), class_names, view, at)


def _prepared(workdir: Workdir, given: Config) -> tuple[Config, HostPreprocessing, tuple[str, ...]]:
    """A run's configuration with what its data decided, how images leave the host, and the classes of its own head."""
    stored, filled = workdir.preprocessing(given.augment)
    class_names = workdir.class_names() if tasks.chosen(given.task, given.distill).needs_head else ()
    prepared = dataclasses.replace(given.with_model(num_classes=len(class_names)), augment=filled)
    return prepared, dataclasses.replace(stored, draft=given.data.draft), class_names


def _part(tree: PyTree, wanted: PyTree) -> PyTree:
    """Of nested dicts those entries that are wanted; raises `UserError` for one that is not there."""
    if not isinstance(wanted, Mapping):
        return tree
    if missing := [key for key in wanted if key not in tree]:
        raise UserError(f"the run's task keeps no {missing[0]!r} of its backbone: its module does not share its scope")
    return {key: _part(tree[key], value) for key, value in wanted.items()}


def load_variables(
    workdir: Workdir,
    module: nn.Module,
    shape: tuple[int, int, int],
    prepared: Config,
    use: str = "",
    mesh: Mesh | None = None,
) -> tuple[int, PyTree]:
    """The step and the variables of the best or the newest checkpoint of a run that is not damaged.

    `module`: all that the run's task trains; `shape` [h w c]: of its images.
    """
    directory, use, log = workdir.checkpoints, use or prepared.evaluate.use, logging.getLogger(__name__)
    abstract, rules = jax.eval_shape(lambda: step.init_variables(module, 0, shape)), models.naming_of(module).rules
    steps = workdir.saved_steps()
    best = checkpoint.best_step(directory) if use == "best" else None
    part = _evaluated_part(prepared)
    damaged, order = False, ([best] if best is not None else []) + steps[::-1]
    if mesh is not None:  # all processes read the same ones
        order = json.loads(distributed.broadcast_from_first(json.dumps(order[:50])))
    for at in order:
        try:
            variables = checkpoint.restore_variables(directory, at, abstract, part, mesh, rules)
        except checkpoint.Damaged as damage:
            log.warning("checkpoint %s is damaged (%s): trying another", at, damage)
            damaged = True
            continue
        if damaged:
            log.warning("the model is that of checkpoint %s", at)
        return at, variables
    raise UserError(f"{directory} holds no usable checkpoint (found steps {steps}); train the run first")


def variables_at(workdir: Workdir, predictor: Predictor, at: int) -> PyTree:
    """The variables of one checkpoint of a classification's run, on the first device."""
    shape = input_shape(predictor.config.augment, predictor.preprocessing.shape)
    abstract = jax.eval_shape(lambda: step.init_variables(predictor.model, 0, shape))
    part, rules = _evaluated_part(predictor.config), models.naming_of(predictor.model).rules
    return checkpoint.restore_variables(workdir.checkpoints, at, abstract, part, None, rules)


def _evaluated_part(prepared: Config) -> str:
    """Where in a run's state the variables lie that evaluation reads; "": where those that train do."""
    evaluated = tasks.chosen(prepared.task, prepared.distill).evaluated
    return f"task/{evaluated}" if evaluated else "ema" if prepared.optim.averages else ""


def _load_weights(weights: Weights, overrides: Sequence[str], mesh: Mesh | None) -> Predictor:
    prepared = with_dtype(_configuration_of(weights, overrides), jax.devices()[0])
    settings, size = prepared.data, prepared.data.image_size
    view = HostPreprocessing(
        size=(size[0], size[-1]),
        resize=settings.resize,
        channels=settings.channels,
        crop_fraction=settings.crop_fraction,
        interpolation=settings.interpolation,
        draft=settings.draft,
    )
    model, shape = models.create(prepared.model), input_shape(prepared.augment, view.shape)
    model.check(shape)
    arrays, _ = fit_weights(weights, prepared, shape, head="keep")
    variables = _placed({"batch_stats": {}} | traverse_util.unflatten_dict(arrays, sep="/"), model, mesh)
    unnamed = tuple(f"class {label}" for label in range(weights.model["num_classes"]))
    return Predictor(prepared, model, variables, weights.class_names or unnamed, view, step=0)


def _placed(arrays: PyTree, model: nn.Module, mesh: Mesh | None) -> PyTree:
    """The variables on the devices, the layers of a scanned model in one."""

    def places(tree: PyTree) -> PyTree:
        return None if mesh is None else sharding.tree_shardings(tree, mesh, models.naming_of(model).rules)

    put = [places(arrays)] if mesh else []
    variables = jax.tree.map(sharding.put if mesh else jnp.asarray, arrays, *put)
    if not getattr(model, "scan", False):
        return variables
    stacked = jax.eval_shape(trees.stack_layers, variables)
    return jax.jit(trees.stack_layers, out_shardings=places(stacked))(variables)


def fit_weights(
    weights: Weights,
    prepared: Config,
    shape: tuple[int, int, int],
    head: Literal["auto", "keep", "new"],
    class_names: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], pretrained.Report]:
    """The arrays of `weights` for the model of a configuration, by their paths, and what became of each.

    Arrays that the weights do not have are left out. Raises `UserError` where the two do not fit. Touches no device.
    """
    return pretrained.fit(
        weights.read(),
        source=weights.model,
        grid=weights.grid,
        model=prepared.model,
        image_shape=shape,
        shapes=pretrained.parameter_shapes(prepared.model, shape),
        head=head,
        class_names=class_names,
        source_names=weights.class_names,
        interpolation=prepared.init.interpolation,
        antialias=weights.antialias,
    )


def _configuration_of(weights: Weights, overrides: Sequence[str]) -> Config:
    """The default configuration with what is known of the weights: the model and its images."""
    known = weights.preprocessing
    tree = {
        "model": weights.model,
        "task": {"name": "classification", "loss": weights.loss},
        "data": {
            "image_size": known.size,
            "resize": known.resize,
            "crop_fraction": known.crop_fraction,
            "interpolation": known.interpolation,
            "channels": len(known.mean),
        },
        "augment": {"mean": known.mean, "std": known.std},
    }
    return config.from_dict(tree, overrides)


def find_weights(address: str | Path | Workdir) -> Weights:
    """What lies at an address: a run's folder, published weights in a file or folder, a URL. Reads no array yet."""
    workdir = Workdir(address)
    return _weights_of_run(workdir) if workdir.is_run() else pretrained.open_weights(str(address))


def _weights_of_run(workdir: Workdir) -> Weights:
    prepared, view, class_names = _prepared(workdir, workdir.config())
    return Weights(
        address=str(workdir),
        layout_name="vit_jax run",
        model=dict(prepared.model),
        grid=pretrained.position_grid(prepared.model, input_shape(prepared.augment, view.shape)),
        preprocessing=whole_preprocessing(prepared, view),
        class_names=class_names,
        reader=lambda: canonical_arrays(load(workdir).variables),
    )


def canonical_arrays(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """The leaves of a model's variables by their paths in the tree that does not depend on `scan`."""
    tree = trees.unstack_layers(variables)
    return dict(zip(trees.names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
