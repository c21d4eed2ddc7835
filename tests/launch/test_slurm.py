"""`launch/slurm.sbatch` on a real SLURM of one machine with two tasks: trains, is preempted, queued again, goes on."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.launch.test_local import ARGUMENTS, environment, losses, result

CLUSTER = REPOSITORY / "tests" / "launch" / "slurm_local.sh"
SECONDS = 400

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not (shutil.which("slurmctld") and shutil.which("munged")) or os.getuid() != 0,
        reason="needs root and SLURM: tests/launch/slurm_local.sh install",
    ),
]


@pytest.fixture
def cluster(tmp_path) -> Iterator[Callable[..., str]]:
    """Runs a SLURM command on a new cluster; its output."""
    folder = tmp_path / "slurm"
    done = subprocess.run([str(CLUSTER), "start", str(folder)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    given = environment() | {"SLURM_CONF": str(folder / "slurm.conf")}

    def slurm(*command: str) -> str:
        done = subprocess.run(command, cwd=REPOSITORY, env=given, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield slurm
    subprocess.run([str(CLUSTER), "stop", str(folder)], check=True)


def wait_for(what: Callable[[], object], log: Path) -> None:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < SECONDS, log.read_text()
        time.sleep(0.2)


def test_a_preempted_job_is_queued_again_and_goes_on(tmp_path, cluster):
    workdir, log = tmp_path / "run", tmp_path / "log"
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", f"--output={log}"]
    job = cluster("sbatch", *options, "launch/slurm.sbatch", *ARGUMENTS, "--workdir", str(workdir)).strip()

    def state() -> str:
        return re.findall(r"JobState=(\w+)", cluster("scontrol", "show", "job", job))[0]

    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 15, log)
    cluster("scancel", "--signal=TERM", job)
    wait_for(lambda: state() == "PENDING", log)
    assert f"saved; job {job} is queued again" in log.read_text()
    last = len(losses(workdir))
    cluster("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would wait two minutes
    wait_for(lambda: state() == "COMPLETED", log)
    printed = log.read_text()
    assert f"resumed at step {last}" in printed and printed.count("test accuracy") == 1, "only the first process prints"
    assert result(workdir)["device"].startswith("2 x ") and len(losses(workdir)) == result(workdir)["steps"]


def test_tasks_without_srun_are_an_error(tmp_path, cluster):
    command = f"{sys.executable} -m vit_jax.main {' '.join(ARGUMENTS)} --workdir {tmp_path / 'run'}"
    log = tmp_path / "log"
    job = cluster("sbatch", "--parsable", "--ntasks=2", f"--output={log}", "--wrap", command).strip()
    wait_for(lambda: "JobState=FAILED" in cluster("scontrol", "show", "job", job), log)
    assert "error: this SLURM job has 2 tasks, and 1 was started; start the command with srun" in log.read_text()
