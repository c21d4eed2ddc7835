"""Each Python version that the package says it runs on, if it is installed here, installs, trains and predicts."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from PIL import Image

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
VERSIONS = [found[1] for each in PROJECT["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", each))]
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_this_python_is_one_of_them():
    assert OWN in VERSIONS


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it downloads all dependencies
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != OWN])
def test_another_python(tmp_path, version):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("vit_jax", "configs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    made = run("make", "remade", f"PYTHON=python{version}")
    if made.returncode:
        pytest.skip(f"python{version} makes no virtual environment here: {made.stderr.strip()}")
    python = str(tmp_path / ".venv" / "bin" / "python")
    Image.new("L", (8, 8), 99).save(tmp_path / "image.png")
    short = ("--config.train.steps=20", "--config.optim.warmup_epochs=0.5", "--config.log.tensorboard=false")
    for command in (
        ("make", ".venv/installed", f"PYTHON=python{version}"),
        (python, "-m", "vit_jax.main", "--config", "configs/digits.py", "--workdir", "run", *short),
        (python, "-m", "vit_jax.predict", "--workdir", "run", "image.png", "--out", "found.jsonl"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"python{version}" in {path.name for path in (tmp_path / ".venv" / "lib").iterdir()}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 20
    assert len(json.loads((tmp_path / "found.jsonl").read_text())["top"]) == 5
