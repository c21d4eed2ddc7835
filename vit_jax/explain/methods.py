"""The methods by name, and `explain`: images in any form in, arrays out."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from vit_jax import losses
from vit_jax.command import UserError
from vit_jax.data import resizing
from vit_jax.explain import attention, features, gradients, parameters, receptive_field
from vit_jax.explain.network import Network, grid, layers, open_network
from vit_jax.explain.occlusion import occlusion
from vit_jax.inference.images import Images, all_files, batches, one_by_one
from vit_jax.inference.predictor import Predictor
from vit_jax.models.visual_transformer import VisualTransformer

BATCH_SIZE = 16
Target: TypeAlias = int | str | Sequence[int | str] | None


def _attends(predictor: Predictor) -> str:
    return "" if hasattr(predictor.model, "num_heads") else "has no attention between patches"


def _has_positions(predictor: Predictor) -> str:
    kind = getattr(predictor.model, "pos_embed", "none")
    has = kind in ("learned", "learned_2d", "sincos2d", "sincos1d")
    return "" if has else f"adds no positions to its tokens (pos_embed={kind!r})"


def _has_semantic_tokens(predictor: Predictor) -> str:
    return "" if isinstance(predictor.model, VisualTransformer) else "is no Visual Transformer"


def _decides(predictor: Predictor) -> str:
    if getattr(predictor.model, "pooling", "") == "none":
        return "gives classes to patches, not to the image (pooling='none')"
    return "" if predictor.class_names else "has no head, thus no class"


def _any(predictor: Predictor) -> str:
    return ""


@dataclass(frozen=True)
class Method:
    """How a method is computed: `compute(network, x, targets, **options)`, or without images `compute(network, x)`."""

    compute: Callable[..., Any]
    result: str  # its shape
    about: str
    obstacle: Callable[[Predictor], str] = _any  # why it does not apply; "" where it does
    class_specific: bool = False
    images: int = 1  # that it needs at least
    finish: Callable[[np.ndarray], np.ndarray] | None = None  # of all images together

    @property
    def options(self) -> list[str]:
        """What else can be chosen."""
        parameters = inspect.signature(self.compute).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


METHODS: dict[str, Method] = {
    "attention": Method(
        attention.attention, "n b a h w", "what each head of each block attends to (query=: of one patch)", _attends
    ),
    "rollout": Method(attention.rollout, "n h w", "attention rolled out over the blocks", _attends),
    "gradient_rollout": Method(
        attention.gradient_rollout, "n h w", "attention weighted by the class's gradients", _attends, True
    ),
    "grad_cam": Method(gradients.grad_cam, "n h w", "a layer's map weighted by the class's gradients", _any, True),
    "integrated_gradients": Method(
        gradients.integrated_gradients, "n H W", "each pixel's part of the class's logit", _any, True
    ),
    "occlusion": Method(occlusion, "n H W", "what the class loses where the image is covered", _any, True),
    "distance": Method(attention.distance, "n b a", "how far each head of each block attends, in pixels", _attends),
    "receptive_field": Method(receptive_field.effective, "n H W", "the pixels that the central place depends on"),
    "positions": Method(
        parameters.positions, "h w h w", "how similar position embeddings are", _has_positions, images=0
    ),
    "filters": Method(parameters.filters, "k p q c", "the filters of the first layer", images=0),
    "pca": Method(
        features.patch_features, "n h w 3", "the main components of features, as colours", finish=features.main_colours
    ),
    "norms": Method(features.norms, "n h w", "the length of tokens; far longer ones are artefacts"),
    "token_maps": Method(
        features.token_maps, "n b l h w", "the places of a Visual Transformer's tokens", _has_semantic_tokens
    ),
    "tsne": Method(
        features.pooled, "n 2", "a plane where similar images are near", images=4, finish=features.neighbours
    ),
}


def find_method(name: str) -> Method:
    """Raises `UserError` for a name that is not there."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
    return METHODS[name]


