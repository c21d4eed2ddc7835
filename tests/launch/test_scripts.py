"""What all launch scripts have: they pass shellcheck, say how they are used, and set no hyper-parameter."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted([*(REPOSITORY / "launch").glob("*.s*"), *(REPOSITORY / "tests" / "launch").glob("*.sh")])


def test_there_are_scripts():
    assert {"local.sh", "slurm.sbatch", "tpu_vm.sh"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
    done = subprocess.run([Path(sys.executable).with_name("shellcheck"), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_it_prints_its_usage(path):
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    described = itertools.takewhile(lambda line: line.startswith("# ") or line == "#", lines[1:])
    assert done.stderr.splitlines() == [line[2:] for line in described]
    assert path.name in done.stderr


@pytest.mark.parametrize("module", [{}, {"MODULE": "vit_jax.evaluate"}], ids=["trains", "evaluates"])
def test_the_slurm_script_shows_what_it_would_run(module):
    """`test_slurm.py` runs it, where there is a SLURM."""
    words = ["--config", "configs/x.py", "--config.data.name=my photos"]
    command = ["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), "--dry-run", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"PYTHON": "python3"} | module
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    expected = ["srun", "--kill-on-bad-exit=1", "python3", "-m", module.get("MODULE", "vit_jax.main"), *words]
    assert (done.returncode, shlex.split(done.stdout)) == (0, expected), done.stderr


@pytest.mark.parametrize(("asked", "expected"), [({}, ""), ({"SLURM_CPUS_PER_TASK": "7"}, "7")])
def test_the_slurm_script_hands_a_tasks_cpus_on(tmp_path, asked, expected):
    """By the one variable that srun reads, whichever way `sbatch` was told."""
    (tmp_path / "srun").write_text('#!/usr/bin/env bash\necho "${SRUN_CPUS_PER_TASK-}"\n')
    (tmp_path / "srun").chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_"))}
    environment = kept | {"SLURM_JOB_ID": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"} | asked
    command = ["bash", str(REPOSITORY / "launch" / "slurm.sbatch"), "--config", "configs/x.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_hyper_parameters(path):
    code = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    assert not re.search(r"--config\.|XLA_FLAGS", code)


def test_the_readme_names_every_script():
    text = (REPOSITORY / "launch" / "README.md").read_text()
    files = {path.name for path in (REPOSITORY / "launch").iterdir()} - {"README.md"}
    assert all(f"`{name}`" in text for name in files)
