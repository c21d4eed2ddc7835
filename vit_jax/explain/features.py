"""What tokens hold: their main components as colours, their norms, a map of images, and Visual Transformers' tokens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from vit_jax.explain.network import Network, at_places, layer_output, layers

OUTLIER = 3.0  # times the median norm, from which a token is an artefact


def patch_features(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n h w d"]:
    """The last layer's vectors, one for each place."""
    return at_places(network, x, layer_output(network, x, list(layers(network, x))[-1]))


def main_colours(features: Float[np.ndarray, "n h w d"]) -> Float[np.ndarray, "n h w 3"]:
    """The first three principal components of all images' vectors together, each scaled to 0..1, as red, green, blue.

    As Oquab et al. 2023, arXiv:2304.07193, figure 1. Images that are given together have comparable colours.
    """
    flat = features.reshape(-1, features.shape[-1])
    components = min(3, *flat.shape)
    found = PCA(components, svd_solver="full").fit_transform(flat)
    low, high = np.percentile(found, (1, 99), axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(scaled, ((0, 0), (0, 3 - components))).reshape(*features.shape[:3], 3).astype(np.float32)


def norms(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n h w"]:
    """The length of each patch's token after the last block, before the last norm; of a CNN, of its last map."""
    tokens = list(network.sown(x, "tokens").items()) if hasattr(network.model, "patch_size") else []
    y = tokens[-1][1] if tokens else layer_output(network, x, list(layers(network, x))[-1])
    return jnp.linalg.norm(at_places(network, x, y), axis=-1)


def artefacts(norms: Float[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Which tokens are artefacts: far longer than others (Darcet et al. 2024, arXiv:2309.16588, s. 2).

    The paper reads a threshold off each model's histogram; here it is `OUTLIER` times the median of all images.
    """
    return norms > OUTLIER * np.median(norms)


def token_maps(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n b l h w"]:
    """Which places make each of a Visual Transformer's tokens, for each module (Wu et al. 2020, arXiv:2006.03677)."""
    maps = jnp.stack(list(network.sown(x, "tokenizer").values()), axis=1)
    return jnp.moveaxis(maps, -1, 2)


def pooled(network: Network, x: Float[Array, "n H W c"], targets: Int[Array, " n"]) -> Float[Array, "n d"]:
    """What the head reads."""
    return network.pooled(x).reshape(len(x), -1)


def neighbours(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Places in a plane where similar images are near (t-SNE, van der Maaten & Hinton 2008); the same for each call."""
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(features).astype(np.float32)
