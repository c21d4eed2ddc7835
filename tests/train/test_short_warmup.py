"""A run that is shorter than its warm-up."""

import io

import pytest
from rich.console import Console

from tests import tiny
from vit_jax import config
from vit_jax.train.inputs import open_inputs


def opened(*overrides: str) -> tuple[config.Config, str]:
    output = io.StringIO()
    inputs = open_inputs(config.load(tiny.spec("cnn"), overrides), console=Console(file=output, width=300))
    return inputs.config, output.getvalue()


@pytest.mark.parametrize("flag", ["optim.warmup_steps=23", "optim.warmup_epochs=30"])
def test_the_warm_up_is_shortened_to_a_tenth_and_told(flag):
    given, said = opened(flag)
    assert (given.optim.warmup_steps, given.optim.warmup_epochs) == (2, 0.0)
    asked = 23 if "steps" in flag else 120  # 30 epochs of 4 steps
    assert f"The warm-up of {asked} steps leaves nothing of the run's 23: it takes 2 of them" in said


@pytest.mark.parametrize(
    "flags", [("optim.warmup_steps=22",), ("optim.warmup_epochs=5", "train.steps=0", "train.seconds=1")]
)
def test_others_keep_theirs(flags):
    given, said = opened(*flags)
    asked = config.load(tiny.spec("cnn"), flags)
    assert given.optim == asked.optim and "warm-up" not in said
