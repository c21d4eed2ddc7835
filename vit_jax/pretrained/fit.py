"""Fits the arrays of one model to another of the same architecture: other image size, channels and classes.

Nothing is lost or left fresh in silence: each array is loaded, or a rule below says what becomes of it, and the report
names it; anything else is an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.models.layers import square
from vit_jax.models.naming import has_part
from vit_jax.pretrained.report import Action, Report, Row
from vit_jax.text import listed

Head = Literal["auto", "keep", "new"]
Interpolation = Literal["bilinear", "bicubic"]
Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, Any]  # `models.settings`

# Fields of a model in which weights and model may differ. All others decide parameters, or what they compute.
FREE = frozenset(
    (
        *("name", "num_classes", "dtype", "scan", "remat", "attention", "norm_momentum"),
        *("dropout", "projection_dropout", "attention_dropout", "embedding_dropout", "head_dropout"),
        *("gaussian_dropout", "stochastic_depth", "stochastic_depth_schedule"),
        *("zero_head", "head_bias", "zero_init_last_norm"),  # only initial values
        *("class_token", "distillation_token", "pre_logits", "head_widths"),  # rules below
    )
)
POOLS_WITH_PARAMETERS = ("map", "sequence")  # other poolings may be exchanged

SEQUENCE, AXIS = re.compile(r".*/pos_embedding"), re.compile(r".*/([xy])_embedding")
RELATIVE_BIAS = re.compile(r".*/relative_bias")
FROM_WEIGHTS = "start the config from these weights: configs/finetune.py:WEIGHTS,DATASET"


def fit(
    found: Mapping[str, np.ndarray],
    *,
    source: Settings,
    grid: tuple[int, int],
    model: Settings,
    image_shape: tuple[int, int, int],
    shapes: Shapes,
    head: Head = "auto",
    class_names: Sequence[str] = (),
    source_names: Sequence[str] = (),
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> tuple[dict[str, np.ndarray], Report]:
    """The arrays of `found` as the model needs them, by the names in `shapes`, and what was done to them.

    Names that the result lacks are new: the caller keeps their initial values. A new last layer is zero (its bias:
    `head_bias`), so that training starts from no opinion instead of a random one.

    Args:
        found: arrays of the weights by canonical name (`params/Transformer/encoderblock_0/LayerNorm_0/scale`).
        source: the weights' `models.settings`; num_classes of their head, 0 without one.
        grid: rows and columns of the weights' positions; (0, 0) without.
        model: the `models.settings` to fit to, num_classes filled in.
        image_shape: its input: height, width, channels.
        shapes: what it needs, by canonical name.
        head: "auto" keeps the head where classes and its input agree, "keep" in any case, "new" never.
        class_names: of the data set, by label; (): unknown.
        source_names: of the weights' head, by label; (): unknown.
        interpolation: of positions on a grid of another size.
        antialias: see `resize`.

    Raises:
        UserError: other architectures, or arrays for which no rule exists.
    """
    check_architecture(source, model)
    order, why = head_order(source, model, head, class_names, source_names)
    naming = models.naming_of(models.module_class(model["name"]))
    parts = [name for name in shapes if name in found and (_of(naming.head, name) or _of(naming.head_hidden, name))]
    if head == "auto" and order is not None and any(found[name].shape != shapes[name] for name in parts):
        order, why = None, "its input has another shape"
    fitting = _Fitting(found, source, grid, model, naming, image_shape, interpolation, antialias, order, why)
    arrays, rows = {}, []
    for name, shape in shapes.items():
        array, row = fitting.one(name, shape)
        rows.append(row)
        if array is not None:
            arrays[name] = array
    missing = [row.name for row in rows if row.action == "new" and not row.detail]
    if missing:
        raise UserError(
            f"the weights lack {len(missing)} arrays: {listed(missing)}, which the model {model['name']!r} needs"
        )
    rows += [fitting.unused(name) for name in found if name not in shapes]
    misplaced = [row.name for row in rows if row.action == "unused" and not row.detail]
    if misplaced:
        raise UserError(
            f"the model {model['name']!r} has no place for the weights' {len(misplaced)} arrays: {listed(misplaced)}"
        )
    return arrays, Report(tuple(rows))


def check_architecture(source: Settings, model: Settings) -> None:
    """Raises `UserError` if the weights' architecture is not the model's; see `FREE` for what may differ."""
    if models.module_class(source["name"]) is not models.module_class(model["name"]):
        raise UserError(f"the weights are of {source['name']!r}, not of model {model['name']!r}; {FROM_WEIGHTS}")
    theirs, ours = _decisive(source), _decisive(model)
    if "pooling" in ours and not {theirs["pooling"], ours["pooling"]} & set(POOLS_WITH_PARAMETERS):
        theirs["pooling"] = ours["pooling"]
    differing = [field for field in ours if theirs.get(field) != ours[field]]
    if differing:
        told = listed([_difference(field, (source, model), (theirs, ours)) for field in differing])
        patches = "; patches of another size are not supported" if "patch_size" in differing else ""
        raise UserError(f"the weights do not fit {told}{patches}; {FROM_WEIGHTS}")


def _difference(field: str, written: tuple[Settings, Settings], meant: tuple[Settings, Settings]) -> str:
    """`model.width=9 (weights: 6)`; a field that was left to follow others (0) is told as what it means."""
    theirs, ours = written if written[0].get(field) != written[1].get(field) else meant
    return f"model.{field}={ours[field]!r} (weights: {theirs.get(field)!r})"


def _decisive(settings: Settings) -> dict[str, Any]:
    """The fields that must agree, each meaning written in one way only."""
    fields = {field: value for field, value in settings.items() if field not in FREE}
    if fields.get("patch_size"):
        fields["patch_size"] = square(tuple(fields["patch_size"]))
    if "head_dim" in fields:
        fields["head_dim"] = fields["head_dim"] or fields["width"] // fields["num_heads"]
    if "layer_scale" in fields:
        fields["layer_scale"] = fields["layer_scale"] != 0  # the value is only where training starts
    return fields


def head_order(
    source: Settings,
    model: Settings,
    head: Head,
    class_names: Sequence[str],
    source_names: Sequence[str],
) -> tuple[np.ndarray | None, str]:
    """For each class its place in the weights' head (None: the head is new), and why.

    Classes agree where their number does and, if both are named, the names, whatever their order and case.
    """
    k, theirs = model["num_classes"], source["num_classes"]
    if head == "keep" and k != theirs:
        raise UserError(f"init.head='keep', but the weights' head has {theirs} classes, this run's {k}; use 'auto'")
    given, stored = ([name.strip().casefold() for name in names] for names in (class_names, source_names))
    reordered = given != stored and sorted(given) == sorted(stored) and len(set(given)) == k
    order = np.array([stored.index(name) for name in given]) if reordered else np.arange(k)
    named = "the names unknown" if not (given and stored) else "the same names"
    if given and stored and given != stored:
        named = "put in the data set's order" if reordered else "other names"
    why = "init.head='new'" if head == "new" else _other_input(source, model)
    if not why and named == "other names":
        why = f"{k} classes, other names; init.head='keep' keeps it"
    return (None, why) if why and head != "keep" else (order, f"{k} classes, {named}")


def _other_input(source: Settings, model: Settings) -> str:
    """Why the weights' head cannot serve, whatever its classes are called; '' if it can."""
    k, theirs = model["num_classes"], source["num_classes"]
    if not k or not theirs:
        return f"the {'weights have' if k else 'model has'} no head"
    if k != theirs:
        return f"{theirs} -> {k} classes"
    differing = [field for field in ("pooling", "pre_logits", "head_widths") if source.get(field) != model.get(field)]
    return f"{differing[0]} {source[differing[0]]!r} -> {model[differing[0]]!r}" if differing else ""


