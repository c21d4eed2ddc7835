"""DINOv2 (Oquab et al. 2024, arXiv:2304.07193) is a setting of the Vision Transformer."""

import pytest

from tests.models.golden import count

SIZES = {
    "S": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "B": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "g": {"width": 1536, "depth": 40, "num_heads": 24, "mlp_dim": 4096, "activation": "swiglu"},
}
PARAMETERS = {"S": 22_056_576, "B": 86_580_480, "L": 304_368_640, "g": 1_136_480_768}  # 518-pixel images, no head


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_dinov2s_but_for_its_mask_token(size):
    fields = {"patch_size": (14,), "layer_scale": 1e-5, "scan": True, **SIZES[size]}
    width = fields["width"]
    assert count("vit", 518, 0, **fields) + width == PARAMETERS[size]
    # With registers (Darcet et al. 2024, arXiv:2309.16588), which have no positions.
    assert count("vit", 518, 0, registers=4, **fields) + width == PARAMETERS[size] + 4 * width
