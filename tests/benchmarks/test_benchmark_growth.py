"""What growth costs, measured with real runs."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks import growth, tables
from vit_jax import config, models, trees
from vit_jax.command import UserError
from vit_jax.step import init_variables


@pytest.mark.slow
def test_processes_devices_and_layers_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as where no environment is activated: `python` is another one
    counts = ["--processes", "2", "--devices", "2", "--layers", "1", "--steps", "4", "--rounds", "1"]
    small = ["data.name=synthetic/16x16x3/4/64", "data.validation=none", "train.batch_size=8"]
    given = ["--config", "benchmarks/workloads.py:vit/mu16", *(f"--config.{field}" for field in small)]
    assert growth.main([*given, *counts, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("growth-*.json")
    rows = {(row["what"], row["number"]): row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {("processes", 2), ("devices", 2), ("layers", 1)}
    model = models.create({**config.load(given[1]).model, "num_classes": 4})
    parameters = trees.count(jax.eval_shape(lambda: init_variables(model, 0, (16, 16, 3)))["params"])
    assert rows["devices", 2]["all_reduced_bytes"] >= 4 * parameters, "each parameter's gradient"
    assert all(row["images_per_second"] > 0 for (what, _), row in rows.items() if what != "layers")
    assert "2 real processes" in tables.growth_table(tables.read(tmp_path))


def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="ended with 2: .*configs/nothing.py"):
        growth.train(["--config", "configs/nothing.py"], 1, devices=1)
