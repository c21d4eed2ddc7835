"""Schedules of the learning rate at points worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from vit_jax import optim
from vit_jax.command import UserError
from vit_jax.optim import Settings

WARM = {"lr": 2.0, "warmup_steps": 20, "warmup_start_lr": 0.5}  # of 100 steps, 10 to an epoch


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({**WARM, "schedule": "cosine"}, {0: 0.5, 10: 1.25, 20: 2, 40: 1 + 0.5**0.5, 60: 1, 100: 0, 150: 0}),
        ({**WARM, "schedule": "cosine", "final_lr": 0.4}, {20: 2, 60: 1.2, 100: 0.4}),
        ({**WARM, "schedule": "linear", "final_lr": 0.4}, {10: 1.25, 20: 2, 40: 1.6, 100: 0.4, 150: 0.4}),
        ({**WARM, "schedule": "rsqrt", "timescale_steps": 16}, {5: 0.875, 20: 2, 68: 1, 260: 0.5}),
        (
            {"lr": 2.0, "schedule": "step", "step_epochs": (3.0, 6.5)},
            {0: 2, 29: 2, 30: 0.2, 64: 0.2, 65: 0.02, 99: 0.02},
        ),
        ({**WARM, "schedule": "step", "step_epochs": (3.0,), "factor": 0.5}, {10: 1.25, 20: 2, 30: 1}),
        ({**WARM, "schedule": "exponential", "factor": 0.5}, {10: 1.25, 20: 2, 29: 2, 30: 1, 45: 0.5}),
        ({**WARM, "schedule": "constant"}, {0: 0.5, 19: 1.925, 20: 2, 99: 2}),
        ({"lr": 2.0, "schedule": "constant", "warmup_epochs": 1.5}, {0: 0, 3: 0.4, 15: 2, 99: 2}),
        ({"lr": 2.0, "schedule": "cosine"}, {0: 2, 50: 1, 100: 0}),
    ],
    ids=lambda value: value.get("schedule", "") if isinstance(value, dict) else "",
)
def test_a_schedule_by_hand(fields, points):
    rate = quick.jit(optim.schedule(Settings(**fields), steps_per_epoch=10))
    for step, expected in points.items():
        value = rate(jnp.int32(step), 100)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6, err_msg=f"at step {step}")


def test_a_schedule_can_be_added(monkeypatch):
    monkeypatch.setitem(optim.SCHEDULES, "square", None)  # taken out again after the test

    @optim.register_schedule("square")
    def square(settings: Settings, at: optim.Place):
        return settings.lr * (1 - at.progress) ** 2

    settings = Settings(**WARM, schedule="square")
    assert optim.check(settings) is None
    rate = quick.jit(optim.schedule(settings, steps_per_epoch=10))
    for step, expected in {0: 0.5, 10: 1.25, 20: 2, 60: 0.5, 100: 0}.items():
        np.testing.assert_allclose(rate(step, 100), expected, rtol=1e-6, atol=1e-6)


def test_a_clock_shortens_the_warm_up_to_a_tenth():
    rate = quick.jit(optim.schedule(Settings(**WARM, schedule="linear"), steps_per_epoch=10, timed=True))
    for total, points in {100: {0: 0.5, 5: 1.25, 10: 2, 55: 1, 100: 0}, 300: {10: 1.25, 20: 2, 160: 1, 300: 0}}.items():
        for step, expected in points.items():
            np.testing.assert_allclose(rate(step, total), expected, rtol=1e-6, atol=1e-6)
    assert float(rate(0, 2**31 - 1)) == 0.5  # before a step was timed


def test_a_head_that_trains_alone_to_the_end_is_a_linear_probe():
    optim.check_warmup(Settings(head_warmup_steps=99), total_steps=100)
    with pytest.raises(
        UserError, match=r"head_warmup_steps=100 leaves nothing of the run's 100 steps, .*optim\.freeze"
    ):
        optim.check_warmup(Settings(head_warmup_steps=100), total_steps=100)
