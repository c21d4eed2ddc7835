"""An ONNX model whose matrix products and convolutions are of 8-bit integers, by onnxruntime's own quantizer.

`dynamic` finds the range of activations anew for each batch; `static` takes it from calibration images, once.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_jax.export.compare import Images
from vit_jax.export.exported import Exported
from vit_jax.export.formats import need_extra

Kind = Literal["dynamic", "static"]
BATCH_SIZE = 32  # of calibration


def quantize(model: bytes, kind: Kind, exported: Exported, images: Images) -> bytes:
    """The quantized model; `exported` is the given one, opened, and `images` uint8 [n h w c] calibrate a static one."""
    tools: Any = need_extra("onnxruntime.quantization", "--quantize")
    preparation: Any = need_extra("onnxruntime.quantization.shape_inference", "--quantize")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given, ready, result = (Path(folder) / f"{name}.onnx" for name in ("given", "ready", "int8"))
        given.write_bytes(model)
        preparation.quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
        common: dict[str, Any] = {"per_channel": True, "weight_type": tools.QuantType.QInt8}
        products = ["MatMul", "Gemm"]
        if kind == "dynamic":
            tools.quantize_dynamic(str(ready), str(result), op_types_to_quantize=products, **common)
        else:
            reader = _reader(tools, exported, images)
            common["op_types_to_quantize"] = [*products, "Conv"]
            common["activation_type"] = tools.QuantType.QUInt8  # of signed ones it mixes both kinds (onnxruntime 1.32)
            # The adjustment fails for weights with a scale for each channel (onnxruntime 1.32).
            common["extra_options"] = {"QDQDisableWeightAdjustForInt32Bias": True}
            tools.quantize_static(str(ready), str(result), reader, **common)
        return result.read_bytes()


def _reader(tools: Any, exported: Exported, images: Images) -> Any:
    """Gives the quantizer the graph's inputs, a batch at a time."""
    starts = iter(range(0, len(images), BATCH_SIZE))

    class Reader(tools.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(starts, None)
            if start is None:
                return None
            return {"images": exported.given(images[start : start + BATCH_SIZE])}

    return Reader()
