"""Google's .npz: files in the published key layouts give the logits of a NumPy reference that reads the same keys."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import rest_is_slow
from tests.pretrained import google_files as files
from tests.pretrained import parity
from tests.pretrained.reference import google as reference
from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained import google, parameter_shapes
from vit_jax.pretrained.files import Arrays, open_arrays
from vit_jax.pretrained.layout import Layout, settings


def images(side: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, np.ndarray]], Arrays]:
    """Writes a .npz, and gives what is read from it."""

    def write(arrays: dict[str, np.ndarray]) -> Arrays:
        np.savez(tmp_path / "weights.npz", **arrays)
        return open_arrays(tmp_path / "weights.npz")

    return write


def detect(shapes: files.Shapes) -> Layout:
    layout = google.detect(shapes, {})
    if layout is None:
        raise UserError("not Google's")
    return layout


def logits(layout: Layout, arrays: Arrays, inputs: np.ndarray) -> np.ndarray:
    """Of our model with the file's arrays."""
    return parity.run_ours(layout.model, parity.converted(layout, arrays), inputs)


def assert_equal(ours: np.ndarray, expected: np.ndarray) -> None:
    assert np.std(expected) > 0.05  # else all logits are alike, and nothing is compared
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("parts", "token", "pre_logits"),
    [(reference.PRE_LINEN, True, 17), (reference.LINEN, False, 0)],
    ids=["pre_linen", "linen"],
)
def test_vision_transformer(write, parts, token, pre_logits):
    arrays = write(files.random_arrays(files.vision_transformer(parts, token=token, pre_logits=pre_logits)))
    layout = detect(arrays.shapes)
    sizes = {"patch_size": (5,), "width": 14, "depth": 3, "mlp_dim": 13, "num_heads": 2, "head_dim": 0}
    head = {"class_token": token, "pooling": "token" if token else "gap", "pre_logits": pre_logits, "num_classes": 11}
    fixed = {"pos_embed": "learned", "activation": "gelu_tanh", "norm_epsilon": 1e-6}
    assert layout.model == models.settings("vit", **sizes, **head, **fixed)
    assert (layout.grid, layout.preprocessing.size, layout.preprocessing.resize) == ((3, 3), (15, 15), "stretch")
    assert layout.preprocessing.mean == layout.preprocessing.std == (0.5, 0.5, 0.5)
    inputs = images(15)
    assert_equal(logits(layout, arrays, inputs), reference.vision_transformer(arrays, inputs, 3, parts))


@pytest.mark.parametrize(
    ("pooling", "scanned", "prefix"), [("map", True, "params/img/"), ("tok", False, "opt/target/"), ("gap", True, "")]
)
def test_big_vision(write, pooling, scanned, prefix):
    arrays = files.random_arrays(files.big_vision(pooling=pooling, scanned=scanned))
    beside = {"params/txt/head/kernel": np.zeros((3, 5)), "opt/0/count": np.zeros(()), "params/t": np.zeros(1)}
    stored = write({prefix + key: array for key, array in arrays.items()} | (beside if prefix else {}))
    layout = detect(stored.shapes)
    assert layout.model["pooling"] == {"tok": "token"}.get(pooling, pooling)
    assert (layout.grid, layout.model["class_token"]) == ((2, 2), pooling == "tok")
    inputs = images(14)
    expected = reference.big_vision(arrays, inputs, 2, scanned, arrays["pos_embedding"])
    assert_equal(logits(layout, stored, inputs), expected)


def test_big_vision_without_learned_positions_or_head(write):
    arrays = write(files.random_arrays(files.big_vision(pooling="gap", scanned=False, pos_embed="", classes=0)))
    layout = detect(arrays.shapes)
    assert (layout.model["pos_embed"], layout.model["num_classes"], layout.grid) == ("sincos2d", 0, (0, 0))
    assert layout.preprocessing.size == (224, 224)
    assert (layout.preprocessing.resize, layout.preprocessing.crop_fraction) == ("crop", 0.875)
    inputs = images(21)[:, :14]
    expected = reference.big_vision(arrays, inputs, 2, False, reference.sincos2d(2, 3, 12))
    assert_equal(logits(layout, arrays, inputs), expected)


def test_big_visions_older_positions_hold_the_class_token():
    shapes = files.big_vision(pooling="tok", scanned=False, pos_embed="Transformer/pos_embedding")
    shapes["Transformer/pos_embedding"] = (1, 5, 12)
    arrays = files.random_arrays(shapes)
    (entry,) = (entry for entry in detect(shapes).entries if entry.theirs == "Transformer/pos_embedding")
    assert entry.ours == "params/Transformer/posembed_input/pos_embedding"
    np.testing.assert_array_equal(entry.convert(arrays[entry.theirs]), arrays[entry.theirs])


