"""Every model has the parameters of its publication."""

import pytest

from tests.conftest import rest_is_slow
from tests.models.golden import count
from vit_jax import models

# Parameters for images of 224 pixels and 1000 classes...
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
    "hybrid/R+Ti16": 6_337_704,
    "hybrid/R26+S32": 36_431_912,
    "hybrid/R50+B16": 98_659_112,
    "hybrid/R50+L32": 328_994_856,
}
# ... and of 32 pixels and 10 classes, with the millions that the authors print.
PARAMETERS_32 = {
    "compact/ViT-Lite-6/4": 3_190_538,  # 3.191
    "compact/ViT-Lite-7/4": 3_716_874,  # 3.717
    "compact/ViT-Lite-7/8": 3_741_450,  # 3.74
    "compact/ViT-Lite-7/16": 3_885_834,  # 3.89
    "compact/CVT-6/4": 3_190_283,  # 3.190
    "compact/CVT-7/4": 3_716_619,  # 3.717
    "compact/CVT-7/8": 3_741_195,  # 3.74
    "compact/CCT-2/3x2": 283_723,  # 0.284
    "compact/CCT-4/3x2": 482_123,  # 0.482
    "compact/CCT-6/3x1": 3_168_267,  # 3.168
    "compact/CCT-6/3x2": 3_326_923,  # 3.327
    "compact/CCT-7/3x1": 3_760_139,  # 3.760
    "compact/CCT-7/3x2": 3_853_259,  # 3.853
    "compact/CCT-7/7x2": 4_500_939,  # printed for larger images only
    "compact/CCT-14/7x2": 21_912_395,
    "whitened_cnn/airbench94": 1_971_640,  # 1.97 (github.com/KellerJordan/cifar10-airbench)
    "conv_stem/4-128": 617_986,
    "conv_stem/6-192": 2_091_202,
    "conv_stem/8-256": 4_538_050,
    "small_vit/9-192": 2_729_878,  # the authors' code, summed by hand
}
ELSEWHERE = ("resnet", "resnetv2", "visual_transformer")  # with batch statistics or operations, in their own tests


def test_every_model_has_a_golden_count():
    here = [name for name in models.names() if name.partition("/")[0] not in ELSEWHERE]
    assert sorted(here) == sorted(PARAMETERS | PARAMETERS_32)


# All are counted by `make test-slow`: one size of a family, which traces fast, tells most mistakes.
CASES = [(name, 224, 1000, number) for name, number in PARAMETERS.items()]
CASES += [(name, 32, 10, number) for name, number in PARAMETERS_32.items()]
CASES += [("hybrid/R50+B16", 384, 1000, 98_950_952)]  # as fine-tuned
FAST = ("S16", "S32", "/18", "50x1", "Ti16", "Lite-6/4", "CVT-6/4", "CCT-2/3x2", "94", "4-128", "9-192")
CASES.sort(key=lambda case: not case[0].endswith(FAST))


@pytest.mark.parametrize(
    "case", rest_is_slow(CASES, sum(case[0].endswith(FAST) for case in CASES)), ids=lambda case: f"{case[0]}-{case[1]}"
)
def test_golden_count(case):
    name, side, classes, number = case
    scan = {"scan": True} if "scan" in models.fields(name) else {}  # traces one layer instead of 56
    assert count(name, side, classes, **scan) == number


DINOV2 = {  # for images of 518 pixels, no head
    "S": (22_056_576, {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536}),
    "B": (86_580_480, {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072}),
    "L": (304_368_640, {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096}),
    "g": (1_136_480_768, {"width": 1536, "depth": 40, "num_heads": 24, "mlp_dim": 4096, "activation": "swiglu"}),
}


@pytest.mark.parametrize("size", rest_is_slow(list(DINOV2)))
def test_a_setting_of_the_vit_is_dinov2_but_for_its_mask_token(size):
    """Oquab et al. 2024 (arXiv:2304.07193); with registers Darcet et al. 2024 (2309.16588), which have no positions."""
    number, sizes = DINOV2[size]
    fields = {"patch_size": (14,), "layer_scale": 1e-5, "scan": True, **sizes}
    assert count("vit", 518, 0, **fields) + sizes["width"] == number
    assert count("vit", 518, 0, registers=4, **fields) + sizes["width"] == number + 4 * sizes["width"]
