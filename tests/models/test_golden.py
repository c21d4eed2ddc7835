"""Every model has the parameters of its publication."""

import pytest

from tests.conftest import rest_is_slow
from tests.models.golden import count
from vit_jax import models

# Parameters for images of 224 pixels and 1000 classes.
PARAMETERS = {
    "deit/Ti16": 5_910_800,
    "deit/S16": 22_436_432,
    "deit/B16": 87_338_192,
    # Without the head, table 1's 19, 18, 60, 59, 206, 207 and 431 M.
    "mixer/S32": 19_104_624,
    "mixer/S16": 18_528_264,
    "mixer/B32": 60_293_428,
    "mixer/B16": 59_880_472,
    "mixer/L32": 206_939_264,
    "mixer/L16": 208_196_168,
    "mixer/H14": 432_350_952,
    "bit/50x1": 25_549_352,
    "bit/101x1": 44_541_480,
    "bit/50x3": 217_319_080,
    "bit/101x3": 387_934_888,
    "bit/152x2": 236_335_208,
    "bit/152x4": 936_533_224,
    "vit/mu16": 76_712,
    "vit/mu32": 145_736,
    "vit/Ti16": 5_717_416,
    "vit/S8": 22_055_272,
    "vit/S14": 22_004_584,
    "vit/S16": 22_050_664,
    "vit/S32": 22_878_952,
    "vit/M16": 38_837_736,
    "vit/M32": 39_942_120,
    "vit/B8": 86_576_872,
    "vit/B14": 86_475_496,
    "vit/B16": 86_567_656,
    "vit/B32": 88_224_232,
    "vit/L14": 304_203_752,
    "vit/L16": 304_326_632,
    "vit/L32": 306_535_400,
    "vit/H14": 632_045_800,
    "vit/H16": 632_199_400,
    "vit/g14": 1_012_611_432,
    "vit/g16": 1_012_780_392,
    "vit/G14": 1_844_440_680,
    "vit/e14": 3_807_214_312,
    "cnn/conv3": 12_966_440,
    "cnn/conv6": 207_686_696,
}
ELSEWHERE = (
    "compact",
    "conv_stem",
    "hybrid",
    "resnet",
    "resnetv2",
    "small_vit",
    "visual_transformer",
    "whitened_cnn",
)  # with other sizes, in their own tests


def test_every_model_has_a_golden_count():
    here = [name for name in models.names() if name.partition("/")[0] not in ELSEWHERE]
    assert sorted(here) == sorted(PARAMETERS)


# All are counted by `make test-slow`: one size of a family, which traces fast, tells most mistakes.
QUICK = [name for name in PARAMETERS if name.endswith(("S16", "S32", "/18", "50x1", "Ti16"))]


@pytest.mark.parametrize(
    "name", rest_is_slow([*QUICK, *(name for name in PARAMETERS if name not in QUICK)], len(QUICK))
)
def test_golden_count(name):
    scan = {"scan": True} if "scan" in models.fields(name) else {}  # traces one layer instead of 56
    assert count(name, 224, 1000, **scan) == PARAMETERS[name]
