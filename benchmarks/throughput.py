"""How many images a second are trained on, or classified: ours, and peers that do the same work in the same run.

    python -m benchmarks.throughput --models cifar10:vit,vit/Ti16 --peer torch --peer flax
    python -m benchmarks.throughput --models vit/B16 --batch-sizes 128,256,512 --dtypes bfloat16

Every contender has a process of its own. They are timed in turns, and compared by the median over the rounds. The share
of the ceiling (MFU) is that of the best square matrix product in the same dtype, measured before and after; operations
count 2 per multiply-add, attention included, a training step as three forward passes, rematerialisation not.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.workloads import DEFAULT_MODELS, REPOSITORY, Case, check_model, default_batch, is_vit
from vit_jax import command
from vit_jax.command import UserError

SAME_MODEL = ("model.attention", "model.scan", "model.remat")  # change how it computes, not what
PEERS = {"torch": ("torch", "torch.compile"), "flax": ("flax",)}
MODES, DTYPES, MEMORY = ("train", "inference"), ("float32", "bfloat16", "float16"), ("own", "kept", "freed")
Times = dict[str, float]  # `seconds` by the clock, `cpu_seconds` of all cores together
Timer = Callable[[int], Times]  # of so many steps


class Failed(RuntimeError):
    """A worker that ended too early; its last words."""


class Worker:
    """A contender's process: see `benchmarks.worker`."""

    def __init__(self, job: dict[str, Any], shares: bool = False) -> None:
        """`shares`: other processes need memory of the same GPU, of which JAX takes most at once by default."""
        env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # how long it takes to compile is measured
        env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if shares else {}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def answer(self) -> Any:
        """The next answer; waits for it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        said = [line for line in lines if "Error" in line or "error" in line or "RESOURCE_EXHAUSTED" in line]
        raise Failed((said or lines or [f"exit code {self.process.wait()}"])[-1][:300])

    def time(self, steps: int) -> Times:
        """The time that so many steps take."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` tells why
        return self.answer()


def ceiling(dtype: str = "") -> dict[str, Any]:
    """The best square matrix product, by a process of its own; without a dtype, in the one that the device is for."""
    with Worker({"contender": "ceiling", "dtype": dtype}) as worker:
        return worker.answer()


def of_device(answer: dict[str, Any]) -> dict[str, Any]:
    """What the ceiling's process said of the device."""
    return {key: answer[key] for key in ("gpu", "device")}


def products(answer: dict[str, Any]) -> dict[str, Any]:
    """What it said of matrix products."""
    return {key: value for key, value in answer.items() if key.startswith("tflops")}


def in_turns(
    timers: dict[str, Timer], steps: dict[str, int], rounds: int
) -> tuple[dict[str, list[Times]], dict[str, str]]:
    """The times of a step of each contender in each round, and why those that broke down did.

    Who goes first changes from round to round.
    """
    names, failed = list(timers), {}
    times: dict[str, list[Times]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            try:
                found = timers[name](steps[name])
            except Failed as failure:
                failed[name] = str(failure)
                continue
            times[name].append({key: value / steps[name] for key, value in found.items()})
    return times, failed


def measure(
    case: Case,
    contenders: Sequence[str],
    overrides: Sequence[str],
    *,
    memory: str,
    rounds: int,
    steps: int,
    turn: float,
    together: bool = False,
) -> list[dict[str, Any]]:
    """A row for each contender; one that fails has the reason instead of figures.

    `together`: they compile side by side, before any is timed.
    """
    about = {**vars(case), "memory": memory, "overrides": list(overrides)}
    with ExitStack() as stack:
        ready: dict[str, tuple[Worker, dict[str, Any]]] = {}
        rows = {name: {**about, "contender": name} for name in contenders}

        def started(name: str) -> Worker:
            keep = memory == "kept" or (memory == "own" and name == "ours")
            job = {"contender": name, "case": vars(case), "keep_freed": keep, "overrides": list(overrides)}
            return stack.enter_context(Worker(job, len(contenders) > 1))

        early = {name: started(name) for name in contenders if together}
        for name in contenders:
            worker = early.get(name) or started(name)
            try:
                ready[name] = (worker, worker.answer())
            except Failed as failure:
                rows[name]["failed"] = str(failure)
        chosen = {name: steps or max(1, round(turn / facts["step_seconds"])) for name, (_, facts) in ready.items()}
        times, failed = in_turns({name: worker.time for name, (worker, _) in ready.items()}, chosen, rounds)
    for name, (_, facts) in ready.items():
        if name in failed:
            rows[name]["failed"] = failed[name]
            continue
        rows[name] |= facts | {"steps": chosen[name]}
        for key in times[name][0]:
            rows[name][f"{key}_per_step"] = [found[key] for found in times[name]]
        rows[name]["images_per_second"] = case.batch_size / statistics.median(rows[name]["seconds_per_step"])
    return list(rows.values())


def add_efficiency(rows: Sequence[dict[str, Any]], ceilings: dict[str, float]) -> None:
    """TFLOP/s and the share of the ceiling, by the operations that our model counts; in place."""
    counted = {_case(row): row["flops_per_image"] for row in rows if "flops_per_image" in row}
    for row in rows:
        if "failed" in row or _case(row) not in counted:
            continue
        flops = counted[_case(row)] * (3 if row["mode"] == "train" else 1)
        row["tflops"] = row["images_per_second"] * flops / 1e12
        if row["dtype"] in ceilings:
            row["mfu"] = row["tflops"] / ceilings[row["dtype"]]


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[field] for field in Case.__dataclass_fields__)


