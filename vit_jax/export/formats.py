"""Writes a graph in each format, and nothing else: ONNX, StableHLO, safetensors, Hugging Face's."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.export.about import side_file
from vit_jax.export.graph import Graph, Trained
from vit_jax.export.primitives import as_primitives
from vit_jax.files import write_atomically
from vit_jax.pretrained.files import need
from vit_jax.workdir import Workdir

HUGGINGFACE = "huggingface"
WEIGHTS = "model.safetensors"  # of Hugging Face's folder
SUFFIXES = {"onnx": ".onnx", "stablehlo": ".stablehlo", "safetensors": ".safetensors", HUGGINGFACE: ""}
PLATFORMS = ("cpu", "cuda", "tpu")
ABOUT, MODEL = "vit_jax", "vit_jax.model"  # keys of the metadata inside ONNX and safetensors files
LARGEST = 2**31 - 2**20  # bytes of an ONNX file: a protocol buffer has no more


def write(graph: Graph, trained: Trained, form: str, file: Path) -> None:
    """Writes the graph into `file`, whole or not at all, and its description beside it."""
    if form == HUGGINGFACE:
        trained.predictor.save_huggingface(file)
    else:
        write_atomically(file, BYTES[form](graph, trained))
    write_atomically(side_file(file / WEIGHTS if form == HUGGINGFACE else file), graph.about.to_json())


@contextlib.contextmanager
def unfinished(form: str, file: Path) -> Iterator[Path]:
    """Where to write what is to become `file`: it gets that name where the block ends without an exception.

    Raises `UserError` where that would replace other files than an earlier export's.
    """
    check_target(form, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=file.parent) as folder:
        draft = Path(folder) / file.name
        yield draft
        source, target = (draft, file) if form == HUGGINGFACE else (draft.parent, file.parent)
        target.mkdir(exist_ok=True)
        for path in sorted(source.iterdir(), key=lambda path: path.name in (file.name, WEIGHTS)):  # the model last
            os.replace(path, target / path.name)


def check_target(form: str, file: Path) -> None:
    """Raises `UserError` where an export to this file, or folder, would destroy something else."""
    folder = file if form == HUGGINGFACE else file.parent
    other = "give another --out"
    if Workdir(folder).is_run():
        raise UserError(f"--out {file}: {folder} is the folder of a run, which an export could damage; {other}")
    if form == HUGGINGFACE and (folder / "config.json").exists() and not is_huggingface(folder):
        raise UserError(f"--out {file}: its config.json is not Hugging Face's and would be replaced; {other}")
    if form == HUGGINGFACE and folder.is_file():
        raise UserError(f"--out {file} is a file; --format {form} needs a folder: {other}")
    if form != HUGGINGFACE and file.is_dir():
        raise UserError(f"--out {file} is a folder, though it is called as a file of --format {form} is; {other}")
    if file.name == WEIGHTS and is_huggingface(folder):
        raise UserError(f"--out {file} would replace the weights of a Hugging Face folder; {other}")


def is_huggingface(folder: Path) -> bool:
    """Whether the folder is one of `transformers`."""
    if (folder / "preprocessor_config.json").is_file():
        return True
    try:
        return "architectures" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


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
    return _in_order(numpy.save(arrays, metadata))


def _in_order(content: bytes) -> bytes:
    """The safetensors file with its metadata in order: as it is saved their order is random, so equal models differ."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays are aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


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