def resize(
    table: Float[np.ndarray, "h w d"], grid: tuple[int, int], interpolation: str, antialias: bool = True
) -> Float[np.ndarray, "H W d"]:
    """The table on another grid, its corners aligned with the corners of the outer patches.

    Smoothed before it shrinks; bicubic is Keys's with a = -0.5. `jax.image.resize` and PyTorch's `interpolate(...,
    antialias=True, align_corners=False)`, and with it timm, compute the same. The same grid gives the same bits.
    Without `antialias`: PyTorch's `interpolate(..., align_corners=False)`, whose bicubic kernel has a = -0.75.
    """
    if table.shape[:2] == grid:
        return table
    mixing = _mixing if antialias else _picking
    rows, columns = (mixing(n, m, interpolation) for n, m in zip(table.shape, grid, strict=False))
    return np.einsum("Hh,Ww,hwd->HWd", rows, columns, table, optimize=True).astype(np.float32)


def _mixing(n: int, m: int, interpolation: str) -> Float[np.ndarray, "m n"]:
    """How much of each of n places each of m new ones is: the kernel at their distance, stretched where m < n."""
    places = (np.arange(m) + 0.5) * n / m - 0.5
    t = np.abs(places[:, None] - np.arange(n)) / max(n / m, 1.0)
    if interpolation == "bilinear":
        kernel = np.maximum(1 - t, 0)
    else:
        kernel = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    return kernel / kernel.sum(axis=1, keepdims=True)


