"""Locality, late cutout, balance and sizes in one run: it resumes bit for bit, and one device gives what four give."""

import io
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from tests import tiny
from vit_jax import config, models, train
from vit_jax.train import set_up


def get_config(arg: str = "") -> ConfigDict:
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


def start(workdir, *overrides) -> int:
    console = Console(file=io.StringIO(), width=200)
    return train.train(config.load(__file__, overrides), workdir, console).exit_code


@pytest.mark.slow
def test_it_resumes_bit_for_bit(tmp_path):
    assert start(tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        tiny.interrupt_at(5, signal.SIGTERM, patch)
        assert start(tmp_path / "run") == 143
    assert start(tmp_path / "run") == 0
    tiny.assert_same_run(tmp_path / "run", tmp_path / "whole")
    made = set_up(config.load(__file__, []), described=True)
    small, large = made.flops_by_size.values()
    assert tiny.result(tmp_path / "run")["training_flops"] == 5 * small + 4 * large  # the last half of 9 steps


@pytest.mark.slow
def test_one_device_gives_what_four_give():
    found = {}
    for devices in (1, 4):
        made = set_up(config.load(__file__, []), devices=jax.devices()[:devices])
        state = made.init_state()
        for batch in made.loader.train(0, 360, 0, 2):
            state, _ = made.train_step(state, batch, made.constants)
        found[devices] = jax.device_get(state.params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-4), found[1], found[4])
