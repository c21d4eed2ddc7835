"""The recipes of a budget cost what their names say, and are neither a fraction of an epoch nor hundreds."""

from dataclasses import replace

import jax
import pytest

from tests.conftest import REPOSITORY, rest_is_slow
from tests.test_configs import opened
from vit_jax import config, sharding
from vit_jax.train import Inputs, set_up

FILE = REPOSITORY / "configs" / "budget.py"
BUDGETS = [name for name in config.variants(FILE) if not name.startswith("proxy")]
# One of each model and data set; `tests/test_configs.py` builds all of them.
CHECKED = ["cnn_cifar10_1e14", "cifar10_4e14", "fashion_mnist_1e14", "imagenette64_1e15", "cnn_imagenette64_4e14"]


def test_there_is_a_vit_and_a_cnn_for_each_budget():
    assert set(CHECKED) <= set(BUDGETS) and len(BUDGETS) == 18
    for name in BUDGETS:
        given = config.load(f"{FILE}:{name}")
        assert given.train.flops == float(name.rpartition("_")[2])
        assert given.model["name"].startswith("whitened_cnn" if name.startswith("cnn_") else "conv_stem")


@pytest.mark.parametrize("name", rest_is_slow(CHECKED))
def test_a_recipe_costs_what_its_name_says(name, monkeypatch):
    given = replace(config.load(f"{FILE}:{name}"), mesh=sharding.Settings())
    built = set_up(Inputs(given, opened(given, monkeypatch)), devices=jax.devices()[:1], described=True)
    assert built.training_flops(built.total_steps) == pytest.approx(given.train.flops, rel=1e-3)
    assert 5 < built.total_steps / built.steps_per_epoch < 100
