"""Several processes as one run: how they find each other, and how they agree on what only some of them know.

One process needs nothing of this. Several find each other through their launcher: SLURM's `srun`, Open MPI's `mpirun`,
the metadata of a Cloud TPU VM or of a TPU slice on GKE. Elsewhere, as in `launch/local.sh`, the environment says it:
JAX_COORDINATOR_ADDRESS=host:port (of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID (0 .. n - 1).
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.command import Failure, UserError

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# A lost process ends the others after HEARTBEAT, one that failed and waits for them to leave with it after SHUTDOWN;
# JAX's own limits are 100 and 300 seconds.
HEARTBEAT_SECONDS, SHUTDOWN_SECONDS = 10, 20
# Machines of one launch do not start at the same moment; JAX then aborts, with a message about a task that died.
PATIENCE_SECONDS, MEETING_SECONDS = 30, 300
# Other machines may see a new file that late: NFS keeps what it knows of a folder for at most 60 seconds.
FOLDER_SECONDS = 60
# What JAX says in the middle of a sum over processes, of which one is gone: on CPUs, on GPUs, by its coordinator.
LOST_PROCESS = re.compile("(Gloo|NCCL|coordination service).*(onnection|remote process|heartbeat)", re.DOTALL)
LONGEST = 2000  # bytes of what a process tells the others


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those of its launch. What is None, JAX finds out."""

    processes: int | None = None
    process: int | None = None
    address: str | None = None  # host:port of process 0
    gpus: tuple[int, ...] | None = None  # which of the visible ones are this process's
    detect: str | None = None  # how JAX finds what is None: "ompi"; "deactivate": not at all


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes of this launch, if there are any, until all are done.

    Enter it once, before a device is touched. Where a process is lost, the others end within seconds: with a `Failure`
    where they were about to add up with it, else with exit code 134 and JAX's message that another task died.
    """
    launch = find(os.environ)
    if launch is None:
        yield
        return
    _join(launch)
    try:
        yield  # after an error nobody waits here: JAX's exit handler does, for SHUTDOWN_SECONDS
        multihost_utils.sync_global_devices("done")  # the first one may take long to write the results
    except UserError:
        raise
    except Exception as error:
        said = _lost_process(error)
        if not said:
            raise
        raise Failure(
            f"another process of this launch was lost ({said}); start all again: they go on from the last checkpoint"
        ) from error


def _lost_process(error: BaseException | None) -> str:
    """What JAX said of a lost process, here or before this error, which cleaning up may have raised; else ""."""
    while error is not None and not LOST_PROCESS.search(str(error)):
        error = error.__cause__ or error.__context__
    return str(error).splitlines()[0] if error is not None else ""


def find(environment: Mapping[str, str], *, on_tpu: bool | None = None) -> Launch | None:
    """What the launcher says in the environment; None if this process is alone.

    Raises `UserError` where processes are missing that the environment speaks of.
    """
    mpirun = _count(environment, "OMPI_COMM_WORLD_SIZE") > 1
    if PROCESSES in environment or PROCESS in environment or ADDRESS in environment and not mpirun:
        return _explicit(environment)
    if mpirun:  # before SLURM, in whose allocations it starts processes, too
        return _open_mpi(environment)
    if _count(environment, "SLURM_NTASKS") > 1:
        return _slurm(environment)
    if _on_tpu_vm(environment) if on_tpu is None else on_tpu:
        return Launch()
    return None


@contextlib.contextmanager
def raise_on_all_processes() -> Iterator[None]:
    """Where a process raises a `UserError` inside, all raise one at the end, so that each exits with its code.

    All processes enter it equally often. Nothing inside may wait for another process.
    """
    mistake = None
    try:
        yield
    except UserError as error:
        mistake = error
    said = _tell_all(str(mistake or ""))
    if mistake:
        raise mistake
    for process, text in enumerate(said):
        if text:
            raise UserError(f"process {process} of {len(said)}: {text}")


def check_shared(folder: Path) -> None:
    """Raises `UserError` in all processes unless each finds in `folder` what the first one writes there.

    The folder is created, and nothing stays in it.
    """
    if jax.process_count() == 1:
        return
    token = folder / broadcast_from_first(f".shared-{secrets.token_hex(8)}")
    with raise_on_all_processes():
        if jax.process_index() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                token.touch()
            except OSError as error:
                raise UserError(f"cannot write to {folder}: {error.strerror}; give another --workdir") from error
    try:
        with raise_on_all_processes():
            _find(token)
    finally:
        if jax.process_index() == 0:
            token.unlink()


class Agreement:
    """Makes all processes hear, at the same step, the largest number that any of them said.

    What is said at one call is heard `delay` calls later, so that no process waits for a device that is still busy;
    until then 0 is heard. A single process hears at once what it says.
    """

    def __init__(self, mesh: Mesh, delay: int) -> None:
        self._alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._copies = len(mesh.local_devices)
        self._largest = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._said: deque[jax.Array] = deque()
        self._delay = delay

    def __call__(self, number: int) -> int:
        """Says a number >= 0; all processes call this equally often."""
        if self._alone:
            return number
        local = np.full(self._copies, number, np.int32)
        self._said.append(self._largest(jax.make_array_from_process_local_data(self._place, local)))
        return int(self._said.popleft()) if len(self._said) > self._delay else 0


def on_one_machine() -> bool:
    """Whether all processes run on this machine; all call this equally often."""
    return len(set(_tell_all(socket.gethostname()))) == 1


def broadcast_from_first(text: str) -> str:
    """What the first process says, in all of them; all call this equally often."""
    return _tell_all(text)[0]


def _tell_all(text: str) -> list[str]:
    """What each process said, in their order; all call this equally often."""
    said = np.zeros(LONGEST, np.uint8)
    encoded = text.encode()[:LONGEST]
    said[: len(encoded)] = list(encoded)
    heard = multihost_utils.process_allgather(said)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in heard]


def _find(token: Path) -> None:
    began = time.monotonic()
    while not token.exists():
        if time.monotonic() - began > FOLDER_SECONDS:
            raise UserError(
                f"the processes do not share the folder {token.parent.absolute()}: what the first one writes there, "
                f"this one does not see within {FOLDER_SECONDS} s; give a --workdir on a file system that all share"
            )
        time.sleep(0.1)


def _join(launch: Launch) -> None:
    notice = threading.Timer(PATIENCE_SECONDS, _say_that_it_waits, [launch])
    notice.daemon = True
    notice.start()
    jax.distributed.initialize(
        launch.address,
        launch.processes,
        launch.process,
        local_device_ids=launch.gpus,
        cluster_detection_method=launch.detect,
        initialization_timeout=MEETING_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    notice.cancel()
    # JAX has taken SIGTERM for a preemption service that nobody asks here: it would be swallowed.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _say_that_it_waits(launch: Launch) -> None:
    who = "this process" if launch.process is None else f"process {launch.process} of {launch.processes}"
    where = f" at {launch.address} (${ADDRESS})" if launch.address else ""
    print(
        f"{who} waits for the others of its launch{where}, and gives up after {MEETING_SECONDS} s: "
        "are all started, and can they reach the first one?",
        file=sys.stderr,
    )


def _explicit(environment: Mapping[str, str]) -> Launch | None:
    processes, process = (_integer(environment, name) for name in (PROCESSES, PROCESS))
    if not 0 <= process < processes:
        raise UserError(f"{PROCESS}={process} is not one of the {processes} processes 0 .. {processes - 1}; set it so")
    if processes == 1:
        return None
    return Launch(processes=processes, process=process, address=_address(environment), detect="deactivate")


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise UserError(f"{name}={value!r} is not a number; {ADDRESS}, {PROCESSES} and {PROCESS} belong together")
    return int(value)


def _address(environment: Mapping[str, str]) -> str:
    address = environment.get(ADDRESS, "")
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{ADDRESS}={address!r} is no address; set it to <host of the first process>:<free port>")
    return address


def _count(environment: Mapping[str, str], name: str) -> int:
    """How many processes a launcher says there are; 1 where it says nothing."""
    return int(environment.get(name) or 1)


def _slurm(environment: Mapping[str, str]) -> Launch:
    tasks, started = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if started != tasks or "SLURM_STEP_NODELIST" not in environment:
        raise UserError(
            f"this SLURM job has {tasks} tasks, and {started} was started; start the command with srun, "
            "or unset SLURM_NTASKS to run it alone"
        )
    here = _expand(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    own = "SLURM_GPUS_PER_TASK" in environment
    return Launch(
        processes=tasks,
        process=int(environment["SLURM_PROCID"]),
        gpus=_gpus(environment, int(environment["SLURM_LOCALID"]), 1 if own else here),
    )


def _expand(counts: str) -> list[int]:
    """SLURM's `2(x3),1` -> [2, 2, 2, 1]."""
    return [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]


