"""`launch/tpu_vm.sh` against a gcloud that records what it is asked to do."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, rest_is_slow

SCRIPT = REPOSITORY / "launch" / "tpu_vm.sh"
ARGUMENTS = ["--config", "configs/cifar100.py:vit", "--config.optim.lr=1e-3"]
SECONDS = 400  # far more than any machine takes
STATE, REPORT, IDLE = "value(state)", "_report", "_idle"


BEGIN = ["scp", "ssh", "ssh"]  # copy, install, start


class Cloud:
    """A folder with gcloud's calls and answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "gcloud").symlink_to(REPOSITORY / "tests" / "launch" / "gcloud")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TPU_")},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "GCLOUD_CALLS": str(self.folder / "calls"),
            "GCLOUD_ANSWERS": str(self.folder / "answers"),
            "TPU_NAME": "vit",
            "TPU_ZONE": "europe-west4-a",
            "TPU_TYPE": "v3-32",
            "BUCKET": "my-runs",
            "POLL_SECONDS": "0",
        }
        command = [str(SCRIPT), *arguments]
        return subprocess.run(command, env=given | environment, capture_output=True, text=True, timeout=SECONDS)

    def answers(self, *lines: tuple[str, str]) -> None:
        (self.folder / "answers").write_text("".join(f"{pattern} -> {output}\n" for pattern, output in lines))

    def calls(self) -> list[list[str]]:
        """Each call's words after `compute tpus tpu-vm`."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        assert all(line.startswith("compute tpus tpu-vm ") for line in lines)
        return [line.split()[3:] for line in lines]

    def verbs(self) -> list[str]:
        """What was done, without looking at the state: create, scp, ssh, delete ..."""
        return [call[0] for call in self.calls() if not {"describe", REPORT, IDLE} & set(call)]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.mark.parametrize(
    ("tpu_type", "image"),
    [
        ("v3-8", "tpu-ubuntu2204-base"),
        ("v4-64", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create(cloud, tpu_type, image):
    assert cloud.run("create", TPU_TYPE=tpu_type).returncode == 0
    expected = ["create", "--zone=europe-west4-a", "vit", f"--accelerator-type={tpu_type}", f"--version={image}"]
    assert cloud.calls() == [expected]


def test_create_spot_with_an_image_of_ones_own(cloud):
    assert cloud.run("create", TPU_SPOT="1", TPU_IMAGE="mine", TPU_TYPE="v9-8").returncode == 0
    assert cloud.calls()[0][-2:] == ["--version=mine", "--spot"]


def test_setup_copies_and_installs_on_all_workers(cloud):
    assert cloud.run("setup", BUCKET="my-runs").returncode == 0
    copy, install = cloud.calls()
    assert copy[0] == "scp" and copy[-2:] == ["vit:", "--worker=all"] and copy[2].endswith("/vit_jax.tar.gz")
    assert install[:4] == ["ssh", "--zone=europe-west4-a", "vit", "--worker=all"]
    assert install[-3:] == ["BUCKET=my-runs", "launch/tpu_vm.sh", "_install"]


def test_start_quotes_the_arguments_for_the_remote_shell(cloud):
    assert cloud.run("start", *ARGUMENTS, "--config.data.name=./my photos").returncode == 0
    idle, call = cloud.calls()
    assert idle[3] == "--worker=all" and idle[-1] == IDLE
    assert call[:4] == ["ssh", "--zone=europe-west4-a", "vit", "--worker=all"]
    remote = " ".join(call[4:]).removeprefix("--command=")
    assert "nohup" in remote and remote.endswith(">>train.log 2>&1 </dev/null &)")
    words = shlex.split(remote.partition(">>")[0])
    assert words[words.index("_run") + 1 :] == [*ARGUMENTS, "--config.data.name=./my photos"]


def test_stop_logs_status_delete(cloud):
    for command in ("stop", "logs", "status", "delete"):
        assert cloud.run(command).returncode == 0
    stop, logs, state, report, delete = cloud.calls()
    assert "--worker=all" in stop and "TERM" in stop
    assert "--worker=0" in logs and "vit_jax/train.log" in logs
    assert state[0] == "describe" and "--worker=all" in report and "_report" in report
    assert delete == ["delete", "--zone=europe-west4-a", "vit", "--quiet"]


def test_dry_run_calls_nothing_and_prints_commands_that_a_shell_reads_back(cloud):
    done = cloud.run("--dry-run", "watch", *ARGUMENTS, TPU_SPOT="1")
    assert done.returncode == 0 and not cloud.calls()
    printed = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert [words[4] for words in printed] == ["create", "scp", "ssh", "ssh", "ssh"]
    assert "--spot" in printed[0]


def test_watch_trains_to_the_end(cloud):
    cloud.answers(
        (STATE, "FAIL"),  # there is none yet
        (STATE, "READY"),
        (REPORT, "running"),
        (STATE, "READY"),
        (REPORT, "ended 0"),
    )
    assert cloud.run("watch", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["create", "scp", "ssh", "ssh"]


@pytest.mark.parametrize("tpu_type", ["v3-8", "v5litepod-8", "v6e-4"])
def test_one_machine_that_stays_needs_no_bucket(cloud, tpu_type):
    assert cloud.run("setup", TPU_TYPE=tpu_type, BUCKET="").returncode == 0
    assert "BUCKET=" in cloud.calls()[1]


def test_watch_makes_a_preempted_tpu_again(cloud):
    cloud.answers(
        (STATE, "READY"),
        (REPORT, "running"),
        (STATE, "READY"),
        (REPORT, "lost (exit code 143)"),  # SIGTERM, because the machine is about to go
        (STATE, "PREEMPTED"),
        ("create", "FAIL"),  # nothing free
        (STATE, "FAIL"),
        (STATE, "CREATING"),
        (STATE, "READY"),
        (REPORT, "ended 0"),
    )
    assert cloud.run("watch", *ARGUMENTS, TPU_SPOT="1").returncode == 0
    assert cloud.verbs() == [*BEGIN, "delete", "create", "create", *BEGIN]
    starts = [call for call in cloud.calls() if "_run" in call]
    assert len(starts) == 2 and starts[0] == starts[1], "the same command: the run goes on from its checkpoint"


def test_watch_ends_with_the_runs_exit_code(cloud):
    cloud.answers((STATE, "READY"), (REPORT, "running"), (STATE, "READY"), (REPORT, "ended 2"))
    assert cloud.run("watch", *ARGUMENTS).returncode == 2
    assert cloud.verbs() == [], "it followed the run that it found"


@pytest.mark.parametrize("earlier", rest_is_slow(["ended 2", "lost (exit code 143)", "ended 0", "ended 143", "new"], 2))
def test_watch_starts_a_run_of_its_own_after_an_earlier_one(cloud, earlier):
    cloud.answers((STATE, "READY"), (REPORT, earlier), (STATE, "READY"), (REPORT, "ended 7"))
    assert cloud.run("watch", *ARGUMENTS).returncode == 7
    assert cloud.verbs() == BEGIN


@pytest.mark.parametrize(
    ("failing", "done"),
    [("scp", ["scp"]), *(pytest.param(name, ["scp", "ssh"], marks=pytest.mark.slow) for name in ("_install", IDLE))],
)
def test_watch_starts_nothing_after_a_failed_set_up(cloud, failing, done):
    cloud.answers(
        (STATE, "FAIL"),
        (failing, "FAIL"),
        (STATE, "READY"),
        (REPORT, "ended 2"),  # of an earlier run: still not this one's
        (STATE, "READY"),
        (REPORT, "ended 0"),
    )
    assert cloud.run("watch", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["create", *done, *BEGIN]


def test_start_is_an_error_while_a_run_is_going_on(cloud):
    cloud.answers((IDLE, "FAIL"))
    assert cloud.run("start", *ARGUMENTS).returncode != 0
    assert cloud.verbs() == []


def test_watch_gives_up_on_a_run_that_dies_again_and_again(cloud):
    cloud.answers(*[(STATE, "READY"), (REPORT, "lost (exit code 139)")] * 9)
    done = cloud.run("watch", *ARGUMENTS)
    assert done.returncode == 1 and "the run died 4 times on this TPU" in done.stderr
    assert cloud.verbs() == BEGIN * 4


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "launch/tpu_vm.sh [--dry-run] create"),
        (["creat"], {}, "launch/tpu_vm.sh [--dry-run] create"),
        (["start"], {}, "launch/tpu_vm.sh [--dry-run] start ARGS..."),
        (["status"], {"TPU_NAME": ""}, "error: TPU_NAME is not set"),
        (["create"], {"TPU_TYPE": ""}, "error: TPU_TYPE is not set; give the accelerator type"),
        (
            ["watch", *ARGUMENTS],
            {"BUCKET": ""},
            "error: BUCKET is not set; give a bucket for the run: the workers of a v3",
        ),
        (
            ["watch", *ARGUMENTS],
            {"BUCKET": "", "TPU_TYPE": "v3-8", "TPU_SPOT": "1"},
            "the disks of a spot TPU are lost",
        ),
        (["setup"], {"BUCKET": "", "TPU_TYPE": "v5litepod-16"}, "the workers of a v5litepod-16 write it together"),
        (["--dry-run", "watch", *ARGUMENTS], {"BUCKET": ""}, "error: BUCKET is not set"),
        (["watch", *ARGUMENTS], {"TPU_TYPE": ""}, "error: TPU_TYPE is not set; give the accelerator type"),
        (["create"], {"TPU_TYPE": "v9-8"}, "no image is known for TPU_TYPE=v9-8; set TPU_IMAGE"),
        (["watch", *ARGUMENTS], {"TPU_TYPE": "v9-8"}, "no image is known for TPU_TYPE=v9-8"),
        (["--dry-run", "watch", *ARGUMENTS], {"TPU_TYPE": "v9-8"}, "no image is known for TPU_TYPE=v9-8"),
        (["setup"], {"TPU_TYPE": "v9-8"}, "no image is known for TPU_TYPE=v9-8"),
    ],
)
def test_mistakes(cloud, arguments, environment, expected):
    done = cloud.run(*arguments, **environment)
    assert done.returncode == 2 and expected in done.stderr and not cloud.calls()


@pytest.mark.parametrize("command", ["create", "watch", "status"])
def test_without_gcloud(cloud, command):
    only_bash = cloud.folder / "only_bash"
    only_bash.mkdir()
    (only_bash / "bash").symlink_to(shutil.which("bash") or "")
    done = cloud.run(command, *ARGUMENTS, PATH=str(only_bash))
    assert done.returncode == 2
    assert done.stderr == "error: gcloud is not on the PATH; install the Google Cloud CLI\n"


def worker(folder: Path, *arguments: str) -> str:
    """A subcommand as it runs on a worker, in the copied tree."""
    done = subprocess.run([str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_worker_reports_how_its_run_ended(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nexit "$4"\n')  # -m vit_jax.main --code N
    python.chmod(0o755)
    assert worker(tmp_path, "_report") == "new"
    for code, report in [(0, "ended 0"), (2, "ended 2"), (134, "lost (exit code 134)"), (143, "lost (exit code 143)")]:
        worker(tmp_path, "_run", "--code", str(code))
        assert worker(tmp_path, "_report") == report
        worker(tmp_path, "_idle")
    (tmp_path / "stopped").touch()
    assert worker(tmp_path, "_report") == "ended 143", "because `stop` wanted it so"
    (tmp_path / "exit_code").unlink()
    assert worker(tmp_path, "_report") == "lost (the machine was restarted)"
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert worker(tmp_path, "_report") == "running"
    done = subprocess.run([str(SCRIPT), "_idle"], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2
    assert done.stderr == "error: a run is going on; end it first by `stop`, or follow it by `logs` or `watch`\n"


def test_a_worker_has_one_run_at_a_time(cloud):
    """The recorded commands, run as the ssh of a worker would."""
    tree = cloud.folder / "vit_jax"
    (tree / "launch").mkdir(parents=True)
    (tree / "launch" / "tpu_vm.sh").symlink_to(SCRIPT)
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 1000\n")
    python.chmod(0o755)
    assert cloud.run("start", "--code", "1").returncode == 0 and cloud.run("stop").returncode == 0
    idle, start, stop = (" ".join(call).partition("--command=")[2] for call in cloud.calls())

    def ssh(command: str) -> int:
        return subprocess.run(["bash", "-c", command], cwd=cloud.folder, timeout=SECONDS).returncode

    def wait_for(report: str) -> None:
        end = time.monotonic() + SECONDS
        while worker(tree, "_report") != report:
            assert time.monotonic() < end
            time.sleep(0.05)

    for _ in range(2):
        assert ssh(idle) == 0 and ssh(start) == 0
        wait_for("running")
        assert ssh(idle) == 2
        assert ssh(stop) == 0
        wait_for("ended 143")
