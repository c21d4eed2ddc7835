"""Decoders, which turn what a backbone knows of an image into a class for each place, and the module of both."""

from vit_jax.models.decoders.pyramid import FeaturePyramid, SimplePyramid, TokenPyramid
from vit_jax.models.decoders.segmenter import Segmenter
from vit_jax.models.decoders.tokens import LinearDecoder, MaskTransformer

__all__ = ["FeaturePyramid", "LinearDecoder", "MaskTransformer", "Segmenter", "SimplePyramid", "TokenPyramid"]