def obstacle(method: Method, predictor: Predictor) -> str:
    """Why the method does not apply to the model; "" where it does."""
    return method.obstacle(predictor) or (_decides(predictor) if method.class_specific else "")


def explain(
    predictor: Predictor,
    images: Images,
    method: str,
    target: Target = None,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> np.ndarray:
    """What a method says of images: an array float32, whose shape is the method's `result`.

    Shapes: `n` images of `H W` pixels, as the model sees them, `h w` places of its grid, `b` blocks, `a` heads, `l`
    tokens, `k` filters `p q c`.

    Args:
        images: in any form that `predict` takes; not looked at by `positions` and `filters`.
        method: a name of `METHODS`.
        target: the class that a class-specific method explains: its number or name, or one for each image; None: the
            class that the model finds most probable.
        options: of the method, see `METHODS[method].options`.

    Raises:
        UserError: an unknown method, target or option, a method that does not apply to the model, a broken image.
    """
    chosen, network = _applicable(predictor, method), network_of(predictor)
    one = jax.ShapeDtypeStruct((1, *_input_shape(network, predictor)), jnp.float32)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}  # hashable
    _check_options(chosen, method, network, one, options)
    if not chosen.images:
        return np.asarray(chosen.compute(network, one), np.float32)
    pixels = read_pixels(predictor, images)
    if len(pixels) < chosen.images:
        raise UserError(f"method {method!r} needs at least {chosen.images} images, not {len(pixels)}; give more")
    targets = find_targets(predictor, pixels, target) if chosen.class_specific else np.zeros(len(pixels), np.int32)
    found = compute(chosen.compute, network, pixels, targets, batch_size, options)
    if options.get("layer") and chosen.class_specific and not found.any():
        raise UserError(
            f"layer={options['layer']!r} gives zero maps: the class does not depend on its patches, as behind the last "
            f"attention of a class token; leave it out: {gradients.grad_cam_layer(network, one)!r} is then taken"
        )
    return chosen.finish(found) if chosen.finish else found


def compute(
    function: Callable[..., Any],
    network: Network,
    pixels: UInt8[np.ndarray, "n h w c"],
    targets: Int[np.ndarray, " n"],
    batch_size: int = BATCH_SIZE,
    options: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """`function(network, x, targets, **options)` of all images, as many at once as `batch_size` says; float32."""
    if batch_size < 1:
        raise UserError(f"{batch_size=} is not positive")
    size, parts = min(batch_size, len(pixels)), []
    chosen = tuple(sorted((options or {}).items()))
    for start in range(0, len(pixels), size):
        some, theirs = pixels[start : start + size], targets[start : start + size]
        missing = size - len(some)
        some, theirs = np.pad(some, ((0, missing), (0, 0), (0, 0), (0, 0))), np.pad(theirs, (0, missing))
        found = _compiled(function, network, some, theirs, chosen)
        parts.append(np.asarray(found, np.float32)[: size - missing])
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=(0, 4))
def _compiled(function: Any, network: Network, images: Array, targets: Array, options: tuple[Any, ...]) -> Array:
    return function(network, network.view(images), targets, **dict(options))


def network_of(predictor: Predictor) -> Network:
    """The predictor's model, open to look at."""
    sigmoid = losses.LOSSES[predictor.config.task["loss"]].independent if "loss" in predictor.config.task else False
    return open_network(predictor.model, predictor.variables, predictor.config.augment, sigmoid=sigmoid)


