"""Networks on whitened patches: sizes, the whitening itself, what is refused, the ViT on the map, patches left out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.models.maps import random_variables
from vit_jax import models
from vit_jax.command import UserError
from vit_jax.models.whitened import dirac, map_size, whiten
from vit_jax.train.flops import flops_per_image

IMAGES = np.random.default_rng(3).normal(size=(3, 14, 23, 3)).astype(np.float32)
PIXELS = jnp.asarray(IMAGES)
TINY = {"widths": (5, 7), "width": 8, "depth": 1, "mlp_dim": 11, "num_heads": 2, "num_classes": 5}


def tiny(**fields):
    return models.create(models.settings("conv_stem/4-128", **TINY | fields))


def test_airbenchs_operations():
    """2.9e14 in 8 epochs of 50,000 images (shared among its users as 3 forward passes): 242 M an image."""
    cnn = models.create(models.settings("whitened_cnn/airbench94", num_classes=10))
    assert 3 * 8 * 50_000 * flops_per_image(cnn, (32, 32, 3)) == pytest.approx(2.9e14, rel=0.03)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    kernel = whiten(IMAGES, 2, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    patches = np.stack([IMAGES[:, y : y + 13, x : x + 22] for y in (0, 1) for x in (0, 1)], axis=3)
    seen = patches.reshape(-1, 12) @ kernel.reshape(12, 24)
    np.testing.assert_allclose(seen[:, :12].T @ seen[:, :12] / len(seen), np.eye(12), atol=1e-4)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


def test_a_dirac_kernel_gives_its_inputs_first():
    kernel = dirac(jax.random.key(0), (3, 3, 5, 7))
    found = jax.lax.conv(
        jnp.moveaxis(jnp.broadcast_to(jnp.arange(5.0), (1, 4, 4, 5)), 3, 1),
        kernel.transpose(3, 2, 0, 1),
        (1, 1),
        "SAME",
    )
    np.testing.assert_allclose(found[0, :5].transpose(1, 2, 0), np.broadcast_to(np.arange(5.0), (4, 4, 5)), atol=1e-6)
    assert np.abs(kernel[..., 5:]).max() <= 45**-0.5 and np.std(kernel[..., 5:]) > 0.05


def test_gradients_are_finite_and_the_map_has_its_size():
    model = tiny(pooling="sequence", patch_dropout=0.4)
    model.check(IMAGES.shape[1:])
    assert map_size(IMAGES.shape, 2, 2) == model.grid(IMAGES.shape) == (3, 5)
    variables = random_variables(model, PIXELS)

    @quick.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                PIXELS,
                train=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats"],
            )
            return jax.nn.logsumexp(logits + jnp.arange(5.0)[None], axis=1).sum()

        return jax.grad(loss)(params)

    found = jax.tree.leaves(gradient(variables["params"]))
    assert all(np.isfinite(g).all() for g in found) and sum(np.abs(g).max() > 0 for g in found) > 0


def test_patches_that_training_leaves_out_cost_nothing():
    """Without any, training is as it was; with half of them the transformer has half of the tokens."""
    whole, half = tiny(), tiny(patch_dropout=0.5)
    shape = (33, 33, 3)
    operations = [flops_per_image(model, shape, train=True) for model in (whole, half)]
    assert flops_per_image(whole, shape) == operations[0] == flops_per_image(half, shape)
    stem = flops_per_image(tiny(depth=1, mlp_dim=1), shape)
    assert operations[1] < operations[0] and stem < operations[0]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("conv_stem/4-128", {"widths": ()}, r"widths=\(\) must be positive"),
        ("conv_stem/4-128", {"whitening": -1}, "whitening=-1 is negative"),
        ("conv_stem/4-128", {"widths": (3,) * 5}, "halves the image 5 times, too often for 14x23"),
        ("conv_stem/4-128", {"patch_size": (2,)}, r"patch_size=\(2,\) does not divide the 3x5 map .* set it to \(1,\)"),
        ("conv_stem/4-128", {"patch_dropout": 1.0}, "patch_dropout=1.0 is not a probability below 1"),
        (
            "conv_stem/4-128",
            {"patch_dropout": 0.5, "pooling": "flatten"},
            "leaves out patches, which pooling='flatten'",
        ),
        ("whitened_cnn/airbench94", {"logit_scale": 0.0}, "logit_scale=0.0 is not positive"),
    ],
)
def test_what_does_not_fit_is_refused(name, fields, message):
    sizes = TINY if name.startswith("conv_stem") else {"widths": (5, 7), "num_classes": 5}
    model = models.create(models.settings(name, **sizes | fields))
    with pytest.raises(UserError, match=message):
        model.check(IMAGES.shape[1:])


def test_the_cnn_scales_its_logits():
    model = partial(models.settings, "whitened_cnn/airbench94", widths=(5, 7), num_classes=5)
    one, ninth = models.create(model(logit_scale=1.0)), models.create(model())
    variables = random_variables(one, PIXELS)
    found, whole = (quick.jit(partial(each.apply, train=False))(variables, PIXELS) for each in (ninth, one))
    np.testing.assert_allclose(whole / 9, found, rtol=1e-6)