def _picking(n: int, m: int, interpolation: str) -> Float[np.ndarray, "m n"]:
    """`_mixing` of the nearest places alone: 2, bicubic 4. Those beyond an edge are the one at the edge."""
    places = (np.arange(m) + 0.5) * n / m - 0.5
    reach = 1 if interpolation == "bilinear" else 2
    near = np.floor(places)[:, None].astype(int) + np.arange(1 - reach, 1 + reach)
    t = np.abs(places[:, None] - near)
    if interpolation == "bilinear":
        kernel = 1 - t
    else:
        kernel = np.where(t <= 1, 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4))
    result = np.zeros((m, n))
    np.add.at(result, (np.arange(m)[:, None], near.clip(0, n - 1)), kernel)
    return result


def channels(kernel: Float[np.ndarray, "p q c d"], c: int) -> Float[np.ndarray, "p q c2 d"]:
    """A first kernel for images of `c` channels.

    To one channel: the sum; from one to several: each gets its share. Either way a grey image has the response that
    it had as equal channels. (Of kernels that are standardised, in BiT and the hybrids, only up to a factor for each
    output.) Other numbers: the channels in turn, scaled to the same sum for equal channels.
    """
    if c == 1:
        return kernel.sum(axis=2, keepdims=True)
    kept = kernel[:, :, np.arange(c) % kernel.shape[2]]
    return kept * np.float32(kernel.shape[2] / c)


def leading(settings: Settings) -> list[str]:
    """The names of the tokens that come before the patches."""
    tokens = models.naming_of(models.module_class(settings["name"])).leading_tokens(settings)
    return [f"params/{token}" for token in tokens]


