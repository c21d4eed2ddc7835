"""Processes that form one run: what each launcher says about them, and two real ones that agree."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import pytest

from tests import tiny
from tests.conftest import REPOSITORY
from tests.launch.test_local import ARGUMENTS, wait_for_step
from vit_jax import distributed, sharding
from vit_jax.command import Failure, UserError
from vit_jax.distributed import Launch

# As Slurm 22.05 sets them in a step of `srun`, here the third of four tasks on two machines.
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "CUDA_VISIBLE_DEVICES": "",
}
SBATCH_ONLY = {k: v for k, v in SRUN.items() if "STEP" not in k}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "CUDA_VISIBLE_DEVICES": "",
}
SAID = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SAID | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        SBATCH_ONLY | {"SLURM_NTASKS": "1"},
        SRUN | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"SLURM_NTASKS": ""},
    ],
)
def test_one_process_waits_for_nobody(environment):
    assert distributed.find(environment, on_tpu=False) is None


LOST = jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection reset by peer\nx")


def while_closing(error: Exception, before: Exception) -> Exception:
    error.__context__ = before
    return error


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (LOST, Failure, "was lost .*peer.; st"),
        (ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection closed"), Failure, "was lost"),
        (while_closing(RuntimeError("the rest"), LOST), Failure, "was lost .*reset by peer.; st"),
        (while_closing(UserError("the rest"), LOST), UserError, "the rest"),
        (jax.errors.JaxRuntimeError("NCCL: out of memory"), jax.errors.JaxRuntimeError, "out of memory"),
        (UserError("a Gloo Connection"), UserError, "a Gloo"),
    ],
)
def test_an_error_of_a_lost_process_is_one_line(error, expected, message, monkeypatch):
    monkeypatch.setattr(distributed, "find", lambda environment: Launch())
    monkeypatch.setattr(distributed, "_join", lambda launch: None)
    with pytest.raises(expected, match=message) as caught, distributed.joined():
        raise error
    assert "\n" not in str(caught.value)


def test_what_launchers_say():
    assert distributed.find(SAID) == Launch(processes=3, process=2, address="host:1234", detect="deactivate")
    assert distributed.find(SRUN) == Launch(processes=4, process=2)
    assert distributed.find(MPIRUN) == Launch(processes=3, process=1, detect="ompi")
    assert distributed.find(SBATCH_ONLY | MPIRUN) == distributed.find(MPIRUN), "mpirun in an allocation of SLURM"
    told = {k: v for k, v in MPIRUN.items() if "orte" not in k} | {"JAX_COORDINATOR_ADDRESS": "host:1234"}
    assert distributed.find(told) == Launch(processes=3, process=1, address="host:1234", detect="deactivate")
    assert distributed.find({}, on_tpu=True) == Launch()
    assert distributed.find(SRUN | SAID, on_tpu=True) == distributed.find(SAID), "what is said explicitly counts"


def test_a_tpu_machine_that_is_told_to_use_its_cpu_is_alone(monkeypatch):
    monkeypatch.setattr("jax._src.cloud_tpu_init.running_in_cloud_tpu_vm", True)
    assert distributed.find({}) == Launch()
    assert distributed.find({"JAX_PLATFORMS": "tpu,cpu"}) == Launch()
    assert distributed.find({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SBATCH_ONLY, "this SLURM job has 4 tasks, and 1 was started; start the command with srun"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, "has 4 tasks, and 1 was started"),
        ({k: v for k, v in SAID.items() if k != "JAX_PROCESS_ID"}, "JAX_PROCESS_ID='' is not a number"),
        ({k: v for k, v in SAID.items() if "PROCESS" not in k}, "JAX_NUM_PROCESSES='' is not a number"),
        ({k: v for k, v in SAID.items() if "PROCESS" in k}, "JAX_COORDINATOR_ADDRESS='' is no address"),
        (SAID | {"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS='host' is no address"),
        (SAID | {"JAX_COORDINATOR_ADDRESS": "host:99999"}, "set it to <host of the first process>:<free port>"),
        (SAID | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two' is not a number"),
        (SAID | {"JAX_PROCESS_ID": "3"}, "JAX_PROCESS_ID=3 is not one of the 3 processes 0 .. 2"),
        ({k: v for k, v in MPIRUN.items() if "orte" not in k}, "add: -x JAX_COORDINATOR_ADDRESS="),
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 GPUs cannot be divided among the 2 processes"),
    ],
)
def test_missing_processes_are_an_error_at_the_start(environment, expected):
    with pytest.raises(UserError) as mistake:
        distributed.find(environment)
    assert expected in str(mistake.value)


@pytest.mark.parametrize(
    ("tasks_per_node", "node", "local", "visible", "gpus"),
    [
        ("4", 0, 3, "0,1,2,3", (3,)),  # one process for each GPU
        ("2(x2)", 1, 1, "0,1,2,3", (2, 3)),
        ("1(x4)", 2, 0, "0,1,2,3,4,5,6,7", tuple(range(8))),  # one process for all GPUs of a machine
        ("1,3", 1, 2, "0,1,2", (2,)),
        ("4", 0, 3, "5", (0,)),  # bound by SLURM: each sees only its own
        ("4", 0, 3, "", None),
    ],
)
def test_the_processes_of_a_machine_share_its_gpus(tasks_per_node, node, local, visible, gpus):
    environment = SRUN | {
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "CUDA_VISIBLE_DEVICES": visible,
    }
    launch = distributed.find(environment)
    assert launch is not None and launch.gpus == gpus


def test_gpus_that_slurm_gave_to_the_task_are_its_own():
    launch = distributed.find(SRUN | {"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert launch is not None and launch.gpus == (0, 1)


def test_a_single_process_hears_at_once_what_it_says():
    agree = distributed.Agreement(sharding.make_mesh(sharding.Settings()), delay=2)
    assert [agree(number) for number in (0, 15, 0)] == [0, 15, 0]


def test_a_single_process_joins_nobody():
    with distributed.joined():
        assert not jax.distributed.is_initialized()


TRAIN = "from vit_jax import command, main; command.run(main.main)"
TWO = """
import json, os, pathlib, signal, sys
from vit_jax import command, distributed, sharding
distributed.FOLDER_SECONDS = 1
mine, ours = os.environ["JAX_PROCESS_ID"], pathlib.Path(sys.argv[1])

