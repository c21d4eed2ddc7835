"""The arrays of `explain` as one picture for people, each method in its own way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.augment import input_shape
from vit_jax.command import UserError
from vit_jax.explain import drawing, features
from vit_jax.explain.drawing import Series, Tile, at_height, heat_over, heat_tile, sheet
from vit_jax.explain.methods import METHODS, Target, compute, explain, find_targets, network_of, read_pixels
from vit_jax.explain.network import layers
from vit_jax.explain.receptive_field import effective, effective_size, theoretical_size
from vit_jax.inference.images import Images, all_files, one_by_one
from vit_jax.inference.predictor import Predictor

HEIGHT = 160  # pixels of an image
ACROSS = 6  # tiles in a row


@dataclass(frozen=True)
class Explained:
    """What a method found in images, ready to be drawn."""

    predictor: Predictor
    images: Images
    method: str
    target: Target
    found: np.ndarray
    beside: Predictor | None = None  # of `distance`: a CNN, whose receptive fields are drawn beside
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "n h w c"]:
        """The images as the model reads them."""
        return read_pixels(self.predictor, self.images)

    @cached_property
    def shown(self) -> list[Image.Image]:
        """The images as people like to see them: in the model's crop, but not as coarse."""
        height = self.predictor.preprocessing.size[0]
        scale = max(1, -(-HEIGHT // height)) if all_files(one_by_one(self.images)) else 1
        sharp = read_pixels(self.predictor, self.images, scale) if scale > 1 else self.pixels
        return [at_height(image, HEIGHT) for image in sharp]

    @cached_property
    def captions(self) -> list[str]:
        """The explained class of each image with its probability; without classes the files' names."""
        if self.predictor.class_names:
            names, probabilities = self.predictor.class_names, self.predictor.predict(self.pixels).probabilities
            chosen = self.target if METHODS[self.method].class_specific else None
            targets = find_targets(self.predictor, self.pixels, chosen)
            return [f"{names[k]} {row[k]:.0%}" for k, row in zip(targets, probabilities, strict=True)]
        pictures = one_by_one(self.images)
        return [Path(str(p)).name for p in pictures] if all_files(pictures) else [""] * len(self.pixels)

    def picture(self) -> Image.Image:
        return DRAWN.get(self.method, heat)(self)

    def notes(self) -> list[str]:
        """What there is to say in words, a line each."""
        return NOTES[self.method](self) if self.method in NOTES else []


def heat(it: Explained) -> Image.Image:
    """Each image, and beside it the heat over it."""
    tiles = []
    for image, caption, found in zip(it.shown, it.captions, it.found, strict=True):
        tiles += [Tile(image, caption), Tile(heat_over(image, found), it.method)]
    return sheet([tiles[i : i + ACROSS] for i in range(0, len(tiles), ACROSS)])


def attention(it: Explained) -> Image.Image:
    """For each image a row of heads for each block."""
    rows, labels = [], []
    for image, maps in zip(it.shown, it.found, strict=True):
        for b, heads in enumerate(maps):
            small = reduced(image)
            first = [Tile(small)] if b == 0 else [Tile(Image.new("RGB", small.size, drawing.PAPER))]
            rows.append(first + [Tile(heat_over(small, head)) for head in heads])
            labels.append(f"block {b + 1}")
    return sheet(rows, labels, gap=3)


def reduced(image: Image.Image) -> Image.Image:
    """Small enough for a row of heads."""
    return image.resize((image.width * 9 // 20, image.height * 9 // 20), Image.Resampling.LANCZOS)


def colours(it: Explained) -> Image.Image:
    """Each image, and beside it the main components of its features."""
    tiles = []
    for image, caption, found in zip(it.shown, it.captions, it.found, strict=True):
        rgb = Image.fromarray(np.round(found * 255).astype(np.uint8))
        tiles += [Tile(image, caption), Tile(rgb.resize(image.size, Image.Resampling.NEAREST), "main components")]
    return sheet([tiles[i : i + ACROSS] for i in range(0, len(tiles), ACROSS)])


def token_maps(it: Explained) -> Image.Image:
    """For each image a row for each module: what makes each of its tokens."""
    rows, labels = [], list[str]()
    for image, modules in zip(it.shown, it.found, strict=True):
        for b, tokens in enumerate(modules):
            small = reduced(image)
            tiles = [Tile(small), *(Tile(heat_over(small, token)) for token in tokens)]
            rows += [tiles[i : i + 9] for i in range(0, len(tiles), 9)]
            labels += [f"module {b + 1}", *[""] * (len(rows) - len(labels) - 1)]
    return sheet(rows, labels, gap=3)


def positions(it: Explained) -> Image.Image:
    """A tile for each place, at most 8 each way: how similar its embedding is to all others."""
    h, w = it.found.shape[:2]
    down, across = (np.unique(np.linspace(0, size - 1, min(size, 8)).round().astype(int)) for size in (h, w))
    low, high = float(it.found.min()), float(it.found.max())
    unit = 56 // max(h, w) + 1
    tile = {(i, j): (it.found[i, j] - low) / max(high - low, 1e-12) for i in down for j in across}
    rows = [[Tile(_squares(tile[i, j], unit)) for j in across] for i in down]
    return sheet(rows, gap=3)


def _squares(values: np.ndarray, unit: int) -> Image.Image:
    image = Image.fromarray(drawing.colours(values))
    return image.resize((values.shape[1] * unit, values.shape[0] * unit), Image.Resampling.NEAREST)


def filters(it: Explained) -> Image.Image:
    """A tile for each filter, its middle grey where it is zero."""
    tiles = []
    for one in it.found[:64]:
        values = one / max(float(np.abs(one).max()), 1e-12) * 127.5 + 127.5
        rgb = values.repeat(3, axis=-1) if values.shape[-1] == 1 else values[..., :3]
        image = Image.fromarray(np.round(rgb).astype(np.uint8))
        tiles.append(Tile(image.resize((48, 48 * image.height // image.width), Image.Resampling.NEAREST)))
    across = 7 if len(tiles) <= 28 else 8
    return sheet([tiles[i : i + across] for i in range(0, len(tiles), across)], gap=3)


def receptive_field(it: Explained) -> Image.Image:
    """The mean gradient of all images, and the square that the central place can depend on."""
    mean = it.found.mean(axis=0)
    h, w = mean.shape
    tile = heat_tile(np.sqrt(mean), HEIGHT * 2 * w // h, HEIGHT * 2)
    return sheet([[Tile(tile, "effective receptive field of the central place")]])


def distance(it: Explained) -> Image.Image:
    """A point for each head of each block, and of a CNN beside it the sizes of receptive fields."""
    mean = it.found.mean(axis=0)
    blocks = np.arange(1, len(mean) + 1)
    series = [
        Series("attention heads", np.repeat(blocks, mean.shape[1]).tolist(), mean.reshape(-1).tolist()),
        Series("their mean", blocks.tolist(), mean.mean(axis=1).tolist(), line=True),
    ]
    label = "block"
    if it.beside is not None:
        sizes = fields_by_layer(it.beside, it.images)
        at = np.linspace(1, len(mean), len(sizes)).tolist()
        for i, name in enumerate(("CNN: theoretical radius", "CNN: effective radius")):
            series.append(Series(name, at, [size[i] / 2 for _, size in sizes], line=True))
        label = "block (CNN: its layers, stretched to the same length)"
    return drawing.plot(series, label, "pixels", (640, 340) if it.beside else (560, 320))


def fields_by_layer(cnn: Predictor, images: Images) -> list[tuple[str, tuple[float, float]]]:
    """Of each of a CNN's outermost layers the side in pixels of its theoretical and its effective receptive field."""
    network, pixels = network_of(cnn), read_pixels(cnn, images)
    one = jax.ShapeDtypeStruct((1, *input_shape(cnn.config.augment, cnn.preprocessing.shape)), jnp.float32)
    targets, found = np.zeros(len(pixels), np.int32), []
    for path in layers(network, one):
        if path and "/" not in path and "norm" not in path:
            gradients = compute(effective, network, pixels, targets, options={"layer": path})
            found.append((path, (float(min(theoretical_size(network, one, path))), effective_size(gradients))))
    return found


def plane(it: Explained) -> Image.Image:
    """A point for each image, coloured by the class that the model sees in it."""
    if not it.predictor.class_names:
        return drawing.plot([Series("images", it.found[:, 0].tolist(), it.found[:, 1].tolist())])
    labels = it.predictor.predict(it.pixels).probabilities.argmax(axis=1)
    order = np.argsort(-np.bincount(labels, minlength=len(it.predictor.class_names)), kind="stable")
    groups = [
        (it.predictor.class_names[k], labels == k) for k in order[: len(drawing.SERIES) - 1] if (labels == k).any()
    ]
    rest = np.isin(labels, order[len(drawing.SERIES) - 1 :])
    groups += [("others", rest)] if rest.any() else []
    return drawing.plot(
        [Series(name, it.found[which, 0].tolist(), it.found[which, 1].tolist()) for name, which in groups],
        size=(560, 360),
    )


def _classes(it: Explained) -> list[str]:
    return [f"image {i + 1}: {caption}" for i, caption in enumerate(it.captions)]


def _artefacts(it: Explained) -> list[str]:
    share = features.artefacts(it.found).mean()
    return [f"{share:.2%} of the tokens are artefacts: longer than {features.OUTLIER:g} times the median"]


def _distances(it: Explained) -> list[str]:
    lines = [
        f"block {b + 1}: {heads.mean():.1f} pixels (heads: {', '.join(f'{head:.1f}' for head in heads)})"
        for b, heads in enumerate(it.found.mean(axis=0))
    ]
    sizes = fields_by_layer(it.beside, it.images) if it.beside is not None else []
    return lines + [f"beside it, {name}: theoretical {a:g}, effective {b:.1f} pixels" for name, (a, b) in sizes]


def _fields(it: Explained) -> list[str]:
    network = network_of(it.predictor)
    shape = input_shape(it.predictor.config.augment, it.predictor.preprocessing.shape)
    height, width = theoretical_size(
        network, jax.ShapeDtypeStruct((1, *shape), jnp.float32), it.options.get("layer", "")
    )
    return [
        f"theoretical receptive field: {height}x{width} of {shape[0]}x{shape[1]} pixels",
        f"effective receptive field: as large as a square of {effective_size(it.found):.1f} pixels",
    ]


DRAWN: dict[str, Callable[[Explained], Image.Image]] = {
    "attention": attention,
    "distance": distance,
    "receptive_field": receptive_field,
    "positions": positions,
    "filters": filters,
    "pca": colours,
    "token_maps": token_maps,
    "tsne": plane,
}
NOTES: dict[str, Callable[[Explained], list[str]]] = {
    **dict.fromkeys((name for name, method in METHODS.items() if method.class_specific), _classes),
    "norms": _artefacts,
    "distance": _distances,
    "receptive_field": _fields,
}


def explained(
    predictor: Predictor,
    images: Images,
    method: str,
    target: Target = None,
    beside: Predictor | None = None,
    **options: Any,
) -> Explained:
    """What `explain` finds, ready to be drawn; raises `UserError` as it does."""
    if beside is not None and method != "distance":
        raise UserError(f"beside= compares receptive fields with method 'distance', not {method!r}; leave it out")
    found = explain(predictor, images, method, target, **options)
    return Explained(predictor, images, method, target, found, beside, options)
