"""Runs of older code, `fixtures/older_runs`: they go on, are evaluated and predict as they did then."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import tiny

FIXTURES = Path(__file__).parent / "fixtures" / "older_runs"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
FINISHED, STOPPED = list(EXPECTED["finished"]), list(EXPECTED["resumed"])
TOLERANCES = {"train/gradient_noise_scale": 1e-2}  # a ratio of differences
ONE_PROCESS = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(f"vit_jax.{module}", run_name="__main__")
    except SystemExit as end:
        print(json.dumps([module, *arguments, end.code]), flush=True)
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Copies of the runs after the commands: the stopped ones went on, the finished ones were evaluated and predicted.

    All commands run in one process, which imports JAX once.
    """
    folder = tmp_path_factory.mktemp("older") / "runs"
    shutil.copytree(FIXTURES, folder)
    commands = [["main", "--config", f"{run}/config.json", "--workdir", run] for run in [*STOPPED, *FINISHED]]
    for run, images in np.load(FIXTURES / "test_images.npz").items():
        (folder / f"images-{run}").mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.squeeze()).save(folder / f"images-{run}" / f"{i}.png")
        commands.append(["evaluate", "--workdir", run])
        commands.append(["predict", "--workdir", run, f"images-{run}", "--out", f"{run}.jsonl", "--top", "2"])
    process = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "", "PYTHONPATH": str(FIXTURES.parents[2])},
        capture_output=True,
        text=True,
    )
    codes = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('["')]
    assert codes == [[*command, 0] for command in commands], process.stdout + process.stderr
    return folder


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    """Every expected number, within the rounding of another CPU; new ones may have joined them."""
    assert found.keys() >= expected.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=TOLERANCES.get(key, 1e-5), abs_tol=1e-6), key


def assert_same_parameters(run: Path, expected: dict[str, float]) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(vit_jax.load(run).variables)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): np.abs(leaf).sum() for path, leaf in leaves}
    assert found.keys() == expected.keys()
    assert_close(found, expected)


@pytest.mark.parametrize("run", STOPPED)
def test_a_stopped_run_goes_on_to_the_same_end(runs, run):
    expected, result = EXPECTED["resumed"][run], json.loads((runs / run / "result.json").read_text())
    assert_close(result, expected["result"])
    for found, line in zip(tiny.metric_lines(runs / run), expected["metrics"], strict=True):
        assert_close(found, line)
    assert_same_parameters(runs / run, expected["parameters"])


@pytest.mark.parametrize("run", FINISHED)
def test_a_finished_run_trains_no_more_and_is_evaluated_alike(runs, run):
    for name in ("result.json", "metrics.jsonl", "predictions.npz", "config.json"):
        assert (runs / run / name).read_bytes() == (FIXTURES / run / name).read_bytes()
    report = json.loads((runs / run / "evaluation-test.json").read_text())
    assert_close(report, EXPECTED["finished"][run]["evaluate"])
    assert_close(report["per_class_accuracy"], EXPECTED["finished"][run]["per_class_accuracy"])


@pytest.mark.parametrize("run", FINISHED)
def test_a_finished_run_predicts_the_same(runs, run):
    expected, images = EXPECTED["finished"][run], np.load(FIXTURES / "test_images.npz")[run]
    assert_same_parameters(runs / run, expected["parameters"])
    logits = np.array(expected["logits"])
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = vit_jax.load(runs / run).predict(images).probabilities
    np.testing.assert_allclose(np.log(found), np.log(probabilities), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.load(FIXTURES / run / "predictions.npz")["logits"][:10], logits, rtol=1e-6)

    lines = [json.loads(line) for line in (runs / f"{run}.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == [f"{i}.png" for i in range(10)]
    for line, best in zip(lines, expected["predict"], strict=True):
        assert [each["class"] for each in line["top"]] == [each["class"] for each in best]
        for found, each in zip(line["top"], best, strict=True):
            assert math.isclose(found["probability"], each["probability"], rel_tol=1e-4)