def patch_grid(settings: Settings, image_shape: tuple[int, int, int], count: int) -> tuple[int, int]:
    """Rows and columns of the `count` patches of an image; convolutions' map has the image's aspect, nearly."""
    module = models.create(settings)
    if hasattr(module, "grid"):
        return module.grid(image_shape)
    height, width, _ = image_shape
    if settings.get("patch_size"):
        p, q = square(tuple(settings["patch_size"]))
        return height // p, width // q
    pairs = [(h, count // h) for h in range(1, count + 1) if count % h == 0]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] * width / (pair[1] * height))))


@dataclass(frozen=True)
class _Fitting:
    """The rules, with what they need to know."""

    found: Mapping[str, np.ndarray]
    source: Settings
    grid: tuple[int, int]
    model: Settings
    naming: models.Naming
    image_shape: tuple[int, int, int]
    interpolation: str
    antialias: bool
    order: np.ndarray | None  # of the head's classes; None: the head is new
    why: str

    def one(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Row]:
        """The array for one name (None: the caller's initial value), and what was done; no detail: not allowed."""
        if self._in_head(name):
            array, action, detail = self._head(name, shape)
        elif name not in self.found:
            array, action, detail = None, "new", self._lacking("weights", name)
        else:
            array, action, detail = self._known(name, shape, self.found[name])
        if array is not None and array.shape != shape:
            raise self._misfit(name, array.shape, shape)
        return array, Row(action, name, detail, prod(shape) if name.startswith("params/") else 0)

    def unused(self, name: str) -> Row:
        """Why the model has no place for an array of the weights; no detail: not allowed."""
        detail = self._lacking("model", name)
        if not detail and self._in_head(name) and self.order is None:
            detail = self.why
        return Row("unused", name, detail, prod(self.found[name].shape))

    def _known(self, name: str, shape: tuple[int, ...], array: np.ndarray) -> tuple[np.ndarray, Action, str]:
        axis = AXIS.fullmatch(name)
        if SEQUENCE.fullmatch(name):
            return self._sequence(array, shape)
        if axis and array.shape != shape:
            resized = self._resize(array[:, None], (shape[0], 1))[:, 0]
            return resized, "resized", self._detail(f"{len(array)} -> {shape[0]} along {axis[1]}")
        if RELATIVE_BIAS.fullmatch(name) and array.shape != shape:
            resized = self._resize(array, (shape[0], shape[1]))
            return resized, "resized", self._detail(f"{_by(array.shape)} -> {_by(shape)} offsets")
        # Of one architecture, the first layer's kernel alone depends on the images' channels.
        if name.endswith("/kernel") and array.ndim == 4 and array.shape[2] != shape[2] == self.image_shape[2]:
            return channels(array, shape[2]), "adapted", f"{array.shape[2]} -> {shape[2]} channels"
        return array, "loaded", ""

    def _sequence(self, array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, Action, str]:
        """PosEmbed [1 l d]: a row for each leading token, then the patches', row by row of the grid."""
        before, after, (h, w) = leading(self.source), leading(self.model), self.grid
        if array.shape[1] != len(before) + h * w:
            raise UserError(
                f"the weights' {array.shape[1]} positions are not {len(before)} tokens and a {h}x{w} grid of patches"
            )
        grid = patch_grid(self.model, self.image_shape, shape[1] - len(after))
        table = self._resize(array[0, len(before) :].reshape(h, w, -1), grid)
        rows = dict(zip(before, array[0], strict=False))
        first = [rows.get(name, np.zeros_like(array[0, 0])) for name in after]
        told = [self._detail(f"{h}x{w} -> {_by(grid)}")] if grid != (h, w) else []
        told += [f"{self._condition(name)}'s dropped" for name in before if name not in after]
        told += [f"{self._condition(name)}'s new (zero)" for name in after if name not in before]
        if not told:
            return array, "loaded", ""
        table = np.concatenate([*(row[None] for row in first), table.reshape(-1, array.shape[2])])[None]
        return table, "resized" if grid != (h, w) else "adapted", "; ".join(told)

    def _head(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Action, str]:
        last = _of(self.naming.head, name)
        if self.order is not None and name in self.found:
            array = self.found[name]
            if self._stands_for_both():
                return array[..., self.order] / 2, "adapted", f"{self.why}; halved: it stood for two heads"
            if last and (self.order != np.arange(array.shape[-1])).any():
                return array[..., self.order], "adapted", self.why
            return array, "loaded", self.why
        lacking = self._lacking("weights", name)
        if self.order is not None and not lacking:
            return None, "new", ""
        if not last:
            return None, "new", self.why
        value = self.model.get("head_bias", 0.0) if name.endswith("/bias") else 0.0
        return np.full(shape, value, np.float32), "new", lacking or self.why

    def _stands_for_both(self) -> bool:
        """Whether the head is twice as large beside one of zeros, so that their mean is right, and stays alone."""
        num_heads = (name for name in self.found if _of(self.naming.head, name) and name.endswith("/kernel"))
        others = [self.found[name] for name in num_heads if self._lacking("model", name)]
        return bool(others) and not any(array.any() for array in others)

    def _in_head(self, name: str) -> bool:
        return _of(self.naming.head, name) or _of(self.naming.head_hidden, name)

    def _condition(self, name: str) -> str | None:
        return self.naming.optional_part(name.removeprefix("params/"))

    def _lacking(self, which: Literal["weights", "model"], name: str) -> str:
        """Why the weights, or the model, have no such parameter; "" if they should."""
        condition, settings = self._condition(name), self.source if which == "weights" else self.model
        verb = "have" if which == "weights" else "has"
        return "" if has_part(settings, condition) else f"the {which} {verb} no {condition}"

    def _resize(self, table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        return resize(table, grid, self.interpolation, self.antialias)

    def _detail(self, change: str) -> str:
        return f"{change}, {self.interpolation}{'' if self.antialias else ', not smoothed'}"

    def _misfit(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> UserError:
        hint = FROM_WEIGHTS
        if re.search(self.naming.tied, name.removeprefix("params/")):
            hint = (
                "it is tied to the image size (number of tokens) that the weights were trained with; set augment.resize"
            )
        return UserError(f"{name} is {_by(found)} in the weights, but {_by(expected)} in the model; {hint}")


def _of(modules: str, name: str) -> bool:
    """Whether the name is of a kernel or a bias of such a module."""
    return re.fullmatch(rf"params/(?:{modules})/(?:kernel|bias)", name) is not None


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
