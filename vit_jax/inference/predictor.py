"""A trained model, ready to use: `load` a run or published weights, then `predict` or get `features`."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from vit_jax import augment, checkpoint, config, distributed, losses, models, pretrained, sharding, step, tasks, trees
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Preprocessing as HostPreprocessing
from vit_jax.inference.images import Batch, Images, Pictures, all_files, batches, one_by_one
from vit_jax.pretrained import Preprocessing, Weights
from vit_jax.trees import PyTree
from vit_jax.workdir import Workdir

BATCH_SIZE = 128


@dataclass(frozen=True)
class Predictions:
    """What a model takes images for."""

    probabilities: Float[np.ndarray, "n k"]  # float32; of a model trained with a sigmoid loss each class by itself
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()  # one for each image; () where they did not come from files

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[i] for i in self.probabilities.argmax(axis=1)]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image the `k` most probable classes, all where there are fewer, with probabilities; best first."""
        if k < 1:
            raise UserError(f"top({k}) asks for no class; give a positive number")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[i], float(row[i])) for i in best]
            for row, best in zip(self.probabilities, order, strict=True)
        ]


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to use.

    `predict` and `features` take images in any form and of any size: a file or a folder, an array uint8 [n h w c],
    or a list of files, Pillow images and arrays. `preprocessing` brings them to the model's size; arrays that have
    this size already are taken as they are: they are neither scaled nor cropped again. `batch_size` sets the memory
    that is needed; a batch is read while the one before is computed, on one device.
    """

    config: Config  # prepared
    model: nn.Module
    variables: Mapping[str, PyTree]
    class_names: tuple[str, ...]  # () for weights without a head: these have features only
    preprocessing: HostPreprocessing  # encoded image -> uint8 [h w c], on the host
    step: int  # of training that the variables are from; 0 for published weights

    @cached_property
    def forward(self) -> Callable[[PyTree, Any], jax.Array]:
        """`(variables, images uint8 [n h w c]) -> logits [n k]`, compiled."""
        return jax.jit(tasks.make_forward(self.model, self.config.augment))

    @cached_property
    def num_blocks(self) -> int:
        """How many blocks have tokens, which `features` can give; 0 for a CNN."""
        images = jax.ShapeDtypeStruct((1, *self.preprocessing.shape), jnp.uint8)
        return len(jax.eval_shape(self._tokens, self.variables, images))

    def logits(self, images: np.ndarray, batch_size: int = BATCH_SIZE) -> Float[np.ndarray, "n k"]:
        """Logits float32 of images uint8 [n h w c] at the size of `preprocessing`, as they are; any n."""
        if images.shape[1:] != self.preprocessing.shape or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.dtype}{list(images.shape)}, expected uint8{['n', *self.preprocessing.shape]}; "
                "bring them to that shape with `preprocessing`, or use `predict`, which does"
            )
        self._check_head()
        return self._all(self.forward, images, batch_size)

    def predict(self, images: Images, batch_size: int = BATCH_SIZE) -> Predictions:
        """The probabilities of each class for each image; raises `UserError` for a file that is broken or no image."""
        self._check_head()
        pictures = one_by_one(images)
        files = tuple(map(str, pictures)) if all_files(pictures) else ()
        return self._predictions(self._all(self.forward, pictures, batch_size), files)

    def predict_files(
        self, files: Sequence[str | Path], batch_size: int = BATCH_SIZE, *, draft: bool = False
    ) -> Iterator[tuple[Predictions, dict[str, str]]]:
        """Predictions for any number of files, a batch at a time, and what is wrong with those that were left out.

        `draft` decodes photos faster, and a little differently: see `HostPreprocessing`.
        """
        self._check_head()
        for batch, logits in self._computed(self.forward, files, batch_size, draft=draft):
            yield self._predictions(logits, batch.files), batch.broken

    @overload
    def features(  # type: ignore[overload-overlap]  # mypy takes (0,) for a possible value of tuple[()]
        self, images: Images, layers: tuple[()] = (), batch_size: int = BATCH_SIZE
    ) -> Float[np.ndarray, "n d"]: ...
    @overload
    def features(
        self, images: Images, layers: Sequence[int], batch_size: int = BATCH_SIZE
    ) -> dict[int, Float[np.ndarray, "n l d"]]: ...
    def features(self, images: Images, layers: Sequence[int] = (), batch_size: int = BATCH_SIZE) -> Any:
        """What the model's head reads, float32 [n d]; or, given layers, the tokens [n l d] after each of these blocks.

        Blocks are counted from 0, negative ones from the end; the tokens come under the numbers given. All tokens are
        there: class token, registers, patches. Raises `UserError` for a block that is not there, as
        `predict` does for broken files.
        """
        layers = tuple(layers)
        wrong = [layer for layer in layers if not -self.num_blocks <= layer < self.num_blocks]
        if wrong:
            name, last = self.config.model["name"], self.num_blocks - 1
            there = f"it has 0 to {last}, or -1 to {-last - 1} from the end" if last >= 0 else "it has none"
            raise UserError(
                f"layers={layers}: model {name!r} has no block {wrong[0]}: {there}; layers=() gives what its head reads"
            )
        return self._all(
            lambda variables, batch: self._features(variables, batch, layers), one_by_one(images), batch_size
        )

    @cached_property
    def _features(self) -> Callable[..., Any]:
        headless = tasks.make_forward(self.model.clone(num_classes=0), self.config.augment)

        def features(variables: PyTree, images: UInt8[Array, "n h w c"], layers: tuple[int, ...]) -> Any:
            if not layers:
                return headless(variables, images).astype(jnp.float32)
            tokens = self._tokens(variables, images)
            return {layer: tokens[layer].astype(jnp.float32) for layer in layers}

        return jax.jit(features, static_argnums=2)

    def explain(self, images: Images, method: str, target: Any = None, **options: Any) -> np.ndarray:
        """Where the model looks, as an array: see `vit_jax.explain.explain`, also for the methods and their options."""
        from vit_jax.explain import explain

        return explain(self, images, method, target, **options)

    def _tokens(self, variables: PyTree, images: UInt8[Array, "n h w c"]) -> list[Float[Array, "n l d"]]:
        """The tokens after each block, in order."""
        images = augment.eval_view(self.config.augment, images)
        _, seen = self.model.apply(variables, images, train=False, mutable="intermediates")
        sown = traverse_util.flatten_dict(trees.unstack_layers(dict(seen.get("intermediates", {}))))
        blocks = {path: values[0] for path, values in sown.items() if path[-1] == "tokens"}
        return [blocks[path] for path in sorted(blocks, key=lambda path: int(re.findall(r"\d+$", path[-2])[0]))]

    def _predictions(self, logits: Float[np.ndarray, "n k"], files: tuple[str, ...]) -> Predictions:
        probabilities = losses.LOSSES[self.config.task["loss"]].probabilities(logits)
        return Predictions(probabilities, self.class_names, files)

    def _all(self, apply: Callable[..., Any], pictures: Pictures, batch_size: int) -> Any:
        """`apply(variables, images)` of all images: an array, or a dict of arrays. None may be broken."""
        parts = []
        for batch, result in self._computed(apply, pictures, batch_size):
            for file, fault in batch.broken.items():
                raise UserError(f"{file} cannot be used as an image: {fault}; leave it out")
            parts.append(result)
        if not parts:
            one = jax.eval_shape(apply, self.variables, jax.ShapeDtypeStruct((1, *self.preprocessing.shape), jnp.uint8))
            return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape[1:]), leaf.dtype), one)
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def _computed(
        self, apply: Callable[..., Any], pictures: Pictures, batch_size: int, *, draft: bool = False
    ) -> Iterator[tuple[Batch, Any]]:
        """The batches of the images with their results, each computed while the next one is read."""
        if batch_size < 1:
            raise UserError(f"{batch_size=} is not positive")
        size = min(batch_size, 1 << (len(pictures) - 1).bit_length())  # powers of two: few sizes are compiled
        before: tuple[Batch, Any] | None = None
        for batch in batches(pictures, self.preprocessing, size, self.config.data.threads, draft=draft):
            padding = ((0, size - len(batch.images)), (0, 0), (0, 0), (0, 0))
            result = apply(self.variables, np.pad(batch.images, padding))
            if before is not None:
                yield _fetched(*before)
            before = batch, result
        if before is not None:
            yield _fetched(*before)

    def save_huggingface(self, folder: str | Path) -> None:
        """Writes the model, its labels and its preprocessing into a folder that `transformers` loads.

        Raises `UserError`, naming the field, for a model that the Vision Transformer of `transformers` is not.
        """
        from vit_jax.pretrained.write import save_huggingface

        view = whole_preprocessing(self.config, self.preprocessing)
        params = {"params": trees.unstack_layers(dict(self.variables))["params"]}
        save_huggingface(Path(folder), self.config.model, params, self.class_names, view, view.size)

    def _check_head(self) -> None:
        if not self.class_names:
            raise UserError(
                f"these weights of {self.config.model['name']!r} have no head and predict nothing; use `features`, "
                "or train a head on them: init.weights"
            )


def whole_preprocessing(prepared: Config, view: HostPreprocessing) -> Preprocessing:
    """How an image becomes the model's input, on the host and then on the device."""
    height, width, _ = input_shape(prepared.augment, view.shape)
    return Preprocessing(
        size=(height, width),
        resize=view.resize,
        crop_fraction=view.crop_fraction,
        interpolation=view.interpolation,
        mean=prepared.augment.mean,
        std=prepared.augment.std,
    )


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
        if "://" in str(address) or Path(address).is_file():
            raise
        lacking = f"{workdir.config_file.name} and {workdir.preprocessing_file.name}"
        raise UserError(
            f"{address} is neither a run (it has no {lacking}) nor published weights: {mistake}"
        ) from mistake
    if use:
        raise UserError(f"{use=} chooses a checkpoint of a run; {address} holds published weights: leave it out")
    return _load_weights(weights, overrides, mesh)


