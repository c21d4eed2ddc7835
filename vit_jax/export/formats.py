"""Writes a graph in each format, and nothing else: ONNX, StableHLO, safetensors, Hugging Face's."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.export.about import SIDE_FILE, side_file
from vit_jax.export.graph import Graph, Trained
from vit_jax.export.primitives import as_primitives
from vit_jax.files import write_atomically
from vit_jax.pretrained.files import need

SUFFIXES = {"onnx": ".onnx", "stablehlo": ".stablehlo", "safetensors": ".safetensors", "huggingface": ""}
PLATFORMS = ("cpu", "cuda", "tpu")
ABOUT, MODEL = "vit_jax", "vit_jax.model"  # keys of the metadata inside ONNX and safetensors files
LARGEST = 2**31 - 2**20  # bytes of an ONNX file: a protocol buffer has no more


def write(graph: Graph, trained: Trained, form: str, file: Path) -> None:
    """Writes the graph into `file`, whole or not at all, and its description beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if form == "huggingface":
        trained.predictor.save_huggingface(file)
        write_atomically(file / SIDE_FILE, graph.about.to_json())
        return
    write_atomically(file, BYTES[form](graph, trained))
    write_atomically(side_file(file), graph.about.to_json())


def stablehlo(graph: Graph, trained: Trained) -> bytes:
    """A program that `jax.export.deserialize` reads, for CPUs, NVIDIA GPUs and TPUs, and any number of images."""
    need_extra("flatbuffers", "writing StableHLO")
    exported = jax.export.export(graph.compiled, platforms=PLATFORMS)(graph.symbolic_images)
    return bytes(exported.serialize())


def onnx(graph: Graph, trained: Trained) -> bytes:
    """An ONNX model, with its description inside."""
    size = trees.num_bytes(graph.variables)
    if size > LARGEST:
        raise UserError(f"the model has {size:,} bytes, an ONNX file no more than {LARGEST:,}; export it as stablehlo")
    jax2onnx = need_extra("jax2onnx", "writing ONNX")
    with _quiet():
        given = graph.symbolic_images
        model = jax2onnx.to_onnx(
            as_primitives(graph.__call__, given),
            [given],
            model_name=graph.about.model,
            input_names=["images"],
            output_names=[graph.about.output],
        )
    model.metadata_props.add(key=ABOUT, value=graph.about.to_json())
    return model.SerializeToString()


def safetensors(graph: Graph, trained: Trained) -> bytes:
    """The arrays by their canonical names; the model's fields and the description are in the header."""
    numpy = need("safetensors.numpy", "safetensors files")
    arrays = {
        name: np.ascontiguousarray(leaf)
        for name, leaf in zip(trees.names(graph.variables), jax.tree.leaves(graph.variables), strict=True)
    }
    metadata = {ABOUT: graph.about.to_json(), MODEL: json.dumps(trained.predictor.config.model)}
    return numpy.save(arrays, metadata)


BYTES: dict[str, Callable[[Graph, Trained], bytes]] = {"onnx": onnx, "stablehlo": stablehlo, "safetensors": safetensors}


def need_extra(package: str, what: str) -> Any:
    """The module of a package of the extra `onnx`; where it is missing, a `UserError` tells how to install it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what} needs the package {package}: pip install 'vit_jax[onnx]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says of each node it changes."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
