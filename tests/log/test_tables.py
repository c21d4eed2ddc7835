"""What is printed before and after training."""

import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from vit_jax import log, trees
from vit_jax.log.tables import ParameterRow, parameter_rows


def model(blocks=3, width=5):
    """Parameters of a small transformer: 35 a block."""
    leaf = ShapeDtypeStruct((width, 7), jnp.float32)
    layers = {f"encoderblock_{i}": {"Dense_0": {"kernel": leaf}} for i in sorted(range(blocks), key=str)}
    transformer = layers | {"encoder_norm": {"scale": ShapeDtypeStruct((width,), jnp.float32)}}
    return {"Transformer": transformer, "head": {"kernel": ShapeDtypeStruct((width, 2), jnp.float32)}}


def test_parameter_rows_join_equal_blocks_and_open_the_largest_module():
    assert parameter_rows(model(blocks=12)) == [
        ParameterRow("Transformer/encoderblock_0..11", 12, 35),
        ParameterRow("Transformer/encoder_norm", 1, 5),
        ParameterRow("head", 1, 10),
    ]


def test_parameter_rows_do_not_depend_on_scan():
    parameters = {"Transformer": {f"encoderblock_{i}": {"Dense_0": {"kernel": np.ones((5, 7))}} for i in range(3)}}
    assert parameter_rows(trees.stack_layers(parameters)) == parameter_rows(parameters)


def test_parameter_rows_keep_unequal_and_missing_neighbours_apart():
    sizes = {"block_1": 2, "block_2": 2, "block_3": 3, "block_5": 3, "block_6": 3, "norm": 11}
    rows = parameter_rows({name: np.ones(size) for name, size in sizes.items()})
    assert [row.name for row in rows] == ["block_1..2", "block_3", "block_5..6", "norm"]
    assert sum(row.repeats * row.each for row in rows) == sum(sizes.values())


def test_overview(plain):
    log.overview(
        plain.console, title="digits with vit/Ti8", rows={"data set": "digits", "steps": "[3]"}, parameters=model()
    )
    assert plain.lines == [
        "digits with vit/Ti8",
        "  data set  digits",
        "  steps     [3]",
        "",
        "Parameters",
        "  Transformer/encoderblock_0..2  3 x 35  105  87.50 %",
        "  Transformer/encoder_norm                 5   4.17 %",
        "  head                                    10   8.33 %",
        "  total                           480 B  120",
        "",
    ]


def test_overview_of_every_array_shows_the_shapes(plain):
    log.overview(plain.console, title="t", rows={}, parameters=model(blocks=1), every_array=True)
    text = plain.text
    assert "Transformer/encoderblock_0/Dense_0/kernel" in text
    assert "(5, 7)" in text


def test_result_table_shows_what_is_there(plain):
    result = {
        "seconds": 3900.0,
        "val/accuracy": 0.915,
        "test/loss": 0.33121,
        "test/accuracy": 0.9123,
        "test/top5": None,
        "parameters": 45_923_300,
        "energy_kwh": None,
        "config": {"seed": 0},
        "workdir": "runs/a",
    }
    log.result_table(plain.console, result)
    assert plain.lines == [
        "",
        "Result",
        "  val accuracy   91.50 %",
        "  test accuracy  91.23 %",
        "  test loss      0.3312",
        "  parameters     45.92 M",
        "  time           1 h 05 min",
        "  run            runs/a",
    ]


def test_weights_table(plain):
    rows = [
        ("loaded", "Transformer/encoderblock_0 .. 11", "", 85_054_464),
        ("loaded", "stage1_block1", "", 0),
        ("resized", "Transformer/posembed_input", "14x14 -> 24x24, bicubic", 443_136),
        ("new", "head", "[1000] -> 10 classes", 7_690),
    ]
    log.weights_table(plain.console, "hf://google/vit (Hugging Face)", rows)
    assert plain.lines == [
        "hf://google/vit (Hugging Face)",
        "  loaded   Transformer/encoderblock_0 .. 11   85.05 M",
        "  loaded   stage1_block1",
        "  resized  Transformer/posembed_input        443.14 k  14x14 -> 24x24, bicubic",
        "  new      head                                7.69 k  [1000] -> 10 classes",
        "",
    ]
