"""What a ViT has for small data sets: each option off is the plain ViT, and on does what its paper says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax import models, trees
from vit_jax.command import UserError
from vit_jax.models.small_vit import ShiftedPatchEmbedding
from vit_jax.train.flops import flops_per_image

TINY = {"patch_size": (4,), "width": 8, "depth": 2, "mlp_dim": 11, "num_heads": 2, "num_classes": 5}
SHAPE = (12, 8, 3)
IMAGES = jnp.asarray(np.random.default_rng(3).normal(size=(2, *SHAPE)), jnp.float32)
OPTIONS = {"shifted_patches": True, "learned_temperature": True, "mask_self": True, "mlp_conv": 3, "logit_scale": 0.5}


def tiny(name="small_vit", **fields):
    model = models.create(models.settings(name, **TINY | fields))
    model.check(SHAPE)
    return model


def variables_of(model, std=0.1):
    """Random parameters, zeros among them."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))["params"]
    draws = np.random.default_rng(7)
    return {"params": jax.tree.map(lambda x: jnp.asarray(draws.normal(size=x.shape) * std, jnp.float32), shapes)}


def logits(model, variables):
    return quick.jit(lambda v, x: model.apply(v, x, train=False))(variables, IMAGES)


def test_with_all_options_off_it_is_the_plain_vit():
    plain, small = tiny("vit"), tiny()
    variables = variables_of(plain)
    assert jax.tree.structure(variables) == jax.tree.structure(variables_of(small))
    np.testing.assert_array_equal(logits(plain, variables), logits(small, variables))


def test_options_that_start_as_the_plain_vit():
    """The temperature at its first value, and the convolution of zeros, change nothing yet."""
    plain, small = tiny("vit", zero_head=False), tiny(learned_temperature=True, mlp_conv=3, zero_head=False)
    start, own = (
        quick.jit(partial(model.init, train=False))(jax.random.key(0), IMAGES)["params"] for model in (plain, small)
    )
    new = set(trees.names(own)) - set(trees.names(start))
    assert {name.split("/")[-1] for name in new} == {"scale", "kernel"}
    np.testing.assert_allclose(logits(plain, {"params": start}), logits(small, {"params": own}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_of_all_options_are_finite_and_reach_all_parameters(scan):
    model = tiny(**OPTIONS, scan=scan, registers=1, class_token=False, pooling="gap")
    variables = variables_of(model)

    @quick.jit
    def gradient(variables):
        def loss(variables):
            found = model.apply(variables, IMAGES, train=True, rngs={"dropout": jax.random.key(1)})
            return jax.nn.logsumexp(found + jnp.arange(5.0)[None], axis=1).sum()

        return jax.grad(loss)(variables)

    found = dict(zip(trees.names(variables["params"]), jax.tree.leaves(gradient(variables)), strict=True))
    assert all(np.isfinite(g).all() for g in found.values())
    assert [name for name, g in found.items() if not np.abs(g).max() > 0] == []


def attentions(model, variables):
    """Those of each layer."""
    apply = quick.jit(partial(model.apply, train=False, mutable=["intermediates"]))
    blocks = apply(variables, IMAGES)[1]["intermediates"]["Transformer"].values()
    return [block["MultiHeadDotProductAttention_1"]["attention"][0] for block in blocks]


def test_no_token_sees_itself():
    model = tiny(mask_self=True)
    for attention in attentions(model, variables_of(model)):
        assert not np.diagonal(attention, axis1=2, axis2=3).any()
        np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-6)


def test_a_colder_temperature_sharpens_attention():
    model = tiny(learned_temperature=True, depth=1)
    variables, found = variables_of(model, std=0.5), {}
    for scale in (0.1, 10.0):
        attention = variables["params"]["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_1"]
        attention["scale"] = jnp.full(2, scale)
        found[scale] = attentions(model, variables)[0].max(axis=-1).mean()
    assert found[10.0] > 1.5 * found[0.1]


def test_shifted_patches_see_half_a_patch_around_them():
    """A pixel reaches its own patch, and where the shifts to the four corners put it."""
    embed = ShiftedPatchEmbedding((4, 4), 7, 1e-6, "float32")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 12, 1)), jnp.float32)
    variables = embed.init(jax.random.key(0), images)
    changed = embed.apply(variables, images.at[0, 3, 6, 0].add(1.0)) - embed.apply(variables, images)
    touched = np.abs(np.asarray(changed[0])).max(axis=-1) > 1e-6
    # (3, 6) itself, (1, 4), (1, 8), (5, 4) and (5, 8), by patches of 4
    np.testing.assert_array_equal(touched, [[0, 1, 1], [0, 1, 1], [0, 0, 0]])


def test_the_convolution_is_counted():
    without, counted = (flops_per_image(tiny(mlp_conv=size), SHAPE) for size in (0, 3))
    assert counted - without == 2 * 9 * 6 * 11  # six patches; the last block computes the class token alone


def test_logits_are_scaled():
    variables = variables_of(tiny())
    np.testing.assert_allclose(logits(tiny(), variables) / 2, logits(tiny(logit_scale=0.5), variables), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp_conv": 2}, r"mlp_conv=2 is not 0 \(off\) or an odd number"),
        ({"mlp_conv": 3, "patch_dropout": 0.5}, "mlp_conv=3 needs the patches that model.patch_dropout=0.5"),
        ({"mask_self": True, "attention": "auto"}, "attention='auto' has no learned_temperature and no mask_self"),
        ({"shifted_patches": True, "patch_size": (1,)}, r"patch_size=\(1,\) has no half"),
        ({"logit_scale": -1.0}, "logit_scale=-1.0 is not positive"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        tiny(**fields)


def test_patches_left_out_by_a_task_are_refused():
    model = tiny(mlp_conv=3)
    with pytest.raises(UserError, match="model.mlp_conv needs all patches of an image"):
        jax.eval_shape(lambda: model.apply(variables_of(model), IMAGES, train=False, keep=jnp.zeros((2, 3), jnp.int32)))