@pytest.mark.parametrize(
    ("stages", "patch", "tokens", "side", "squeezed"),
    [((), 2, 9, 24, False), ((1, 2), 1, 4, 16, True)],
    ids=["stem", "stages"],
)
def test_hybrid(write, stages, patch, tokens, side, squeezed):
    arrays = write(files.random_arrays(files.hybrid(stages, patch=patch, tokens=tokens, squeezed=squeezed)))
    layout = detect(arrays.shapes)
    assert layout.model["name"] == "hybrid"
    assert (layout.model["stage_sizes"], layout.model["resnet_width"]) == (stages, 32)
    assert layout.preprocessing.size == (side, side)
    inputs = images(side)
    assert_equal(logits(layout, arrays, inputs), reference.vision_transformer(arrays, inputs, 1))


def test_mixer(write):
    arrays = write(files.random_arrays(files.mixer()))
    layout = detect(arrays.shapes)
    fields = {"patch_size": (5,), "width": 14, "depth": 3, "token_mlp_dim": 11, "channel_mlp_dim": 13}
    assert layout.model == models.settings("mixer", **fields, num_classes=7, activation="gelu_tanh")
    assert (layout.grid, layout.preprocessing.size) == ((0, 0), (15, 15))
    inputs = images(15)
    assert_equal(logits(layout, arrays, inputs), reference.mixer(arrays, inputs, 3))


@pytest.mark.parametrize("conv", ["standardized_conv2d", "standardized_conv2d_7"])
def test_big_transfer(write, conv):
    arrays = write(files.random_arrays(files.big_transfer(conv)))
    layout = detect(arrays.shapes)
    assert layout.model == models.settings("bit", stage_sizes=(1, 2), width=32, num_classes=7)
    assert (layout.preprocessing.size, layout.preprocessing.resize) == ((384, 384), "stretch")

    def kernel(name: str) -> np.ndarray:
        unit, _, last = name.rpartition("/")
        place = {"conv_root": "root_block", "conv_proj": "a/proj"}.get(last) or "abc"[int(last[-1]) - 1]
        return arrays["/".join(filter(None, ("resnet", unit, place, conv, "kernel")))]

    def norm(name: str) -> tuple[np.ndarray, np.ndarray]:
        unit, _, last = name.rpartition("/")
        place = f"resnet/{unit}/{'abc'[int(last[-1]) - 1]}/group_norm" if unit else "resnet/group_norm"
        return arrays[f"{place}/gamma"], arrays[f"{place}/beta"]

    inputs = images(26)
    features = reference.bit(kernel, norm, inputs, files.BIT_UNITS, 0.0)
    expected = features @ arrays["resnet/head/conv2d/kernel"][0, 0] + arrays["resnet/head/conv2d/bias"]
    assert_equal(logits(layout, arrays, inputs), expected)


def test_big_visions_bit(write):
    arrays = write(files.random_arrays(files.big_vision_bit()))
    layout = detect(arrays.shapes)

    def kernel(name: str) -> np.ndarray:
        return arrays["root_block/conv_root/kernel" if name == "conv_root" else f"{name}/kernel"]

    def norm(name: str) -> tuple[np.ndarray, np.ndarray]:
        return arrays[f"{name}/scale"], arrays[f"{name}/bias"]

    inputs = images(26)
    features = reference.bit(kernel, norm, inputs, files.BIT_UNITS, -np.inf)
    expected = reference.dense(arrays, "head", features)
    assert_equal(logits(layout, arrays, inputs), expected)
    zero_padded = reference.dense(arrays, "head", reference.bit(kernel, norm, inputs, files.BIT_UNITS, 0.0))
    assert np.abs(zero_padded - expected).max() > 1e-3  # big_transfer's pooling is another


@pytest.mark.parametrize(
    ("name", "side", "classes"),
    [
        ("vit/B16", 224, 21_843),
        ("hybrid/R+Ti16", 224, 0),
        ("hybrid/R50+B16", 384, 1000),
        ("mixer/B16", 224, 1000),
        ("bit/50x1", 224, 21_843),
    ],
)
def test_published_sizes_are_rows_of_the_tables(name, side, classes):
    """Our modules have the names of these files (the norms of BiT and hybrids but for their shape)."""
    tanh = {} if name.startswith("bit/") else {"activation": "gelu_tanh"}
    fields = models.settings(name, num_classes=classes, **tanh)
    shapes = parameter_shapes(fields, (side, side, 3))
    layout = detect({key.removeprefix("params/"): shape for key, shape in shapes.items()})
    assert {**layout.model, "zero_padded_pool": True} == {**fields, "zero_padded_pool": True}
    assert layout.preprocessing.size == (side, side)


