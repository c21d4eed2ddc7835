"""Trained models for other programs: ONNX, StableHLO, safetensors, Hugging Face's layout.

    python -m vit_jax.export --workdir runs/digits --format onnx --out digits.onnx

`graph` is what is exported, `formats` writes it, `exported` opens it again, `compare` says how far it is from the
model, `quantize` makes int8 of it.
"""

from vit_jax.export.about import About
from vit_jax.export.command import Differs, export, main
from vit_jax.export.exported import Exported, open_exported
from vit_jax.export.graph import find_trained, make_graph

__all__ = ["About", "Differs", "Exported", "export", "find_trained", "main", "make_graph", "open_exported"]