def mistakes():
    def own():
        with distributed.raise_on_all_processes():
            if mine == "1":
                raise command.UserError("no such file; give another")

    for check in (own, lambda: distributed.check_shared(ours / "run"), lambda: distributed.check_shared(ours / mine)):
        try:
            check()
            yield ""
        except command.UserError as mistake:
            yield str(mistake)

with distributed.joined():
    import jax
    agree = distributed.Agreement(sharding.make_mesh(sharding.Settings()), delay=2)
    said = {"0": [0, 0, 0, 0, 2, 0, 0, 0], "1": [0, 15, 0, 0, 0, 0, 0, 0]}[mine]
    heard = [agree(number) for number in said]
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print("heard", json.dumps([jax.process_index(), jax.process_count(), jax.device_count(), heard, default]))
    print("mistakes", json.dumps(list(mistakes())))
    if "die" in sys.argv:
        sys.stdin.read()
        signal.raise_signal(signal.SIGTERM)
"""


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(
    program: str, processes: int, *arguments: str, devices: int = 2, way: Callable[[str], str] = str
) -> list[subprocess.Popen[str]]:
    """Processes of one launch that all run the program, each with so many devices.

    The others find the first one, which listens at an address, by `way(address)`.
    """
    address, started = free_address(), []
    for process in range(processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": way(address) if process else address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "PYTHONPATH": str(REPOSITORY),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-c", program, *arguments]
        options: dict[str, Any] = {"env": environment, "cwd": REPOSITORY, "text": True}
        started.append(subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, **options))
    return started


def finish(started: list[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Ends the input of the last one first, and so on; what they said."""
    outputs = [process.communicate(timeout=400) for process in reversed(started)][::-1]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes said of each thing that it was asked."""
    processes = finish(start(TWO, 2, str(tmp_path_factory.mktemp("two"))))
    assert [process.returncode for process in processes] == [0, 0], [process.stderr for process in processes]
    lines = [[line.partition(" ") for line in process.stdout.splitlines()] for process in processes]
    return [{what: json.loads(said) for what, _, said in own if what in ("heard", "mistakes")} for own in lines]


def test_two_processes_hear_the_same_at_the_same_step(two):
    heard = [0, 0, 0, 15, 0, 0, 2, 0]
    assert [said["heard"] for said in two] == [[index, 2, 4, heard, True] for index in range(2)]


def test_a_mistake_of_one_process_is_one_of_all(two):
    assert [said["mistakes"][0] for said in two] == [
        "process 1 of 2: no such file; give another",
        "no such file; give another",
    ]


def test_processes_that_do_not_share_a_folder_are_told(two):
    assert [said["mistakes"][1] for said in two] == ["", ""]
    first, second = (said["mistakes"][2] for said in two)
    assert first == f"process 1 of 2: {second}"
    assert "the processes do not share the folder" in second and "give a --workdir on a file system that all" in second


def test_nothing_stays_in_a_folder_that_was_checked(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(distributed, "_tell_all", lambda text: [text, ""])
        distributed.check_shared(tmp_path / "a" / "run")
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot write to .*file: .*; give another --workdir"):
            distributed.check_shared(tmp_path / "file")
    assert list((tmp_path / "a" / "run").iterdir()) == []


def test_a_single_process_writes_into_no_folder_and_makes_its_own_mistakes(tmp_path):
    distributed.check_shared(tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="^mine$"), distributed.raise_on_all_processes():
        raise UserError("mine")


LEARN = """
import io, os, pathlib, sys, time
from tests import tiny
from vit_jax import checkpoint, command, distributed, inference
mine, teacher, ours = os.environ["JAX_PROCESS_ID"], *map(pathlib.Path, sys.argv[1:])