def _load_run(workdir: Workdir, use: str, overrides: list[str], mesh: Mesh | None) -> Predictor:
    given = workdir.config(overrides)
    if not any(override.startswith("model.") for override in overrides):  # a changed model is not what was timed
        given = workdir.with_kernel(given)
    class_names = workdir.class_names() if has_head(given) else ()
    stored, filled = workdir.preprocessing(given.augment)
    view = dataclasses.replace(stored, draft=given.data.draft)
    model_fields = {**given.model, "num_classes": len(class_names)}
    prepared = dataclasses.replace(given, model=model_fields, augment=filled)
    model = models.create(model_fields)
    model.check(input_shape(prepared.augment, view.shape))
    shape, task_module = input_shape(prepared.augment, view.shape), model
    if not class_names:  # the run trained more than this model
        parts = tasks.Parts(model, shape, workdir.class_names(), prepared.augment, prepared.augment)
        task_module = tasks.create(given.task, parts).module
    at, variables = load_variables(workdir, task_module, shape, prepared, use, mesh)
    wanted = jax.eval_shape(lambda: step.init_variables(model, 0, shape))
    return Predictor(prepared, model, _part(variables, wanted), class_names, view, at)


def _part(tree: PyTree, wanted: PyTree) -> PyTree:
    """Of nested dicts those entries that are wanted; raises `UserError` for one that is not there."""
    if not isinstance(wanted, Mapping):
        return tree
    if missing := [key for key in wanted if key not in tree]:
        raise UserError(f"the run's task keeps no {missing[0]!r} of its backbone: its module does not share its scope")
    return {key: _part(tree[key], value) for key, value in wanted.items()}


