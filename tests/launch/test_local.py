"""`launch/local.sh`: two processes train as one does, stop together, and go on after one of them was lost."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import CACHE, REPOSITORY

SCRIPT = REPOSITORY / "launch" / "local.sh"
SMALL = {
    "model.depth": 1,
    "model.width": 16,
    "model.mlp_dim": 16,
    "optim.lr": 1e-4,  # so small that rounding, which differs with the number of processes, does not grow
    "optim.epsilon": 1e-3,
    "optim.warmup_epochs": 0.0,
    "checkpoint.every_steps": 10,
    "log.every_steps": 1,
    "log.tensorboard": "false",
    "train.steps": 200,
}
ARGUMENTS = ["--config", "configs/digits.py", *(f"--config.{key}={value}" for key, value in SMALL.items())]
SECONDS = 400


def environment() -> dict[str, str]:
    """One device for each process."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    faster = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    return kept | faster | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}


def launch(processes: int, workdir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(SCRIPT), str(processes), *ARGUMENTS, *arguments, "--workdir", str(workdir)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=pipe, stderr=pipe, text=True)


def evaluation(processes: int, workdir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [str(SCRIPT), str(processes), "--workdir", str(workdir), *arguments]
    pipe, module = subprocess.PIPE, {"MODULE": "vit_jax.evaluate"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment() | module, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(autouse=True)
def heed_interrupts():
    """A shell's background jobs, and what they start, ignore Ctrl-C; a signal that is handled is reset in a child."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def train(processes: int, workdir: Path, *arguments: str) -> tuple[int, str, str]:
    return end(launch(processes, workdir, *arguments))


def wait_for_step(step: int, workdir: Path, process: subprocess.Popen[str]) -> None:
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def child(launcher: subprocess.Popen[str], index: int) -> int:
    """The process id of one of the launcher's processes."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    wanted = f"JAX_PROCESS_ID={index}".encode()
    (found,) = [pid for pid in children if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return int(found)


def losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train/loss"] for line in lines]


def result(workdir: Path) -> dict[str, float]:
    return json.loads((workdir / "result.json").read_text())


def assert_same_training(workdir: Path, other: Path) -> None:
    assert len(losses(workdir)) == SMALL["train.steps"]
    np.testing.assert_allclose(losses(workdir), losses(other), rtol=0, atol=1e-5)
    for key in ("test/loss", "test/accuracy"):
        assert result(workdir)[key] == pytest.approx(result(other)[key], rel=0, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, _, errors = train(1, workdir)
    assert code == 0, errors
    return workdir


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_train_as_one_does(tmp_path, alone):
    code, output, errors = train(2, tmp_path / "run")
    assert code == 0, errors
    assert output.count("test accuracy") == 1, "only the first process prints"
    assert result(tmp_path / "run")["device"].startswith("2 x ")
    assert_same_training(tmp_path / "run", alone)
    code, output, errors = end(evaluation(2, tmp_path / "run"))
    assert code == 0, errors
    assert output.count("test accuracy") == 1, "only the first process prints"
    found = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())
    measured = {key: value for key, value in result(tmp_path / "run").items() if key.startswith("test/")}
    assert len(measured) == 5 and {key: found[key] for key in measured} == measured


def stop(workdir: Path, to: str, number: signal.Signals) -> tuple[int, str, str]:
    """Starts two processes, sends a signal to the launcher or to its second process while they train."""
    before = len(losses(workdir)) if workdir.exists() else 0
    launcher = launch(2, workdir)
    wait_for_step(before + 15, workdir, launcher)
    os.kill(launcher.pid if to == "all" else child(launcher, 1), number)
    return end(launcher)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_stopped_in_every_way_ends_as_one_that_is_not(tmp_path, alone):
    """Signals stop both processes at the same step; a lost one ends the other; one process goes on alone."""
    workdir = tmp_path / "run"
    for to, number, expected in ("all", signal.SIGINT, 130), ("one", signal.SIGTERM, 143):
        code, output, errors = stop(workdir, to, number)
        assert code == expected, errors
        assert "and saved: the same command goes on from there" in output
        last = len(losses(workdir))
        assert last < SMALL["train.steps"] and (workdir / "checkpoints" / str(last)).is_dir()
    for number, lost, expected in (signal.SIGKILL, 1, 137), (signal.SIGSTOP, 0, 134):  # who stands still is ended
        code, _, errors = stop(workdir, "one", number)
        assert code == expected
        assert errors.splitlines()[-1] == (
            f"process {lost} of 2 ended with exit code {expected}, the others were stopped; "
            "the same command goes on from the last checkpoint"
        )
    code, output, errors = train(1, workdir)
    assert code == 0, errors
    assert "resumed at step " in output
    assert_same_training(workdir, alone)


@pytest.mark.parametrize("module", [{}, {"MODULE": "vit_jax.evaluate"}], ids=["trains", "evaluates"])
def test_dry_run_prints_one_command_for_each_process(module):
    words = [*ARGUMENTS, "--config.data.name=my photos"]
    command = [str(SCRIPT), "--dry-run", "3", *words]
    done = subprocess.run(command, env=environment() | module, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3 and len({line[0] for line in lines}) == 1
    assert lines[0][0].startswith("JAX_COORDINATOR_ADDRESS=127.0.0.1:")
    for index, line in enumerate(lines):
        assert line[1:4] == ["JAX_NUM_PROCESSES=3", f"JAX_PROCESS_ID={index}", f"JAX_LOCAL_DEVICE_IDS={index}"]
        assert line[4:] == [sys.executable, "-m", module.get("MODULE", "vit_jax.main"), *words]


def imitate(folder: Path, python: str) -> dict[str, str]:
    """An environment in which a script stands in for Python, so that the launcher alone is tested."""
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\nif [[ $1 == -c ]]; then echo 1234; exit; fi\n{python}\n")
    path.chmod(0o755)
    return environment() | {"PYTHON": str(path)}


@pytest.mark.parametrize(
    ("python", "code", "said"),
    [
        ("echo $JAX_PROCESS_ID", 0, ""),
        ("echo error: a mistake >&2; exit 2", 2, "error: a mistake\n"),
        (
            "((JAX_PROCESS_ID != 1)) && exec sleep 10000; echo a fault >&2; exit 7",
            7,
            "a fault\nprocess 1 of 3 ended with exit code 7, the others were stopped; "
            "the same command goes on from the last checkpoint\n",
        ),
    ],
)
def test_the_first_bad_exit_code_and_one_message(tmp_path, python, code, said):
    command = [str(SCRIPT), "3", "--config", "x.py"]
    done = subprocess.run(command, env=imitate(tmp_path, python), capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (code, said)
    assert done.stdout == ("0\n" if code == 0 else "")


def test_all_are_started_again_so_often_as_is_said(tmp_path):
    """Each time at another port; a mistake is none that another start mends."""
    python = f"((JAX_PROCESS_ID)) || echo $RESTARTS >>{tmp_path}/left; ((RESTARTS == 1)) || exit 7"
    environment = imitate(tmp_path, python) | {"RESTARTS": "3"}
    command = [str(SCRIPT), "2", "--config", "my photos.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and (tmp_path / "left").read_text().split() == ["3", "2", "1"]
    assert done.stderr.count("ended with exit code 7") == 2 and "starting again, 2 more times at most" in done.stderr
    environment = imitate(tmp_path, "exit 7") | {"RESTARTS": "1"}
    assert subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS).returncode == 7
    environment = imitate(tmp_path, f"echo x >>{tmp_path}/mistakes; exit 2") | {"RESTARTS": "3"}
    assert subprocess.run(command, env=environment, capture_output=True, timeout=SECONDS).returncode == 2
    assert (tmp_path / "mistakes").read_text().count("x") == 2


def test_what_is_no_training_has_no_checkpoint_to_go_on_from(tmp_path):
    environment = imitate(tmp_path, "echo a fault >&2; exit 7") | {"MODULE": "vit_jax.evaluate"}
    done = subprocess.run([str(SCRIPT), "2", "x"], env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 7
    assert done.stderr.endswith(" of 2 ended with exit code 7, the others were stopped\n")


# What follows hears of a lost terminal, which `nohup` may have told the tests to ignore.
HEARING = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_signals_reach_all_processes_once(tmp_path, number, code):
    python = f"trap 'echo $JAX_PROCESS_ID >>{tmp_path}/got; exit {code}' TERM INT; touch {tmp_path}/$JAX_PROCESS_ID\n"
    python += "while true; do sleep 0.1; done"
    command = [str(SCRIPT), "2", "--config", "x.py"]
    launcher = subprocess.Popen(HEARING + command, env=imitate(tmp_path, python))
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.send_signal(number)
    assert launcher.wait(timeout=SECONDS) == code
    assert sorted((tmp_path / "got").read_text().split()) == ["0", "1"]


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("INT", 130)])
def test_a_signal_while_processes_are_started_ends_them_all(tmp_path, name, code):
    python = f"trap 'exit {code}' {name}; ((JAX_PROCESS_ID)) || kill -{name} $PPID\nwhile true; do sleep 0.1; done"
    command = [str(SCRIPT), "3", "--config", "x.py"]
    done = subprocess.run(command, env=imitate(tmp_path, python), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code
