"""Files of weights and exported models that are damaged, disguised or hostile."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.bad_input.case import READ, Case
from tests.pretrained import google_files
from tests.pretrained import huggingface_files as hf
from vit_jax.export import open_exported
from vit_jax.pretrained import open_weights
from vit_jax.pretrained.files import open_arrays

Door = Callable[[Path], str | None]
SHAPES = hf.vit(6, 13, 1, 4, 5) | hf.linear("classifier", 6, 3)
WHOLE = save(hf.arrays(SHAPES))
CONFIG = {"model_type": "vit", "num_attention_heads": 2, "image_size": 8}


class Touches:
    """What a pickle could do: it would create a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/vit_jax-was-executed").touch, ())


def file(name: str, content: bytes | Callable[[], bytes]) -> Door:
    """The arrays of a file, all of them read."""

    def door(folder: Path) -> None:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        arrays = open_arrays(path)
        for key in arrays:
            assert arrays[key].shape == arrays.shapes[key]

    return door


def folder_of(**files: bytes | Mapping[str, Any] | list[Any] | str) -> Door:
    """Weights in a folder, opened and read; in the names `__` stands for a dot."""

    def door(folder: Path) -> None:
        for name, content in files.items():
            text = content if isinstance(content, bytes | str) else json.dumps(content)
            (folder / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
        open_weights(str(folder)).read()

    return door


def transformers(config: Any = CONFIG, processor: Any = None, weights: bytes = WHOLE) -> Door:
    files: dict[str, Any] = {"model__safetensors": weights, "config__json": config}
    return folder_of(**files | ({} if processor is None else {"preprocessor_config__json": processor}))


def address(text: str) -> Door:
    return lambda folder: open_weights(text) and None


def safetensors(header: Any, data: bytes = b"", *, size: int | None = None) -> bytes:
    """A file with this header, whose length it says is `size`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def npz(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def lzma_npz() -> bytes:
    """Whose properties of the compression, five bytes after a version and a length, are none."""
    whole = npz(zipfile.ZIP_LZMA, **{"a.npy": npy(FLOATS, bytes(8))})
    at = whole.index(b"a.npy") + len("a.npy") + 4
    return whole[:at] + b"\xff" + whole[at + 1 :]


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


def plain_npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, **google_files.random_arrays(google_files.vision_transformer()))
    return content.getvalue()


def object_npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.array([Touches()], object))
    return content.getvalue()


def exported(name: str, content: bytes, **beside: str) -> Door:
    def door(folder: Path) -> None:
        (folder / name).write_bytes(content)
        for other, text in beside.items():
            (folder / other.replace("__", ".")).write_text(text)
        open_exported(folder / name)

    return door


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
CODE = "__import__('pathlib').Path('/tmp/vit_jax-was-executed').touch()"
INDEX = "model__safetensors__index__json"
HALF = len(WHOLE) // 2

CASES = [
    Case("Files of weights", "an empty file", "is empty", file("x.npz", b"")),
    Case("Files of weights", "a web page", "is a web page", file("x.safetensors", b"<!doctype html><p>404")),
    Case(
        "Files of weights", "a git-LFS pointer", "git lfs pull", file("x.npz", b"version https://git-lfs.github.com/")
    ),
    Case("Files of weights", "a pickle", "is a pickle", file("x.npz", pickle.dumps(Touches()))),
    Case(
        "Files of weights", "PyTorch's zip with a pickle", "is a pickle", file("x.pt", npz(**{"a/data.pkl": b"\x80"}))
    ),
    Case("Files of weights", "HDF5", "is HDF5", file("x.npz", b"\x89HDF\r\n\x1a\n")),
    Case("Files of weights", "a single array (.npy)", "is a single array", file("x.npz", npy(FLOATS, bytes(8)))),
    Case("Files of weights", "random bytes", "is neither .npz nor .safetensors", file("x.npz", bytes(range(200, 256)))),
    Case(".npz", "a whole one", READ, file("x.npz", plain_npz)),
    Case(".npz", "cut in half", "is truncated or damaged", file("x.npz", lambda: plain_npz()[:9999])),
    Case(".npz", "its first kilobyte", "is truncated or damaged", file("x.npz", lambda: plain_npz()[:1000])),
    Case(".npz", "a flipped bit", "", file("x.npz", lambda: plain_npz().replace(b"NUMPY", b"NUMPX", 1))),
    Case(".npz", "LZMA with properties that do not exist", "is truncated or damaged", file("x.npz", lzma_npz)),
    Case(".npz", "no array in it", "is a zip archive without arrays", file("x.npz", npz(**{"a.txt": b"x"}))),
    Case(".npz", "pickled objects", "holds pickled Python objects", file("x.npz", object_npz)),
    Case(".npz", "a header that is Python code", "is truncated or damaged", file("x.npz", npz(**{"a.npy": npy(CODE)}))),
    *(
        Case(".npz", f"a header that {what}", "is truncated or damaged", file("x.npz", npz(**{"a.npy": npy(text)})))
        for what, text in (("does not end", "{'descr'"), ("is badly indented", "  {\n {}\n}\n  x"))
    ),
    Case(".npz", "4 TB by its header", "is truncated or damaged", file("x.npz", npz(**{"a.npy": npy(HUGE, bytes(8))}))),
    Case(".npz", "a member ../../x.npy", READ, file("x.npz", npz(**{"../../x.npy": npy(FLOATS, bytes(8))}))),
    Case(".npz", "an array of unknown type", "is truncated", file("x.npz", npz(**{"a.npy": npy("{'descr': '<q9'}")}))),
    Case(".safetensors", "a whole one", READ, file("x.safetensors", WHOLE)),
    Case(".safetensors", "cut in half", "is truncated or damaged", file("x.safetensors", WHOLE[:HALF])),
    Case(".safetensors", "cut by a byte", "is truncated or damaged", file("x.safetensors", WHOLE[:-1])),
    Case(".safetensors", "a byte too many", "is truncated or damaged", file("x.safetensors", WHOLE + b"\0")),
    *(
        Case(".safetensors", given, "is truncated or damaged", file("x.safetensors", content))
        for given, content in {
            "a header of 2^60 bytes": safetensors({}, size=2**60),
            "a header longer than the file": safetensors({}, size=999),
            "a header that is no JSON": safetensors(b"{]"),
            "a header that is not UTF-8": safetensors(b'{"\xff":1}'),
            "an unknown type": safetensors({"a": entry("F99")}, bytes(8)),
            "data beyond the end": safetensors({"a": entry(offsets=(0, 999))}, bytes(8)),
            "data before the beginning": safetensors({"a": entry(offsets=(-8, 0))}, bytes(8)),
            "another size than the shape's": safetensors({"a": entry(shape=(3,))}, bytes(8)),
            "a negative shape": safetensors({"a": entry(shape=(-2,))}, bytes(8)),
            "2^80 elements": safetensors({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
            "two arrays in one place": safetensors({"a": entry(), "b": entry()}, bytes(8)),
            "a gap between arrays": safetensors({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
        }.items()
    ),
    Case("Folders of weights", "an empty folder", "holds no weights", folder_of()),
    Case("Folders of weights", "two files", "holds several files", folder_of(a__npz=b"", b__npz=b"")),
    Case("Folders of weights", "a pickle alone", "is a pickle", folder_of(pytorch_model__bin=pickle.dumps(Touches()))),
    Case(
        "Folders of weights",
        "arrays of no known layout",
        "of no layout",
        folder_of(a__safetensors=save({"a": np.zeros(2)})),
    ),
    Case("Folders of weights", "an index that is no JSON", "as JSON", folder_of(**{INDEX: "{"})),
    Case("Folders of weights", "an index that is a list", "holds no JSON object", folder_of(**{INDEX: [1]})),
    Case("Folders of weights", "an index without a map", "has no 'weight_map'", folder_of(**{INDEX: {}})),
    Case(
        "Folders of weights",
        "an index that names ../../x",
        "expected one in its own folder",
        folder_of(**{INDEX: {"weight_map": {"a": "../../x.safetensors"}}}),
    ),
    Case(
        "Folders of weights",
        "an index of a part that is not there",
        "is missing",
        folder_of(**{INDEX: {"weight_map": {"a": "b.safetensors"}}}),
    ),
    Case(
        "Folders of weights",
        "a whole file, and an index left beside it",
        READ,
        folder_of(model__safetensors=WHOLE, config__json=CONFIG, **{INDEX: {"weight_map": {"a": "b.safetensors"}}}),
    ),
    Case("Hugging Face folders", "a whole one", READ, transformers()),
    Case("Hugging Face folders", "config.json is no JSON", "as JSON", transformers("{")),
    Case("Hugging Face folders", "config.json is a list", "holds no JSON object", transformers([])),
    Case("Hugging Face folders", "config.json is not UTF-8", "as JSON", transformers(b'{"a": "\xff"}')),
    Case("Hugging Face folders", "another model_type", "is not among", transformers(CONFIG | {"model_type": "clip"})),
    Case(
        "Hugging Face folders", "another activation", "hidden_act='mish'", transformers(CONFIG | {"hidden_act": "mish"})
    ),
    Case(
        "Hugging Face folders",
        "numbers, not classes",
        "'regression'",
        transformers(CONFIG | {"problem_type": "regression"}),
    ),
    *(
        Case(
            "Hugging Face folders",
            f"config.json: {field} = {json.dumps(value)}",
            "",
            transformers(CONFIG | {field: value}),
        )
        for field, value in {
            "num_attention_heads": "two",
            "layer_norm_eps": "small",
            "image_size": "large",
            "id2label": ["ant"],
            "hidden_act": ["gelu"],
            "model_type": {},
        }.items()
    ),
    Case("Hugging Face folders", "num_attention_heads = 5 of 6", "", transformers(CONFIG | {"num_attention_heads": 5})),
    Case("Hugging Face folders", "num_attention_heads = 0", "", transformers(CONFIG | {"num_attention_heads": 0})),
    Case("Hugging Face folders", "image_size = 12 for a grid of 2 x 2", "", transformers(CONFIG | {"image_size": 12})),
    *(
        Case(
            "Hugging Face folders",
            f"preprocessor_config.json: {json.dumps(value)}",
            said,
            transformers(processor=value),
        )
        for value, said in (
            ({"size": "large"}, "is not supported"),
            ({"size": {"longest_edge": 8}}, "is not supported"),
            ({"size": 0}, ""),
            ({"size": {"height": "8", "width": 8}}, ""),
            ({"size": 8, "resample": 99}, "resample=99"),
            ({"size": 8, "resample": [3]}, ""),
            ({"size": 8, "image_mean": "grey"}, ""),
            ({"size": 8, "image_std": [0, 0, 0]}, ""),
            ({"size": 8, "crop_pct": 0}, ""),
            ({"size": 8, "rescale_factor": 0}, ""),
            ({"size": 8, "do_center_crop": True, "crop_size": {"height": 4, "width": 8}}, "is not supported"),
            ({"do_resize": False, "do_center_crop": True, "crop_size": 8}, "cuts (8, 8) out of images as they are"),
        )
    ),
    Case("Addresses", "nothing", "the address of the weights is empty", address("")),
    Case("Addresses", "a path that is not there", "does not exist", address("/no/such/file.npz")),
    Case("Addresses", "a folder of the Hub without hf://", "of the Hub, write hf://", address("google/no-such-model")),
    Case("Addresses", "a scheme that is unknown", "the scheme htps:// is unknown", address("htps://host/x.npz")),
    Case("Addresses", "hf:// without a name", "is no address on the Hugging Face Hub", address("hf://google")),
    Case("Addresses", "a path of 5,000 bytes", "does not exist", address("/" + "a" * 5000)),
    Case("Addresses", "a zero byte", "does not exist", address("a\0b")),
    Case("Exported models", "an .onnx of garbage", "onnxruntime cannot read", exported("x.onnx", b"garbage")),
    Case(
        "Exported models", "a .stablehlo of garbage", "is no program of jax.export", exported("x.stablehlo", b"garbage")
    ),
    Case("Exported models", "an empty .stablehlo", "is no program of jax.export", exported("x.stablehlo", b"")),
    Case(
        "Exported models", "a .safetensors of others", "was not exported by vit_jax", exported("x.safetensors", WHOLE)
    ),
    Case(
        "Exported models", "a .safetensors of garbage", "was not exported by vit_jax", exported("x.safetensors", b"x")
    ),
    Case("Exported models", "another file", "is no exported model", exported("x.txt", b"x")),
]
