"""A run that ends with its operations, `train.flops`: the same as one of so many steps, schedule and all."""

import pytest

from tests import tiny
from vit_jax import config
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.train import set_up


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run of 23 steps."""
    return tiny.finished(tmp_path_factory, "cnn")


def test_a_run_by_operations_is_the_run_of_as_many_steps(tmp_path, finished):
    of_step = 3 * 40 * tiny.result(finished)["flops_per_image"]
    assert tiny.start(tmp_path / "run", "cnn", "train.steps=0", f"train.flops={23.4 * of_step}")[0] == 0
    tiny.assert_same_run(tmp_path / "run", finished)
    assert tiny.result(tmp_path / "run")["training_flops"] == 23 * of_step


def test_sam_computes_twice_as_much_and_patches_left_out_nothing():
    def steps(**changes) -> int:
        vit = {"name": "vit", "patch_size": (4,), "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 2}
        optim = {"sam_rho": changes.pop("sam_rho", 0.0)}
        given = {"model": vit | changes, "optim": optim, "data": {"name": "digits"}, "train": {"flops": 1e9}}
        return set_up(config.from_dict(given), described=True).total_steps

    plain = steps()
    assert steps(sam_rho=0.1) == pytest.approx(plain / 2, abs=1) and steps(patch_dropout=0.5) > 1.3 * plain


def test_self_distillation_counts_every_crop_of_the_student():
    vit = {"name": "vit", "patch_size": (4,), "width": 8, "depth": 2, "mlp_dim": 12, "num_heads": 2}
    small = {"outputs": 8, "hidden_width": 8, "bottleneck": 4, "local_size": (4,)}

    def flops(crops: int) -> tuple[int, int]:
        task = {"name": "self_distillation", "local_crops": crops, **small}
        found = set_up(config.from_dict({"model": vit, "task": task, "data": {"name": "digits"}}), described=True)
        return found.flops_per_step / found.config.train.batch_size / 3, found.flops_per_image

    (large, whole), (with_small, _) = flops(0), flops(6)
    assert large == 2 * whole and large < with_small < 5 * whole  # a small crop is a patch, of four


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["train.flops=-1"], "train.flops=-1.0, .* one of them must be positive, and none negative"),
        (["train.flops=1e9", "train.steps=3"], "train.steps=3 and train.flops=1000000000.0 are both given"),
        (["train.flops=1e9", "train.steps=3", "train.seconds=5"], "are all given; set all but one of them to 0"),
    ],
)
def test_what_ends_a_run_is_one_thing(flags, message):
    with pytest.raises(UserError, match=message):
        config.load(tiny.spec("cnn"), ["train.steps=0", *flags])


def test_a_warm_up_longer_than_the_operations_is_refused():
    given = {"data": {"name": "digits"}, "train": {"flops": 1e9}, "optim": {"warmup_steps": 50}}
    with pytest.raises(UserError, match="the warm-up of 50 steps leaves nothing of the run's 1;"):
        set_up(config.from_dict({"model": {"name": "vit/Ti16", "patch_size": (4,)}, **given}), described=True)


def test_without_operations_epochs_count():
    assert Config().train.flops == 0