def read_pixels(predictor: Predictor, images: Images, scale: int = 1) -> UInt8[np.ndarray, "n h w c"]:
    """The images at the size of the preprocessing, or `scale` times as large; raises `UserError` for a broken one."""
    height, width = predictor.preprocessing.size
    larger = dataclasses.replace(predictor.preprocessing, size=(scale * height, scale * width))
    parts = [np.zeros((0, *larger.shape), np.uint8)]
    given = one_by_one(images)
    if scale > 1 and not all_files(given):  # what has the model's size is not cropped, larger as little as it is there
        size = predictor.preprocessing.size
        given = [
            resizing.resize(np.atleast_3d(one), larger.size, "stretch")
            if isinstance(one, np.ndarray) and one.shape[:2] == size and one.dtype == np.uint8
            else one
            for one in given
        ]
    for batch in batches(given, larger, 128, predictor.config.data.threads):
        for file, fault in batch.broken.items():
            raise UserError(f"{file} cannot be used as an image: {fault}; leave it out")
        parts.append(batch.images)
    return np.concatenate(parts)


def find_targets(predictor: Predictor, pixels: UInt8[np.ndarray, "n h w c"], target: Target) -> Int[np.ndarray, " n"]:
    """The class of each image: as given, or the most probable one."""
    if target is None:
        return predictor.logits(pixels).argmax(axis=1).astype(np.int32)
    given = [target] * len(pixels) if isinstance(target, int | np.integer | str) else list(target)
    if len(given) != len(pixels):
        raise UserError(f"target has {len(given)} classes for {len(pixels)} images; give one, or one for each image")
    return np.array([_number(predictor.class_names, one) for one in given], np.int32)


def _number(class_names: Sequence[str], target: int | str) -> int:
    if isinstance(target, str) and target in class_names:
        return class_names.index(target)
    if isinstance(target, int | np.integer) or target.isdecimal():
        if 0 <= int(target) < len(class_names):
            return int(target)
        raise UserError(f"target {target} is out of range: the model has classes 0 to {len(class_names) - 1}")
    known = ", ".join(class_names[:20]) + (" ..." if len(class_names) > 20 else "")
    raise UserError(f"target {target!r} is no class of the model; it has {known}")


def _applicable(predictor: Predictor, name: str) -> Method:
    method = find_method(name)
    if reason := obstacle(method, predictor):
        others = [other for other, one in METHODS.items() if not obstacle(one, predictor)]
        raise UserError(
            f"method {name!r} does not apply: the model {predictor.config.model['name']!r} {reason}; "
            f"choose from {', '.join(others)}"
        )
    return method


def _input_shape(network: Network, predictor: Predictor) -> tuple[int, ...]:
    images = jax.ShapeDtypeStruct((1, *predictor.preprocessing.shape), jnp.uint8)
    return jax.eval_shape(network.view, images).shape[1:]


def _check_options(method: Method, name: str, network: Network, x: Any, options: Mapping[str, Any]) -> None:
    if unknown := [option for option in options if option not in method.options]:
        has = f"it has {', '.join(method.options)}" if method.options else "it has none"
        raise UserError(f"method {name!r} has no option {unknown[0]!r}; {has}")
    if path := options.get("layer"):
        known = list(layers(network, x))
        if path not in known:
            raise UserError(f"layer={path!r} is no layer with a value for each place; choose from {', '.join(known)}")
    if query := options.get("query"):
        h, w = grid(network, x)
        if len(query) != 2 or not (0 <= query[0] < h and 0 <= query[1] < w):
            raise UserError(f"query={tuple(query)} is no row and column of the grid of {h}x{w} patches")
    if not 0 <= options.get("window", 0) <= min(x.shape[1:3]) or options.get("stride", 0) < 0:
        raise UserError(
            f"window={options.get('window', 0)} and stride={options.get('stride', 0)} must be pixels of the image, "
            f"{x.shape[1]}x{x.shape[2]}; 0 means the default"
        )
    if options.get("steps", 1) < 1:
        raise UserError(f"steps={options['steps']} is not positive; 32 is usual")
    if options.get("baseline", "mean") not in ("mean", "black"):
        raise UserError(f"baseline={options['baseline']!r} is unknown; choose mean or black")
