"""Plans of other tasks than classification, without their data sets."""

from tests.conftest import REPOSITORY
from vit_jax import config
from vit_jax.plan import subject


def test_masks_that_are_not_here_are_stood_in_for(tmp_path):
    given = config.load(str(REPOSITORY / "configs" / "camvid.py:fpn"), [f"data.data_dir={tmp_path}"])
    planned = subject.prepare(given)
    assert planned.assumed == ("data set camvid: 367 images of 11 classes, 360x480x3 (not looked at)",)
    spec = planned.inputs.data.split("train").spec(8)
    assert spec["mask"].shape == (8, 360, 480) and set(spec) == {"image", "mask"}
