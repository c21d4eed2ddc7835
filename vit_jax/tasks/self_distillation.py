"""Self-distillation without labels: a student says of parts of an image what its teacher says of the whole (DINO).

Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294. The teacher is an
average of the student, and what evaluation, probes and later commands read.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, UInt8

from vit_jax import augment, models
from vit_jax.command import UserError
from vit_jax.metrics import probes
from vit_jax.models.layers import square
from vit_jax.models.projection import Projection, of_length_1
from vit_jax.models.vit import ViT
from vit_jax.setting import setting
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs, Task, TaskSettings
from vit_jax.tasks.means import Means
from vit_jax.trees import PyTree

GLOBAL = 2  # crops of most of the image: both networks see them, the others the student alone
POSITIONS = "Transformer", "posembed_input", "pos_embedding"


class Projected(nn.Module):
    """A backbone, whose parameters keep their own names, and its projection; the centre is a teacher's alone."""

    backbone: ViT
    hidden_width: int
    bottleneck: int
    outputs: int

    def setup(self) -> None:
        nn.share_scope(self, self.backbone)

    @property
    def NAMING(self) -> models.Naming:  # noqa: N802 - as classes declare it
        """Layers and rules of the backbone; the projection's layers come last, and go by the common rules."""
        return models.naming_of(self.backbone)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n H W c"], *, train: bool
    ) -> tuple[Float[Array, "n d"], Float[Array, "n k"]]:
        """The backbone's features, and what they are projected to."""
        features = self.backbone(images, train=train)
        assert isinstance(features, jax.Array)
        sizes = self.hidden_width, self.bottleneck, self.outputs
        projected = Projection(*sizes, dtype=self.backbone.dtype, name="projection")(features)
        self.variable("batch_stats", "center", jnp.zeros, (self.outputs,))
        return features.astype(jnp.float32), projected


