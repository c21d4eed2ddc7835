"""Masked autoencoding against `ViTMAEForPreTraining` of `transformers`: loss and gradients of the same weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests import quick
from tests.pretrained import parity
from vit_jax import augment, models, tasks
from vit_jax.models.positions import sincos2d
from vit_jax.pretrained import huggingface

SIDE, PATCH, L = 21, 7, 9
# Encoder and decoder have blocks of the same size: one conversion serves both.
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
DECODER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
RENAMED = {  # ours -> theirs, beside blocks
    "decoder/encoder_norm/scale": "decoder.decoder_norm.weight",
    "decoder/encoder_norm/bias": "decoder.decoder_norm.bias",
    "decoder_embedding/kernel": "decoder.decoder_embed.weight",
    "decoder_embedding/bias": "decoder.decoder_embed.bias",
    "decoder_pixels/kernel": "decoder.decoder_pred.weight",
    "decoder_pixels/bias": "decoder.decoder_pred.bias",
    "mask_token": "decoder.mask_token",
}
FIXED = ("position_embeddings", "decoder_pos_embed")  # these do not train


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers", reason="no transformers: pip install vit_jax[parity]")
    decoder = {f"decoder_{name}": value for name, value in DECODER.items()}
    sides = {"image_size": SIDE, "patch_size": PATCH}
    config = transformers.ViTMAEConfig(**SIZES, **decoder, **sides, mask_ratio=0.75, norm_pix_loss=True)
    model = transformers.ViTMAEForPreTraining(config)
    parity.randomise(model)
    # The decoder's positions do not train; theirs have other frequencies, and get ours.
    table = np.asarray(sincos2d((SIDE // PATCH, SIDE // PATCH), DECODER["hidden_size"])).reshape(1, L, -1)
    arrays = model.state_dict()["decoder.decoder_pos_embed"]
    arrays.copy_(arrays.new_tensor(np.pad(table, ((0, 0), (1, 0), (0, 0)))))
    return model


def as_ours(layout: Any, arrays: parity.Arrays) -> dict[str, np.ndarray]:
    """Their arrays, or gradients, by our names, the decoder's too."""
    found = {entry.ours.removeprefix("params/"): entry.convert(arrays[entry.theirs]) for entry in layout.entries}
    for entry in layout.entries:
        ours, block = entry.ours.removeprefix("params/"), "Transformer/encoderblock_0/"
        if ours.startswith(block):
            name = entry.theirs.replace("vit.layers.0.", "decoder.decoder_layers.0.")
            found[ours.replace(block, "decoder/encoderblock_0/")] = entry.convert(arrays[name])
    return found | {our: arrays[name].T if "kernel" in our else arrays[name] for our, name in RENAMED.items()}


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_transformers(theirs):
    import torch

    images = parity.random_images(3, SIDE, SIDE, 3)
    noise = np.random.default_rng(5).random((3, L), np.float32)
    as_nchw = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    out = theirs(as_nchw, noise=torch.from_numpy(noise))
    out.loss.backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    arrays = parity.in_memory(theirs)
    gradients |= {name: np.zeros_like(array) for name, array in arrays.items() if name.endswith(FIXED)}

    layout = huggingface.detect(parity.shapes_of(arrays), {"config.json": theirs.config.to_dict()})
    view = augment.Settings(mean=(0.5,) * 3, std=(0.5,) * 3)
    parts = tasks.Parts(models.create(layout.model), (SIDE, SIDE, 3), (), augment=view, train_augment=view)
    sizes = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    task = tasks.create(tasks.settings("masked_autoencoder", **sizes), parts)
    params = unflatten_dict(as_ours(layout, arrays), sep="/")

    def loss(params):
        inputs = jnp.asarray(images), jnp.asarray(noise)
        predicted, mask = task.predict({"params": params}, *inputs, train=False)
        return task.per_example(predicted, task.target(inputs[0])[0], mask).mean(), mask

    (found, mask), ours = quick.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(mask, out.mask.numpy())
    assert mask.sum() == 3 * 7 and float(found) == pytest.approx(out.loss.item(), rel=1e-5)
    expected, ours = as_ours(layout, gradients), flatten_dict(ours, sep="/")
    assert expected.keys() == ours.keys() and len(ours) > 50
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        if not name.endswith("pos_embedding"):
            np.testing.assert_allclose(ours[name], gradient, atol=1e-5 * largest, rtol=1e-3, err_msg=name)
            assert np.abs(gradient).max() > 1e-4 * largest or "key/bias" in name, name