def has_head(config: Config) -> bool:
    """Whether a run of this configuration trains the model's own head, of one output for each class."""
    return tasks.chosen(config.task, config.distill).needs_head


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
    directory, use = workdir.checkpoints, use or prepared.evaluate.use
    abstract, rules = jax.eval_shape(lambda: step.init_variables(module, 0, shape)), models.naming_of(module).rules
    steps = checkpoint.saved_steps(directory)
    best = checkpoint.best_step(directory) if use == "best" else None
    part = "ema" if prepared.optim.ema_decay else ""
    damaged, order = False, ([best] if best is not None else []) + steps[::-1]
    if mesh is not None:  # all processes read the same ones
        order = json.loads(distributed.broadcast_from_first(json.dumps(order[:50])))
    for at in order:
        try:
            variables = checkpoint.restore_variables(directory, at, abstract, part, mesh, rules)
        except checkpoint.Damaged as damage:
            logging.getLogger(__name__).warning("checkpoint %s is damaged (%s): trying another", at, damage)
            damaged = True
            continue
        if damaged:
            logging.getLogger(__name__).warning("the model is that of checkpoint %s", at)
        return at, variables
    raise UserError(f"{directory} holds no usable checkpoint (found steps {steps}); train the run first")


def _load_weights(weights: Weights, overrides: Sequence[str], mesh: Mesh | None) -> Predictor:
    prepared = _configuration_of(weights, overrides)
    settings, size = prepared.data, prepared.data.image_size
    view = HostPreprocessing(
        size=(size[0], size[-1]),
        resize=settings.resize,
        channels=settings.channels,
        crop_fraction=settings.crop_fraction,
        interpolation=settings.interpolation,
        draft=settings.draft,
    )
    shape = input_shape(prepared.augment, view.shape)
    model = models.create(prepared.model)
    model.check(shape)
    rules = models.naming_of(model).rules
    unnamed = tuple(f"class {label}" for label in range(weights.model["num_classes"]))
    arrays, _ = pretrained.fit(
        weights.read(),
        source=weights.model,
        grid=weights.grid,
        model=prepared.model,
        image_shape=shape,
        shapes=pretrained.parameter_shapes(prepared.model, shape),
        head="keep",
        interpolation=prepared.init.interpolation,
    )
    nested = {"batch_stats": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    if mesh is None:
        variables = jax.tree.map(jnp.asarray, nested)
    else:
        variables = jax.tree.map(sharding.put, nested, sharding.tree_shardings(nested, mesh, rules))
    if getattr(model, "scan", False):
        stacked = jax.eval_shape(trees.stack_layers, variables)
        places = None if mesh is None else sharding.tree_shardings(stacked, mesh, rules)
        variables = jax.jit(trees.stack_layers, out_shardings=places)(variables)
    return Predictor(prepared, model, variables, weights.class_names or unnamed, view, step=0)


def _configuration_of(weights: Weights, overrides: Sequence[str]) -> Config:
    """The default configuration with what is known of the weights: the model and its images."""
    known = weights.preprocessing
    tree = {
        "model": weights.model,
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


def _fetched(batch: Batch, result: Any) -> tuple[Batch, Any]:
    """The results on the host, without those of the padding."""
    return batch, jax.tree.map(lambda array: np.asarray(array)[: len(batch.images)], result)