class SelfDistillation(Task):
    """The cross-entropy between the teacher's view of a whole image and the student's of another crop (s. 3.1)."""

    evaluated = "teacher"
    train_metrics = ("loss", "feature_spread")

    @dataclass(frozen=True, kw_only=True)
    class Settings(TaskSettings):
        """The fields of `task`; the defaults are the paper's, for 100 epochs."""

        outputs: int = 65536  # of the projection
        hidden_width: int = 2048  # of its layers
        bottleneck: int = 256
        global_area: tuple[float, float] = (0.4, 1.0)  # of the two large crops, as `augment.crop_area`
        local_area: tuple[float, float] = setting((0.05, 0.4), active_if="task.local_crops")
        local_crops: int = 8  # small ones
        local_size: tuple[int, ...] = setting((96,), active_if="task.local_crops")  # their pixels
        blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # `augment.blur` of the first large, the second, small crops
        solarize: float = 0.2  # `augment.solarize` of the second large crop
        student_temperature: float = 0.1
        teacher_temperature: float = 0.07
        first_teacher_temperature: float = 0.04
        warmup: float = 0.3  # share of the run in which the teacher's temperature rises
        momentum: float = 0.996  # of the teacher; rises to 1 as half a cosine
        center_momentum: float = 0.9
        freeze_last: float = 0.01  # share of the run in which the projection's last layer stands still: one epoch
        # Share of the loss that pushes features apart (KoLeo; DINOv2, arXiv:2304.07193, has 0.1), over each part of a
        # batch by itself.
        koleo: float = 0.0

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            sizes = ("outputs", "hidden_width", "bottleneck")
            temperatures = ("student_temperature", "teacher_temperature", "first_teacher_temperature")
            shares = ("warmup", "momentum", "center_momentum", "freeze_last", "solarize")
            _require(self, sizes, lambda value: value >= 1, "is not positive")
            _require(self, temperatures, lambda value: value > 0, "is not positive")
            _require(self, shares, lambda value: 0 <= value <= 1, "is not in [0, 1]")
            _require(self, ("local_crops", "koleo"), lambda value: value >= 0, "is negative")
            _require(self, ("local_size",), lambda value: len(value) in (1, 2) and min(value) > 0, "is no size")
            areas = ("global_area", "local_area")
            _require(self, areas, lambda value: 0 < value[0] <= value[1] <= 1, "is not 0 < low <= high <= 1")
            _require(self, ("blur",), lambda value: all(0 <= p <= 1 for p in value), "are no probabilities")

    def __init__(self, settings: "SelfDistillation.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        assert isinstance(parts.model, ViT)
        self.module = Projected(parts.model, settings.hidden_width, settings.bottleneck, settings.outputs)
        if parts.augment.crop_area:
            raise UserError(
                f"augment.crop_area={parts.augment.crop_area}: this task crops by itself; leave it at (), and set "
                "task.global_area and task.local_area"
            )
        if parts.augment.alternate_flip:
            raise UserError(
                "augment.alternate_flip=True: this task mirrors each crop by itself; set augment.flip=0.5 instead"
            )
        patch = square(parts.model.patch_size)
        if settings.local_crops and any(a % b for a, b in zip(square(settings.local_size), patch, strict=True)):
            raise UserError(
                f"task.local_size={settings.local_size} is no multiple of model.patch_size={patch}; choose one"
            )

    @property
    def seen(self) -> Sequence[tuple[int, int, int]]:
        """The shapes of a student's crops."""
        small = (*square(self.settings.local_size), self.parts.image_shape[2]) if self.settings.local_crops else ()
        return (self.parts.image_shape,) * GLOBAL + (small,) * self.settings.local_crops

    @classmethod
    def check(cls, settings: "SelfDistillation.Settings", model: Mapping[str, Any], distill: Distill) -> None:
        """Raises `UserError` for a model that cannot see crops of several sizes."""
        if models.module_class(model["name"]) is not ViT or model["pos_embed"] not in ("learned", "sincos2d", "none"):
            raise UserError(
                "task 'self_distillation' shows crops of several sizes to a plain ViT with pos_embed learned, sincos2d "
                f"or none, not to model {model['name']!r} with pos_embed={model.get('pos_embed', 'none')!r}"
            )
        if model["pooling"] in ("none", "flatten") or model["pre_logits"] or model["head_widths"]:
            raise UserError(
                "task 'self_distillation' projects one vector of each image: leave model.pre_logits and "
                "model.head_widths at their defaults, and choose pooling token, gap or map"
            )

    def init_state(self, params: PyTree) -> PyTree:
        """The teacher begins as the student; its `center` is the mean of what it says."""
        teacher = {
            "params": jax.tree.map(jnp.copy, params),
            "batch_stats": {"center": jnp.zeros(self.settings.outputs)},
        }
        return {"teacher": teacher, "progress": jnp.zeros(())}  # of the last update: 0 at the start, 1 at the end

    def crops(
        self, images: UInt8[Array, "n h w c"], keys: Key[Array, " n"]
    ) -> tuple[Float[Array, "n 2 H W c"], Float[Array, "n v p q c"]]:
        """Two large crops and `local_crops` small ones of each image, a function of its key alone."""
        settings = self.settings
        keys = jax.vmap(lambda key: jax.random.split(key, GLOBAL + settings.local_crops))(keys)
        large, small = square(self.parts.image_shape[:2]), square(settings.local_size)
        of_whole = [
            augment.train_view(self._view(settings.global_area, large, blur, solarize), images, keys[:, i])
            for i, (blur, solarize) in enumerate(zip(settings.blur, (0.0, settings.solarize), strict=False))
        ]
        local = self._view(settings.local_area, small, settings.blur[2], 0.0)
        of_parts = jax.vmap(partial(augment.train_view, local, images), in_axes=1, out_axes=1)(keys[:, GLOBAL:])
        return jnp.stack(of_whole, axis=1), of_parts

    def _view(self, area: tuple[float, ...], size: tuple[int, int], blur: float, solarize: float) -> augment.Settings:
        changes: dict[str, Any] = {"crop_area": area, "resize": size, "blur": blur, "solarize": solarize}
        return dataclasses.replace(self.parts.train_augment, **changes)

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        state: PyTree,
        batch: Examples,
        rngs: Rngs,
        constants: Mapping[str, PyTree],
    ) -> tuple[Float[Array, ""], Aux]:
        large, small = self.crops(batch["image"], rngs.augment)
        student = self._frozen(params, state["progress"])
        features, seen = self.project(student, batch_stats, large, rngs.dropout)
        if self.settings.local_crops:
            grid = self.parts.model.grid(small.shape)
            apart = jax.random.fold_in(rngs.dropout, 1)
            seen_small = self.project(self._on_grid(student, grid), batch_stats, small, apart)[1]
            seen = jnp.concatenate([seen, seen_small], axis=1)
        teacher = state["teacher"]
        directions, taught = jax.lax.stop_gradient(self.project(teacher["params"], teacher["batch_stats"], large))
        loss = distillation(
            taught - teacher["batch_stats"]["center"][None, None],
            seen,
            self.teacher_temperature(state["progress"]),
            self.settings.student_temperature,
        )
        metrics = {"feature_spread": _spread(directions[:, 0])}
        if self.settings.koleo:
            metrics["koleo"] = (koleo(features[:, 0]) + koleo(features[:, 1])) / 2
            loss += self.settings.koleo * metrics["koleo"]
        return loss, Aux(batch_stats, {"loss": loss, **metrics}, {"center": taught.mean(axis=(0, 1))})

    def project(
        self,
        params: PyTree,
        batch_stats: PyTree,
        crops: Float[Array, "n v H W c"],
        dropout: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "n v d"], Float[Array, "n v k"]]:
        """Features and projections of each crop; in training with a key for dropout, else without any."""
        n, v = crops.shape[:2]
        rngs = {} if dropout is None else {"dropout": dropout}
        flat = crops.reshape(n * v, *crops.shape[2:])
        variables = {"params": params, "batch_stats": batch_stats}
        found: Any = self.module.apply(variables, flat, train=dropout is not None, rngs=rngs)
        features, projected = found
        return features.reshape(n, v, -1), projected.reshape(n, v, -1)

    def _frozen(self, params: PyTree, progress: Float[Array, ""]) -> PyTree:
        """The parameters, without a gradient of the projection's last layer at the beginning of the run."""
        kernel = params["projection"]["last"]["kernel"]
        kept = jnp.where(progress < self.settings.freeze_last, jax.lax.stop_gradient(kernel), kernel)
        return {**params, "projection": {**params["projection"], "last": {"kernel": kept}}}

    def _on_grid(self, params: PyTree, grid: tuple[int, int]) -> PyTree:
        """The parameters, learned positions interpolated to another grid of patches."""
        if self.parts.model.pos_embed != "learned":
            return params
        outer, inner, name = POSITIONS
        table = params[outer][inner][name]
        h, w = self.parts.model.grid(self.parts.image_shape)
        prefix, d = table.shape[1] - h * w, table.shape[2]
        places = jax.image.resize(table[0, prefix:].reshape(h, w, d), (*grid, d), "cubic", antialias=False)
        table = jnp.concatenate([table[:, :prefix], places.reshape(1, -1, d)], axis=1)
        return {**params, outer: {**params[outer], inner: {name: table}}}

    def teacher_temperature(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """It rises in a line to `teacher_temperature`."""
        settings = self.settings
        risen = jnp.minimum(1.0, progress / settings.warmup) if settings.warmup else jnp.ones(())
        first = settings.first_teacher_temperature
        return first + risen * (settings.teacher_temperature - first)

    def update(self, state: PyTree, params: PyTree, aux: Aux, progress: Float[Array, ""]) -> PyTree:
        """The teacher follows the student, and its centre what it said of this batch (eq. 4)."""
        settings, teacher = self.settings, state["teacher"]
        momentum = 1 - (1 - settings.momentum) * (jnp.cos(jnp.pi * progress) + 1) / 2
        followed = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, teacher["params"], params)
        kept = settings.center_momentum
        center = kept * teacher["batch_stats"]["center"] + (1 - kept) * aux.extra["center"]
        return {
            "teacher": {"params": followed, "batch_stats": {"center": center}},
            "progress": progress.astype(jnp.float32),
        }

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        """What the teacher says of an image, against what it says of its mirror image; and the features' directions."""
        images = augment.eval_view(self.parts.augment, batch["image"])
        both = jnp.stack([images, images[:, :, ::-1]], axis=1)
        features, said = self.project(variables["params"], variables["batch_stats"], both)
        centred = said - variables["batch_stats"]["center"][None, None]
        taught = jax.nn.softmax(centred[:, 0] / self.settings.teacher_temperature)
        seen = jax.nn.log_softmax(said[:, 1] / self.settings.student_temperature)
        return {"loss": -(taught * seen).sum(axis=-1), "direction": of_length_1(features[:, 0], axis=-1)}

    def evaluator(self, size: int) -> "DirectionsEvaluator":
        return DirectionsEvaluator()

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Of features that are alike, and of a student whose answer is even whatever it sees."""
        loss, even = scalars["loss"], math.log(self.settings.outputs)
        if scalars["feature_spread"] < probes.COLLAPSED:
            return [_alike(scalars["feature_spread"])]
        if 0.99 * even < loss < 1.01 * even and not self.settings.koleo:
            return [
                f"the training loss {loss:.3f} is still about log {self.settings.outputs} = {even:.3f}, that of the "
                "same even answer to every image. Likely: it has collapsed (the teacher's temperature is too high), or "
                "it has had too few steps yet."
            ]
        return super().warnings(scalars)


def distillation(
    teacher: Float[Array, "n t k"],
    student: Float[Array, "n v k"],
    teacher_temperature: Float[Array, ""] | float,
    student_temperature: float,
) -> Float[Array, ""]:
    """The mean cross-entropy over pairs of a teacher's crop and another of the student's (eq. 3).

    The teacher's outputs are centred; its crops are the first of the student's.
    """
    taught = jax.nn.softmax(teacher / teacher_temperature)
    seen = jax.nn.log_softmax(student / student_temperature)
    crossed = -jnp.einsum("ntk,nvk->ntv", taught, seen, precision="highest")
    t, v = crossed.shape[1:]
    other = jnp.arange(t)[:, None] != jnp.arange(v)[None]
    return jnp.where(other[None], crossed, 0.0).sum() / (len(crossed) * (t * v - t))


def koleo(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """Minus the mean logarithm of the distance to the nearest other direction (Sablayrolles et al. 2019,
    arXiv:1806.03198, eq. 2)."""
    x = of_length_1(features, axis=-1)
    similar = jnp.einsum("nd,md->nm", x, x, precision="highest")
    nearest = jnp.argmax(similar - 2 * jnp.eye(len(x)), axis=1)
    apart = jnp.square(x - x[nearest]).sum(axis=-1)
    return -0.5 * jnp.log(apart + 1e-8).mean()


def _spread(features: Float[Array, "n d"]) -> Float[Array, ""]:
    """As `metrics.probes.spread`, of a part of a batch."""
    x = of_length_1(features, axis=-1)
    return x.std(axis=0).mean() * math.sqrt(x.shape[1])


def _alike(spread: float) -> str:
    return (
        f"the features of all images are alike: their spread is {spread:.2g}. Likely: they have collapsed (learning "
        "rate too high, momentum of teacher or centre too low), or it has had too few steps yet."
    )


def _require(settings: Any, names: tuple[str, ...], holds: Any, fault: str) -> None:
    for name in names:
        if not holds(getattr(settings, name)):
            raise UserError(f"task.{name}={getattr(settings, name)} {fault}")


class DirectionsEvaluator(Means):
    """The mean loss of a split, and how far its images' features lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[np.ndarray] = []  # of the directions and of their squares, [2 d]

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        direction = rows["direction"].astype(np.float64)
        self._sums.append(np.stack([direction.sum(axis=0), np.square(direction).sum(axis=0)]))
        super().add({name: rows[name] for name in ("index", "loss")})

    def scalars(self) -> dict[str, float]:
        found = super().scalars()
        mean, square = np.sum(self._sums, axis=0) / self.size
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return found | {probes.SPREAD: float(deviation.mean() * math.sqrt(len(mean)))}

    def warnings(self) -> list[str]:
        spread = self.scalars()[probes.SPREAD]
        return [_alike(spread)] if spread < probes.COLLAPSED else []