def _open_mpi(environment: Mapping[str, str]) -> Launch:
    processes = int(environment["OMPI_COMM_WORLD_SIZE"])
    if ADDRESS not in environment and "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 no longer says it
        raise UserError(
            f"mpirun started {processes} processes without saying where the first one is; "
            f"add: -x {ADDRESS}=<host of the first>:<free port>"
        )
    here = int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
    return Launch(
        processes=processes,
        process=int(environment["OMPI_COMM_WORLD_RANK"]),
        address=_address(environment) if ADDRESS in environment else None,
        gpus=_gpus(environment, int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]), here),
        detect="deactivate" if ADDRESS in environment else "ompi",
    )


def _gpus(environment: Mapping[str, str], process: int, processes: int) -> tuple[int, ...] | None:
    """The share of one of the processes on this machine; None without a GPU.

    JAX alone would give each process one GPU, also where there is one process for all of them. A process that sees
    fewer GPUs than there are processes has been given its own.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    devices = Path("/dev").glob("nvidia[0-9]*") if listed is None else filter(None, listed.split(","))
    visible = len(list(devices))
    if visible < processes:
        return tuple(range(visible)) or None
    share, rest = divmod(visible, processes)
    if rest:
        raise UserError(
            f"{visible} GPUs cannot be divided among the {processes} processes of this machine; "
            f"start {visible} or 1 on each machine"
        )
    return tuple(range(process * share, (process + 1) * share))


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm  # JAX's own finding has no public name

    return running_in_cloud_tpu_vm and "tpu" in environment.get("JAX_PLATFORMS", "tpu")
