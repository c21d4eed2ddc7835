"""Looks for input that ends in something else than a result or one clear line: atheris, guided by the code it reaches.

    pip install atheris  # needs Python 3.11 to 3.13 on Linux
    python benchmarks/fuzz.py decode -max_total_time=600
    python benchmarks/fuzz.py weights -max_total_time=600

`decode`: the bytes of an image file; `weights`: those of a .npz or .safetensors file. The further arguments are
libFuzzer's. It ends with a traceback at the first input that breaks the law, and keeps that input as `crash-*`.
"""

import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "vit_jax", "safetensors", "numpy.lib", "zipfile"]):
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save

    from vit_jax.command import UserError
    from vit_jax.data import decoding
    from vit_jax.pretrained.files import open_arrays

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "QOI")
SCRATCH = Path(tempfile.mkdtemp()) / "weights"


def decode(content: bytes) -> None:
    try:
        pixels = decoding.decode(content, 0)
    except decoding.BrokenImage:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (1, 3), pixels.shape


def weights(content: bytes) -> None:
    SCRATCH.write_bytes(content)
    try:
        arrays = open_arrays(SCRATCH)
        for name in arrays:
            assert arrays[name].shape == arrays.shapes[name]
    except UserError:
        return


def images() -> list[bytes]:
    found = []
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    for kind in KINDS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found.append(file.getvalue())
    return found


def files_of_weights() -> list[bytes]:
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    return [plain.getvalue(), packed.getvalue(), save(arrays)]


DOORS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "decode": (decode, images),
    "weights": (weights, files_of_weights),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in DOORS:
        sys.exit(f"usage: python benchmarks/fuzz.py {'|'.join(DOORS)} [-max_total_time=600]")
    door, seeds = DOORS[sys.argv[1]]
    warnings.simplefilter("ignore")
    logging.disable()
    corpus = Path(tempfile.mkdtemp())
    for i, content in enumerate(seeds()):
        (corpus / str(i)).write_bytes(content)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[2:]], door)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