def test_the_largest_bit_saw_larger_images():
    fields = {"stage_sizes": (3, 8, 36, 3), "width": 256}
    assert settings("bit", fields)["name"] == "bit/152x4"
    assert google.bit.image_side(*fields.values(), 1000) == 480
    assert google.bit.image_side((3, 4, 6, 3), 64, 1000) == 384


FILES = {
    "vit": files.vision_transformer(pre_logits=17),
    "linen": files.vision_transformer(reference.LINEN, token=False),
    "map": files.big_vision(pooling="map", scanned=True),
    "token": files.big_vision(pooling="tok", scanned=False),
    "hybrid": files.hybrid((1, 2), patch=1, tokens=4, squeezed=False),
    "mixer": files.mixer(),
    "bit": files.big_transfer(),
    "big_vision_bit": files.big_vision_bit(),
}


@pytest.mark.parametrize("family", FILES)
def test_a_missing_array_is_noticed(family):
    """Not the positions alone: without them a ViT with fixed ones is stored; nor big_vision's class token, whose
    absence makes a model that averages.
    """
    assert {entry.theirs for entry in detect(FILES[family]).entries} == set(FILES[family])
    for key in FILES[family]:
        if not key.endswith("pos_embedding") and (family, key) != ("token", "cls"):
            with pytest.raises(UserError, match="^(Google npz: |not Google's)"):
                detect({other: shape for other, shape in FILES[family].items() if other != key})


@pytest.mark.parametrize("family", rest_is_slow(FILES, 2))
def test_an_array_of_another_shape_is_noticed(family):
    for key, shape in FILES[family].items():
        for other in ((*shape[:-1], shape[-1] + 1), (*shape, 2)):
            with pytest.raises(UserError, match=r"^Google npz: .* (shape|positions|patches)"):
                google.detect({**FILES[family], key: other}, {})


@pytest.mark.parametrize("family", FILES)
def test_an_array_that_is_not_the_models_is_refused(family):
    with pytest.raises(UserError, match="no model here has a place for Transformer/extra/kernel; it may be another"):
        google.detect({**FILES[family], "Transformer/extra/kernel": (2, 3)}, {})


def without(shapes: files.Shapes, part: str) -> files.Shapes:
    return {key: shape for key, shape in shapes.items() if part not in key}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (without(FILES["vit"], "encoderblock_1/"), "encoderblock_1 is missing, but there is .*encoderblock_2$"),
        (without(FILES["mixer"], "MixerBlock_0/"), "MixerBlock_0/token_mixing/Dense_0/kernel is missing"),
        (without(FILES["bit"], "block2/unit01"), "block2/unit1 is missing, but there is block2/unit2$"),
        (without(FILES["hybrid"], "block1"), "block1 is missing, but there is block2$"),
        (
            {**FILES["vit"], "Transformer/posembed_input/pos_embedding": (1, 13, 14)},
            "positions for 13 tokens, which are no square grid and a class token; only square",
        ),
        ({**FILES["map"], "pos_embedding": (1, 5, 12)}, "positions for 5 tokens, which are no square grid; only"),
        (
            FILES["mixer"] | {key: (7, 11) for key in FILES["mixer"] if key.endswith("token_mixing/Dense_0/kernel")},
            "7 patches, which are no square grid",
        ),
        ({**FILES["map"], "cls": (1, 1, 12)}, r"class token \(cls\) and attention pooling \(MAPHead_0\)"),
        ({**FILES["map"], "embedding/kernel": (147, 12)}, r"shape \(147, 12\), not \[p q c d\]"),  # SigLIP 2 NaFlex
        (without(FILES["hybrid"], "Transformer"), "a ResNet v1 with group norm"),
        (
            {**FILES["vit"], "Transformer/encoderblock_2/MultiHeadDotProductAttention_1/value/bias": (7, 2)},
            r"block_2/.*value/bias has the shape \(7, 2\), but the other arrays imply \(2, 7\)",
        ),
    ],
)
def test_errors_name_the_array(shapes, message):
    with pytest.raises(UserError, match=message):
        google.detect(shapes, {})


@pytest.mark.parametrize(
    "key", ["vit.embeddings.cls_token", "blocks.0.attn.qkv.weight", "txt/Encoder_0/encoder_norm/scale"]
)
def test_other_files_are_not_googles(key):
    assert google.detect({key: (2, 3)}, {}) is None
