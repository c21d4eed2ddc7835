"""Floating-point operations of a model and of a training step, as papers count them."""

from collections import Counter

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_jax import flops, step
from vit_jax.config import Config
from vit_jax.tasks import Task
from vit_jax.trees import PyTree


def flops_per_image(module: nn.Module, shape: tuple[int, int, int], *, train: bool = False) -> int:
    """Floating-point operations of a forward pass for one image: 2 per multiply-add, attention included.

    Of the plain kernel: a fused one's padding is not the model's work.
    """
    module = step.with_field(module, "attention", "plain")
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda: step.init_variables(module, 0, shape))
    if not train:
        return flops.count(lambda v, x: module.apply(v, x, train=False), variables, images)

    def training(variables: PyTree, images: Array) -> PyTree:
        rngs, mutable = {"dropout": jax.random.key(0)}, ["batch_stats", "distillation"]  # here no device is touched
        return module.apply(variables, images, train=True, rngs=rngs, mutable=mutable)

    return flops.count(training, variables, images)


def flops_per_step(config: Config, task: Task) -> int:
    """Of a training step, as papers count: three forward passes for an image, or each of its crops, six with SAM.

    The forward pass is that of evaluation, but with patches left out where training leaves them out. Recomputation, a
    teacher, augmentation and the optimizer do not count.
    """
    drops = getattr(task.module, "patch_dropout", 0) > 0
    forward = sum(n * flops_per_image(task.module, shape, train=drops) for shape, n in Counter(task.seen).items())
    return (6 if config.optim.sam_rho else 3) * forward * config.train.batch_size
