"""Self-distillation without labels: a student says of parts of an image what its teacher says of the whole (DINO).

Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294. The teacher is an
average of the student, and what evaluation, probes and later commands read. With `task.patch_loss` the student also
says of patches that are hidden from it what the teacher says of them (iBOT, Zhou et al. 2022, arXiv:2111.07832).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8

from vit_jax import augment, models
from vit_jax.command import UserError
from vit_jax.metrics import probes
from vit_jax.models.layers import square
from vit_jax.models.projection import of_length_1
from vit_jax.models.vit import ViT
from vit_jax.setting import setting
from vit_jax.tasks import masking
from vit_jax.tasks.base import Aux, Distill, Examples, Parts, Rngs, Task, TaskSettings
from vit_jax.tasks.self_distillation.evaluation import DirectionsEvaluator, alike
from vit_jax.tasks.self_distillation.losses import distillation, koleo, patch_distillation, spread_of
from vit_jax.tasks.self_distillation.module import Projected
from vit_jax.trees import PyTree

GLOBAL = 2  # crops of most of the image: both networks see them, the others the student alone
POSITIONS = "Transformer", "posembed_input", "pos_embedding"


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
        # Weight of the loss over hidden patches of the large crops, beside 1 for whole crops (iBOT has 1); 0: none.
        patch_loss: float = 0.0
        # Of the crops in which patches are hidden, and of those the smallest and the largest share of the patches.
        mask_probability: float = setting(0.5, active_if="task.patch_loss")
        mask_share: tuple[float, float] = setting((0.1, 0.5), active_if="task.patch_loss")

        def check(self) -> None:
            """Raises `UserError` for values out of their range."""
            sizes = ("outputs", "hidden_width", "bottleneck")
            temperatures = ("student_temperature", "teacher_temperature", "first_teacher_temperature")
            shares = ("warmup", "momentum", "center_momentum", "freeze_last", "solarize", "mask_probability")
            _require(self, sizes, lambda value: value >= 1, "is not positive")
            _require(self, temperatures, lambda value: value > 0, "is not positive")
            _require(self, shares, lambda value: 0 <= value <= 1, "is not in [0, 1]")
            _require(self, ("local_crops", "koleo", "patch_loss"), lambda value: value >= 0, "is negative")
            _require(self, ("local_size",), lambda value: len(value) in (1, 2) and min(value) > 0, "is no size")
            areas = ("global_area", "local_area", "mask_share")
            _require(self, areas, lambda value: 0 < value[0] <= value[1] <= 1, "is not 0 < low <= high <= 1")
            _require(self, ("blur",), lambda value: all(0 <= p <= 1 for p in value), "are no probabilities")

    def __init__(self, settings: "SelfDistillation.Settings", parts: Parts) -> None:
        super().__init__(settings, parts)
        assert isinstance(parts.model, ViT)
        sizes = settings.hidden_width, settings.bottleneck, settings.outputs
        self.module = Projected(parts.model, *sizes, of_patches=settings.patch_loss > 0)
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
        if settings.patch_loss and (model["pooling"] not in ("token", "gap") or model["norm_after_pooling"]):
            raise UserError(
                f"task.patch_loss={settings.patch_loss} reads the patches as the head does: leave "
                "model.norm_after_pooling at its default, and choose pooling token or gap"
            )

    def init_state(self, params: PyTree) -> PyTree:
        """The teacher begins as the student; its `center` is the mean of what it says."""
        centers = ("center", "patch_center") if self.settings.patch_loss else ("center",)
        teacher = {
            "params": jax.tree.map(jnp.copy, params),
            "batch_stats": {name: jnp.zeros(self.settings.outputs) for name in centers},
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
        hidden = self.hidden(rngs.task) if self.settings.patch_loss else None
        features, seen, seen_patches = self.project(student, batch_stats, large, rngs.dropout, hidden)
        if self.settings.local_crops:
            grid = self.parts.model.grid(small.shape)
            apart = jax.random.fold_in(rngs.dropout, 1)
            seen_small = self.project(self._on_grid(student, grid), batch_stats, small, apart)[1]
            seen = jnp.concatenate([seen, seen_small], axis=1)
        teacher = state["teacher"]
        nothing = None if hidden is None else jnp.zeros_like(hidden)
        directions, taught, taught_patches = jax.lax.stop_gradient(
            self.project(teacher["params"], teacher["batch_stats"], large, hidden=nothing)
        )
        temperatures = self.teacher_temperature(state["progress"]), self.settings.student_temperature
        loss = distillation(taught - teacher["batch_stats"]["center"][None, None], seen, *temperatures)
        metrics = {"feature_spread": spread_of(directions[:, 0])}
        means = {"center": taught.mean(axis=(0, 1))}
        if hidden is not None:
            centred = taught_patches - teacher["batch_stats"]["patch_center"][None, None, None]
            metrics["patch_loss"] = patch_distillation(centred, seen_patches, hidden, *temperatures)
            loss += self.settings.patch_loss * metrics["patch_loss"]
            means["patch_center"] = taught_patches.mean(axis=(0, 1, 2))
        if self.settings.koleo:
            metrics["koleo"] = (koleo(features[:, 0]) + koleo(features[:, 1])) / 2
            loss += self.settings.koleo * metrics["koleo"]
        return loss, Aux(batch_stats, {"loss": loss, **metrics}, means)

    def hidden(self, keys: Key[Array, " n"]) -> Bool[Array, "n v l"]:
        """Which patches of the large crops are hidden from the student."""
        settings, grid = self.settings, self.parts.model.grid(self.parts.image_shape)
        of_crops = jax.vmap(lambda key: jax.random.split(key, GLOBAL))(keys)
        draw = partial(masking.blocks, grid=grid, probability=settings.mask_probability, share=settings.mask_share)
        return jax.vmap(draw)(of_crops)

    def project(
        self,
        params: PyTree,
        batch_stats: PyTree,
        crops: Float[Array, "n v H W c"],
        dropout: Key[Array, ""] | None = None,
        hidden: Bool[Array, "n v l"] | None = None,
    ) -> tuple[Float[Array, "n v d"], Float[Array, "n v k"], Any]:
        """Features and projections of each crop, and of each patch where some may be `hidden`, else None.

        In training with a key for dropout, else without any.
        """
        n, v = crops.shape[:2]
        rngs = {} if dropout is None else {"dropout": dropout}
        flat = crops.reshape(n * v, *crops.shape[2:])
        masks = () if hidden is None else (hidden.reshape(n * v, -1),)
        variables = {"params": params, "batch_stats": batch_stats}
        found: Any = self.module.apply(variables, flat, *masks, train=dropout is not None, rngs=rngs)
        features, projected, patches = found
        of_patches = None if patches is None else patches.reshape(n, v, *patches.shape[1:])
        return features.reshape(n, v, -1), projected.reshape(n, v, -1), of_patches

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
        kept, centers = settings.center_momentum, teacher["batch_stats"]
        moved = {name: kept * center + (1 - kept) * aux.extra[name] for name, center in centers.items()}
        return {"teacher": {"params": followed, "batch_stats": moved}, "progress": progress.astype(jnp.float32)}

    def outputs(self, variables: PyTree, batch: Examples, constants: Mapping[str, PyTree]) -> dict[str, Array]:
        """What the teacher says of an image, against what it says of its mirror image; and the features' directions."""
        images = augment.eval_view(self.parts.augment, batch["image"])
        both = jnp.stack([images, images[:, :, ::-1]], axis=1)
        features, said, _ = self.project(variables["params"], variables["batch_stats"], both)
        centred = said - variables["batch_stats"]["center"][None, None]
        taught = jax.nn.softmax(centred[:, 0] / self.settings.teacher_temperature)
        seen = jax.nn.log_softmax(said[:, 1] / self.settings.student_temperature)
        return {"loss": -(taught * seen).sum(axis=-1), "direction": of_length_1(features[:, 0], axis=-1)}

    def evaluator(self, size: int) -> "DirectionsEvaluator":
        return DirectionsEvaluator()

    def warnings(self, scalars: Mapping[str, float]) -> list[str]:
        """Of features that are alike, and of a student whose answer is even whatever it sees."""
        if "patch_loss" in scalars:
            scalars = {**scalars, "loss": scalars["loss"] - self.settings.patch_loss * scalars["patch_loss"]}
        loss, even = scalars["loss"], math.log(self.settings.outputs)
        if scalars["feature_spread"] < probes.COLLAPSED:
            return [alike(scalars["feature_spread"])]
        if 0.99 * even < loss < 1.01 * even and not self.settings.koleo:
            return [
                f"the training loss {loss:.3f} is still about log {self.settings.outputs} = {even:.3f}, that of the "
                "same even answer to every image. Likely: it has collapsed (the teacher's temperature is too high), or "
                "it has had too few steps yet."
            ]
        return super().warnings(scalars)


def _require(settings: Any, names: tuple[str, ...], holds: Any, fault: str) -> None:
    for name in names:
        if not holds(getattr(settings, name)):
            raise UserError(f"task.{name}={getattr(settings, name)} {fault}")
