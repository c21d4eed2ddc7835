"""What short runs on small images want, together in two runs: they resume bit for bit, one device gives the same."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny
from vit_jax import augment, config, models
from vit_jax.command import UserError
from vit_jax.data import batching
from vit_jax.models.whitened import whiten
from vit_jax.train import set_up

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 5, 7, 2), np.uint8)
PLAIN = augment.Settings(mean=(0.5,), std=(0.5,))


def whitened() -> ConfigDict:
    c = config.default()
    c.model = models.settings("conv_stem/4-128", widths=(6,), width=8, depth=1, mlp_dim=12, num_heads=2)
    c.model.update(patch_dropout=0.3, pooling="sequence")
    c.init.whitening = c.init.mimetic = True
    c.data.name = "digits"
    c.augment.alternate_flip, c.augment.crop_padding, c.augment.fill = True, 1, "reflect"
    c.optim.name, c.optim.muon_per_head, c.optim.cautious = "muon", True, True
    c.optim.freeze, c.optim.lr_factors = "^whitening/conv/kernel", ("^head/=0.5",)
    c.optim.lr, c.optim.epsilon, c.optim.schedule = 1e-2, 1e-3, "wsd"
    c.train.batch_size, c.train.steps = 360, 9
    c.evaluate.every_steps, c.evaluate.tta, c.log.every_steps = 4, "flip_shift", 3
    c.log.tensorboard = c.log.report = False
    return c


def local() -> ConfigDict:
    """Locality, late cutout, balance and sizes."""
    c = config.default()
    c.model = models.settings("small_vit", patch_size=(2,), width=16, depth=1, mlp_dim=12, num_heads=2)
    c.model.update(shifted_patches=True, learned_temperature=True, mask_self=True, mlp_conv=3, logit_scale=0.5)
    c.model.update(class_token=False, pooling="gap")
    c.init.impulse = True
    c.data.name, c.data.balance = "digits", 1.0
    c.augment.cutout, c.augment.cutout_from = 4, 0.6
    c.optim.lr, c.optim.epsilon, c.optim.ema_decay, c.optim.ema_warmup = 1e-2, 1e-3, 0.9, True
    c.train.batch_size, c.train.steps, c.train.image_sizes = 360, 9, (6, 8)
    c.evaluate.every_steps, c.log.every_steps = 4, 3
    c.log.tensorboard = c.log.report = False
    return c


def schedule_free() -> ConfigDict:
    """The same, with the mean of its parameters in the place of momentum and decay."""
    c = whitened()
    c.optim.name, c.optim.cautious, c.optim.muon_per_head, c.optim.b1 = "adamw", False, False, 0.0
    c.optim.schedule, c.optim.schedule_free, c.optim.warmup_steps = "constant", 0.9, 3
    return c


@pytest.mark.slow
@pytest.mark.parametrize("configured", [whitened, local, schedule_free])
def test_it_resumes_bit_for_bit(tmp_path, configured):
    def start(workdir):
        return tiny.train_quietly(configured(), workdir)

    assert start(tmp_path / "whole").exit_code == 0
    tiny.assert_resumes(start, tmp_path / "run", tmp_path / "whole", at=5)
    if configured is local:
        small, large = set_up(config.from_dict(local()), described=True).flops_by_size.values()
        assert tiny.result(tmp_path / "run")["training_flops"] == 5 * small + 4 * large  # the last half of 9 steps
    if configured is whitened:
        check_accuracies_and_whitening(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configured", "overrides"), [(whitened, ["optim.cautious=False"]), (local, []), (schedule_free, [])]
)
def test_one_device_gives_what_four_give(configured, overrides):
    found = {}
    for devices in (1, 4):
        made = set_up(config.from_dict(configured(), overrides), devices=jax.devices()[:devices])
        state = made.init_state()
        for batch in made.loader.train(0, 360, 0, 2):
            state, _ = made.train_step(state, batch, made.constants)
        found[devices] = jax.device_get(state.params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-4), found[1], found[4])


def check_accuracies_and_whitening(finished):
    """It reports both accuracies and keeps the whitening."""
    result = tiny.result(finished)
    assert 0 < result["test/accuracy_tta"] <= 1 and result["test/accuracy_tta"] != result["test/accuracy"]
    (kernel,) = (
        x for name, x in tiny.arrays(finished).items() if "params" in name and "whitening" in name and x.ndim > 1
    )
    experiment = set_up(config.from_dict(whitened()), devices=jax.devices()[:1])
    images = experiment.loader.split.arrays["image"]
    seen = augment.eval_view(experiment.task.parts.augment, jax.numpy.asarray(images))
    np.testing.assert_allclose(np.abs(kernel), np.abs(whiten(np.asarray(seen), 2)), rtol=1e-3, atol=1e-3)


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    shown = {}
    for step in range(2 * 4):
        indices = batching.train_indices(3, step, 5, 20)
        for index, flag in zip(indices, batching.mirrored(3, step, 5, 20, indices), strict=True):
            shown.setdefault(int(index), []).append(bool(flag))
    assert all(sorted(flags) == [False, True] for flags in shown.values()) and len(shown) == 20
    assert len({flags[0] for flags in shown.values()}) == 2


def test_images_marked_so_are_mirrored_and_no_others():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(3))
    marked = {"image": jax.numpy.asarray(IMAGES), "mirrored": np.array([True, False, True])}
    found = augment.train_examples(PLAIN, marked, keys)["image"]
    expected = augment.eval_view(
        PLAIN, np.where(marked["mirrored"][:, None, None, None], IMAGES[:, :, ::-1], IMAGES) + jax.numpy.uint8(0)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["none", "flip", "flip_shift"])
def test_views_at_test_time_have_shares_of_one(kind):
    images = jax.numpy.asarray(IMAGES, jax.numpy.float32)
    views = augment.other_views(kind, images)
    assert len(views) == {"none": 0, "flip": 1, "flip_shift": 5}[kind]
    assert sum(weight for weight, _ in views) == {"none": 0, "flip": 0.5, "flip_shift": 0.75}[kind]
    if kind == "flip_shift":  # one pixel down and right of what the image shows, and back
        np.testing.assert_array_equal(views[1][1][:, 1:, 1:], images[:, :-1, :-1])
        np.testing.assert_array_equal(views[3][1][:, :-1, :-1], images[:, 1:, 1:])


def test_a_model_without_the_layer_cannot_be_whitened(tmp_path):
    with pytest.raises(UserError, match="model 'cnn' has no whitening layer; choose model 'conv_stem'"):
        tiny.start(tmp_path / "run", "cnn", "init.whitening=True")


def test_flips_alternate_or_are_drawn():
    with pytest.raises(UserError, match=r"augment.flip=0.5: expected 0 \(off\), because augment.alternate_flip=True"):
        config.from_dict({"augment": {"flip": 0.5, "alternate_flip": True}})
