"""Opens what was exported, by the libraries that its user will have: onnxruntime, `jax.export`, plain arrays."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, Num, UInt8

from vit_jax import augment, inference, models
from vit_jax.command import UserError
from vit_jax.export import about as described
from vit_jax.export.about import About, tuple_of
from vit_jax.export.formats import ABOUT, HUGGINGFACE, MODEL, SUFFIXES, WEIGHTS, is_huggingface, need_extra
from vit_jax.pretrained.files import need


@dataclass(frozen=True)
class Exported:
    """An exported model, opened."""

    about: About
    run: Callable[[Num[np.ndarray, "n h w c"]], np.ndarray]  # the graph: of images as `about` says it takes them

    @cached_property
    def _input(self) -> Callable[[UInt8[np.ndarray, "n h w c"]], jax.Array]:
        return jax.jit(lambda images: augment.eval_view(self.about.settings, images))

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n *places k"]:
        """The output for images uint8 at the size of `about.view`."""
        return np.asarray(self.run(self.given(images)), np.float32)

    def given(self, images: UInt8[np.ndarray, "n h w c"]) -> Num[np.ndarray, "n H W c"]:
        """What the graph takes, of images uint8 at the size of `about.view`."""
        return images if self.about.with_preprocessing else np.asarray(self._input(images))


def open_exported(path: Path, form: str = "") -> Exported:
    """The model in a file that was exported, or in the folder that holds it; `UserError` where there is none.

    `form`: the format, "": by the name of the file, of a folder by what it holds.
    """
    if form == HUGGINGFACE or (not form and is_huggingface(path)):
        return _open_huggingface(path)
    if path.is_dir():
        found = [path / f"model{suffix}" for suffix in SUFFIXES.values() if suffix]
        path = next((file for file in found if file.is_file()), path)
    openers = {".onnx": _open_onnx, ".stablehlo": _open_stablehlo, ".safetensors": _open_safetensors}
    if not path.is_file() or path.suffix not in openers:
        raise UserError(f"{path} is no exported model; expected a file {', '.join(openers)}, or the folder of one")
    return openers[path.suffix](path)


def _beside(file: Path) -> About:
    path = described.side_file(file)
    if not path.is_file():
        raise UserError(f"{path} is missing; it was written with {file.name}: put it beside the file")
    return described.from_json(path.read_text(encoding="utf-8"), path)


def _open_onnx(file: Path) -> Exported:
    runtime = need_extra("onnxruntime", "reading ONNX")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs may want the cores
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(file), options, providers=runtime.get_available_providers())
    except Exception as error:  # its exceptions have no common class of their own
        raise UserError(f"onnxruntime cannot read {file}: {error}; export it again") from error
    stored = session.get_modelmeta().custom_metadata_map.get(ABOUT)
    about = described.from_json(stored, file) if stored else _beside(file)
    name = session.get_inputs()[0].name
    return Exported(about, lambda images: session.run(None, {name: images})[0])


def _open_stablehlo(file: Path) -> Exported:
    need_extra("flatbuffers", "reading StableHLO")
    try:
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
    except Exception as error:  # of flatbuffers, struct and jax, by what is damaged
        raise UserError(f"{file} is no program of jax.export ({error!r}); export it again") from error
    return Exported(_beside(file), jax.jit(exported.call))


def _open_safetensors(file: Path) -> Exported:
    import json

    safetensors = need("safetensors", str(file))
    try:
        opened = safetensors.safe_open(file, framework="numpy")
        metadata = opened.metadata() or {}
        arrays = {name: jnp.asarray(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 - no mapping
        fields = {name: tuple_of(value) for name, value in json.loads(metadata[MODEL]).items()}
        model, text = models.create(fields), metadata[ABOUT]
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} was not exported by vit_jax ({error!r}); give it as --weights") from error
    if hasattr(model, "scan"):
        model = model.clone(scan=False)
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    return Exported(described.from_json(text, file), lambda images: apply(variables, images))


def _open_huggingface(folder: Path) -> Exported:
    predictor = inference.load(folder)
    model, variables = predictor.model, predictor.variables
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    return Exported(_beside(folder / WEIGHTS), lambda images: apply(variables, images))
