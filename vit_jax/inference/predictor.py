"""A trained model, ready to use: `load` a run or published weights, then `predict` or get `features`."""

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
from jaxtyping import Array, Float, UInt8

from vit_jax import augment, losses, tasks, trees
from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Preprocessing as HostPreprocessing
from vit_jax.inference.images import Batch, Images, Pictures, all_files, batches, one_by_one
from vit_jax.pretrained import Preprocessing
from vit_jax.trees import PyTree

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

    `predict`, `features` and `explain` take images in these forms, `logits` only the second:

    - a file, a folder or a Pillow image: decoded, scaled and cropped by `preprocessing`, also where it has the model's
      size by chance, as evaluation does;
    - an array uint8 of the model's height and width (`preprocessing.size`): taken as it is, since `preprocessing`, or
      a split, may have made it. It is neither scaled nor cropped again, whatever `crop_fraction` says;
    - an array uint8 of any other size: an image as stored, scaled and cropped as a file is.

    Arrays are [n h w c], or a list of [h w c] and [h w]; a list may mix all forms. In each the logits of an image are
    the same, those of its evaluation and of the exported model. `batch_size` sets the memory that is needed; a batch
    is read while the one before is computed, on one device.
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

        view, stored = whole_preprocessing(self.config, self.preprocessing), self.preprocessing.size
        if view.size != stored:
            logging.getLogger(__name__).warning(
                "transformers brings images to %s at once, here they have been %s before: what it sees of larger ones "
                "is sharper, and its logits differ; give it images of %s",
                *("x".join(map(str, size)) for size in (view.size, stored, stored)),
            )
        loss = losses.LOSSES.get(self.config.task.get("loss", ""))
        params = {"params": trees.unstack_layers(dict(self.variables))["params"]}
        independent = loss is not None and loss.independent
        save_huggingface(
            Path(folder), self.config.model, params, self.class_names, view, view.size, independent=independent
        )

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


def _fetched(batch: Batch, result: Any) -> tuple[Batch, Any]:
    """The results on the host, without those of the padding."""
    return batch, jax.tree.map(lambda array: np.asarray(array)[: len(batch.images)], result)