def list_of(text: str, flag: str, choices: Sequence[str] = ()) -> list[str]:
    """The values of a flag, comma-separated; each at most once."""
    values = [value.strip() for value in text.split(",") if value.strip()]
    for value in values:
        if choices and value not in choices:
            raise UserError(f"{flag}: {value!r} is unknown; choose from {', '.join(choices)}")
    if not values or len(set(values)) < len(values):
        raise UserError(f"{flag} {text!r}: expected different values, comma-separated")
    return values


def cases(flags: Any, gpu: bool) -> list[Case]:
    """Every combination of the flags' values."""
    models = list_of(flags.models, "--models")
    for model in models:
        check_model(model)
    sizes = list_of(flags.batch_sizes, "--batch-sizes") if flags.batch_sizes else ["0"]
    if not all(size.isdigit() for size in sizes):
        raise UserError(f"--batch-sizes {flags.batch_sizes!r}: expected numbers of images, e.g. 128,256")
    dtypes = list_of(flags.dtypes or ("bfloat16" if gpu else "float32"), "--dtypes", DTYPES)
    return [
        Case(model, mode, dtype, int(size) or default_batch(model, gpu), flags.image_size)
        for model in models
        for dtype in dtypes
        for size in sizes
        for mode in list_of(flags.modes, "--modes", MODES)
    ]


def contenders(case: Case, peers: Sequence[str]) -> list[str]:
    """Ours, and the peers that have this model."""
    return ["ours", *(name for peer in peers for name in PEERS[peer] if peer != "flax" or is_vit(case.model))]


def parse(argv: Sequence[str]) -> tuple[Any, list[str]]:
    parser = command.Parser(
        prog="python -m benchmarks.throughput",
        description="Measures images per second, TFLOP/s, share of the matrix-product ceiling, memory, compile time.",
        epilog="Any field of our configuration: --config.<group>.<field>=<value>, e.g. --config.model.scan=true",
    )
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS), help="cifar10:vit, vit/B16, resnet/50 ...")
    parser.add_argument("--modes", default="train", help="train, inference")
    parser.add_argument("--dtypes", default="", help="default: bfloat16 on GPUs, else float32")
    parser.add_argument("--batch-sizes", default="", help="default: one that suits model and device")
    parser.add_argument("--image-size", type=int, default=224, help="pixels, of the models that are not cifar10's")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help="torch, flax; repeat for both")
    parser.add_argument(
        "--memory",
        default="own",
        help="on CPUs, whether malloc keeps what is freed: own (ours does, peers as they come), kept, freed",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="in each turn (default: as many as fit into --turn)")
    parser.add_argument("--turn", type=float, default=2.0, help="seconds of each contender's turn (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--together", action="store_true", help="contenders compile side by side: sooner, not faster")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    for field in ("rounds", "image_size"):
        if getattr(flags, field) < 1:
            raise UserError(f"--{field.replace('_', '-')} {getattr(flags, field)} is not positive")
    if flags.steps < 0 or flags.turn <= 0:
        raise UserError(f"--steps {flags.steps} is negative, or --turn {flags.turn} not positive")
    for field in (override.partition("=")[0] for override in overrides):
        if field in ("train.batch_size", "model.dtype") or (flags.peer and field not in SAME_MODEL):
            raise UserError(
                f"--config.{field} would change ours alone, not what it is held beside; --models, --batch-sizes, "
                "--dtypes and --image-size are for all"
            )
    for peer in flags.peer:
        list_of(peer, "--peer", tuple(PEERS))
    list_of(flags.memory, "--memory", MEMORY)
    cases(flags, gpu=False)  # a mistake is told before anything is measured
    return flags, overrides


def main(argv: Sequence[str]) -> int:
    flags, overrides = parse(argv)
    console = Console(highlight=False)
    ceilings: dict[str, dict[str, Any]] = {}
    first = ceiling()  # and whether there is a GPU: this process leaves the device to the workers
    todo = cases(flags, first["gpu"])
    for case in todo:
        case.config(overrides)
    results = machine.Results("throughput", flags.out, **of_device(first), ceilings=ceilings)
    for dtype in {case.dtype: None for case in todo}:
        ceilings[dtype] = products(first if dtype == first["dtype"] else ceiling(dtype))
        console.print(f"ceiling, {dtype}: {ceilings[dtype]['tflops']:.4g} TFLOP/s")
    rows = results.content["rows"]
    for case in todo:
        names = contenders(case, flags.peer)
        if flags.no_compile:
            names = [name for name in names if name != "torch.compile"]
        for memory in list_of(flags.memory, "--memory"):
            how = {"rounds": flags.rounds, "steps": flags.steps, "turn": flags.turn, "together": flags.together}
            found = measure(case, names, overrides, memory=memory, **how)
            rows += found
            add_efficiency(rows, {dtype: entry["tflops"] for dtype, entry in ceilings.items()})
            results.write()
            for row in found:
                console.print(line(row), soft_wrap=True)
    for dtype, entry in ceilings.items():
        again = ceiling(dtype)
        entry["tflops_after"] = again["tflops"]
        entry["tflops"] = max(entry["tflops"], again["tflops"])
    add_efficiency(rows, {dtype: entry["tflops"] for dtype, entry in ceilings.items()})
    results.write()
    console.print(f"wrote {results.path.name}")
    return command.DONE if any("failed" not in row for row in rows) else command.FAULT


def line(row: dict[str, Any]) -> str:
    """One row as a line for the terminal."""
    what = f"{row['model']} {row['mode']} {row['dtype']} batch {row['batch_size']} {row['contender']} ({row['memory']})"
    if "failed" in row:
        return f"{what}: failed: {row['failed']}"
    share = f", {100 * row['mfu']:.1f} % of the ceiling" if "mfu" in row else ""
    return f"{what}: {row['images_per_second']:,.1f} images/s{share}, compiled in {row['compile_seconds']:.1f} s"


if __name__ == "__main__":
    command.run(main)
