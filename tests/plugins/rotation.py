"""Learning without labels: by how many quarter turns was the image turned (Gidaris et al. 2018, arXiv:1803.07728)?"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from vit_jax import augment, metrics, models, tasks


class Turned(nn.Module):
    backbone: nn.Module

    def setup(self):
        nn.share_scope(self, self.backbone)  # whose parameters keep their names

    NAMING = property(lambda self: models.naming_of(self.backbone))

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(4, name="head")(self.backbone(images, train=train))


class Rotation(tasks.Task):
    monitor = "turns_right"

    def __init__(self, settings, parts):
        super().__init__(settings, parts)
        self.module = Turned(parts.model)

    def loss(self, params, batch_stats, state, batch, rngs, constants):
        turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(rngs.task)
        variables = {"params": params, "batch_stats": batch_stats}
        images = jax.vmap(turned)(self.augmented(batch, rngs), turns)
        key = {"dropout": rngs.dropout}
        logits, changed = self.module.apply(variables, images, train=True, rngs=key, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, turns).mean()
        return loss, tasks.Aux(changed.get("batch_stats", {}), {"loss": loss})

    def outputs(self, variables, batch, constants):
        images = augment.eval_view(self.parts.augment, batch["image"])
        logits = [self.module.apply(variables, jnp.rot90(images, i, axes=(1, 2)), train=False) for i in range(4)]
        right = [x.argmax(axis=-1) == i for i, x in enumerate(logits)]
        return {"turns_right": jnp.stack(right, axis=1).mean(axis=1)}

    def evaluator(self, size):
        return tasks.Means()


def turned(image, turns):
    return jax.lax.switch(turns, [lambda x, i=i: jnp.rot90(x, i) for i in range(4)], image)


metrics.register("turns_right", metrics.Metric("rotations told", "turns"))
tasks.register("rotation", Rotation)