with distributed.joined():
    given = [f"distill.teacher={teacher}", "distill.kind=soft", f"init.weights={teacher}", "train.steps=9"]
    code, _ = tiny.start(ours / "student", "cnn", *given)
    print("trained", code)
    try:
        with distributed.raise_on_all_processes():
            if mine == "1":
                raise command.UserError("no such file; give another")
            inference.load(teacher)
    except command.UserError as mistake:
        print("heard", mistake)
    (ours / "seen").mkdir(exist_ok=True)
    time.sleep(2 * int(mine))
    kept = checkpoint.Checkpoints(ours / "damaged")
    print("left", kept.steps())
    kept.close()
"""


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_and_wait_for_no_mistake(tmp_path):
    """Its variables lie in each process's memory, before they lie on all devices; to read them, nobody waits."""
    teacher = tmp_path / "teacher"
    assert tiny.start(teacher, "cnn")[0] == 0
    shutil.copytree(teacher / "checkpoints", tmp_path / "damaged")
    steps = sorted(int(path.name) for path in (tmp_path / "damaged").iterdir() if path.name.isdigit())
    (tmp_path / "damaged" / str(steps[-1]) / "metrics" / "metrics").write_text("{")
    processes = finish(start(LEARN, 2, str(teacher), str(tmp_path)))
    assert [process.returncode for process in processes] == [0, 0], [process.stderr[-2000:] for process in processes]
    for number, process in enumerate(processes):
        lines = process.stdout.splitlines()
        said = "" if number else "process 1 of 2: "
        assert lines[-3:] == ["trained 0", f"heard {said}no such file; give another", f"left {steps[:-1]}"]
    given = [f"distill.teacher={teacher}", "distill.kind=soft", f"init.weights={teacher}", "train.steps=9"]
    assert tiny.start(tmp_path / "alone", "cnn", *given)[0] == 0
    losses = [tiny.result(tmp_path / name)["test/loss"] for name in ("student", "alone")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_sigterm_is_not_swallowed(tmp_path):
    """Its input ends for the second process first: JAX aborts what is left when the first, which coordinates, dies."""
    assert [process.returncode for process in finish(start(TWO, 2, str(tmp_path), "die"))] == [-15, -15]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_with_a_message(tmp_path, lost):
    """Also without a launcher that would end it."""
    both = start(TRAIN, 2, *ARGUMENTS, "--workdir", str(tmp_path / "run"), devices=1)
    wait_for_step(15, tmp_path / "run", both[lost])
    both[lost].kill()
    _, said = both[1 - lost].communicate(timeout=400)
    finish([both[lost]])
    assert both[1 - lost].returncode == -signal.SIGABRT and "another task died" in said


class Cable:
    """A way to an address through this process, until it is cut: what is sent then is lost, and nobody is told."""

    def __init__(self) -> None:
        self.whole = True
        self.ends: list[socket.socket] = []

    def to(self, address: str) -> str:
        host, _, port = address.partition(":")
        listener = socket.create_server((host, 0))
        threading.Thread(target=self._connect, args=(listener, (host, int(port))), daemon=True).start()
        return f"{host}:{listener.getsockname()[1]}"

    def _connect(self, listener: socket.socket, address: tuple[str, int]) -> None:
        while True:
            near = listener.accept()[0]
            self.ends.append(near)  # stays open
            with contextlib.suppress(OSError):
                far = socket.create_connection(address)
                self.ends.append(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (sent := source.recv(65536)) and self.whole:
                target.sendall(sent)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_that_is_cut_ends_both_and_the_same_launch_goes_on(tmp_path):
    """Neither waits for ever for what the other does not hear: a checkpoint needs both."""
    cable, flags = Cable(), (*ARGUMENTS, "--config.train.steps=60", "--workdir")
    both = start(TRAIN, 2, *flags, str(tmp_path / "run"), devices=1, way=cable.to)
    wait_for_step(15, tmp_path / "run", both[0])
    cable.whole = False
    for process in both:
        process.communicate(timeout=400)
    assert {process.returncode for process in both} <= {-signal.SIGABRT, 1}
    assert not (tmp_path / "run" / "result.json").exists()
    again = finish(start(TRAIN, 2, *flags, str(tmp_path / "run"), devices=1))
    assert [process.returncode for process in again] == [0, 0], again[0].stderr
    assert "resumed at step 1" in again[0].stdout
    whole = finish(start(TRAIN, 2, *flags, str(tmp_path / "whole"), devices=1))
    assert [process.returncode for process in whole] == [0, 0], whole[0].stderr
    tiny.assert_same_run(tmp_path / "run", tmp_path / "whole")
