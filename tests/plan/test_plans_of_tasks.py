"""Plans of other tasks than classification: a masked autoencoder and a segmentation, without their data sets."""

import json

import pytest

from tests.conftest import REPOSITORY
from vit_jax import config, plan
from vit_jax.plan import subject

QUICK_TO_COMPILE = False  # the compiler says how much memory a step takes
MAE = ("mae.py:vit_l16", ("model.depth=1", "task.decoder_depth=1", "train.batch_size=64"))
SEGMENTATION = ("camvid.py:resnet50_vt_fpn", ("model.stage_sizes=(1,1,1,1)", "train.batch_size=16"))


def test_masks_that_are_not_here_are_stood_in_for(tmp_path):
    given = config.load(str(REPOSITORY / "configs" / "camvid.py:fpn"), [f"data.data_dir={tmp_path}"])
    planned = subject.prepare(given)
    assert planned.assumed == ("data set camvid: 367 images of 11 classes, 360x480x3 (not looked at)",)
    spec = planned.inputs.data.split("train").spec(8)
    assert spec["mask"].shape == (8, 360, 480) and set(spec) == {"image", "mask"}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "shallow"), [MAE, SEGMENTATION], ids=["mae", "segmentation"])
def test_the_tpu_compiler_plans_them(recipe, shallow, tmp_path):
    pytest.importorskip("libtpu", reason='the TPU compiler is not installed: pip install "vit_jax[tpu]"')
    out, words = tmp_path / "plan.json", [f"--config.{field}" for field in shallow]
    spec = str(REPOSITORY / "configs" / recipe)
    words += ["--config", spec, "--topology", "v3:2x2,v5e:2x4", "--data_dir", str(tmp_path), "--out", str(out)]
    assert plan.main(words) == 0
    rows = json.loads(out.read_text())
    assert [row["device_kind"] for row in rows] == ["TPU v3", "TPU v5 lite"]
    assert all(row["memory"]["fits"] and row["method"] == "compiler" and row["step_seconds"] > 0 for row in rows)
