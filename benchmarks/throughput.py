"""How many images a second are trained on, or classified: ours, and peers that do the same work in the same rounds.

    python -m benchmarks.throughput --models cifar10:vit,vit/Ti16 --peer torch --peer torch.compile --peer flax
    python -m benchmarks.throughput --models vit/Ti16 --dtypes float32,bfloat16 --modes train,inference --peer torch
    python -m benchmarks.throughput --models cifar10:vit --peer ../before   # another checkout of this repository

Every contender has a process of its own. They are timed in turns, and compared by the median over the rounds. The share
of the ceiling (MFU) is that of the best square matrix product in the same dtype, measured before and after. Operations:
see docs/performance.md. XLA's flags come from the environment (XLA_FLAGS), and stand in the result.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.workloads import REPOSITORY, Case, add_flags, cases, check_positive, is_vit
from vit_jax import command
from vit_jax.command import UserError

MODELS = "cifar10:vit,cifar10:cnn,vit/Ti16,vit/S16,vit/B16,vit/L16,resnet/50"
SAME_MODEL = ("model.attention", "model.scan", "model.remat")  # change how it computes, not what
PEERS = ("torch", "torch.compile", "flax")
Times = dict[str, float]  # `seconds` by the clock, `cpu_seconds` of all cores together


class Failed(RuntimeError):
    """A worker that ended too early; its last words."""


class Worker:
    """A contender's process: see `benchmarks.worker`."""

    def __init__(self, job: dict[str, Any], env: Mapping[str, str] | None = None) -> None:
        """A job whose contender is the path of another checkout is done there."""
        folder = job["contender"] if "/" in job["contender"] else None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job | {"contender": "ours"} if folder else job)],
            cwd=folder or REPOSITORY,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
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
        lines = [line.strip() for line in self.errors if line.strip()] or [f"exit code {self.process.wait()}"]
        raise Failed(([line for line in lines if "rror" in line or "EXHAUSTED" in line] or lines)[-1][:300])

    def time(self, steps: int) -> Times:
        """The time that so many steps take."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` tells why
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self.answer()


def ask(what: str, dtype: str = "") -> dict[str, Any]:
    """The device, or the ceiling of its matrix products, by a process of its own: this one leaves it to the workers."""
    with Worker({"contender": what, "dtype": dtype}) as worker:
        return worker.answer()


def in_turns(timers: Mapping[str, Callable[[int], Times]], steps: Mapping[str, int], rounds: int) -> tuple[dict, dict]:
    """The times of a step of each contender in each round, and the reasons of those that broke down.

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
                times[name].append({key: value / steps[name] for key, value in timers[name](steps[name]).items()})
            except Failed as failure:
                failed[name] = str(failure)
    return times, failed


def measure(
    case: Case,
    contenders: Sequence[str],
    overrides: Sequence[str],
    *,
    rounds: int,
    turn: float,
    together: bool = False,
    start: Callable[..., Any] = Worker,
) -> list[dict[str, Any]]:
    """A row for each contender; one that fails has the reason instead of figures.

    `turn`: seconds in each round. `together`: they compile side by side, before any is timed.
    """
    env = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # the time to compile is measured
    if len(contenders) > 1:  # others need memory of the same GPU, of which JAX takes most at once by default
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    about = {**vars(case), "overrides": list(overrides)}
    # Results name no place: another checkout goes by the name of its folder.
    called = {name: f"checkout {Path(name).resolve().name}" if "/" in name else name for name in contenders}
    rows = {name: {**about, "contender": called[name]} for name in contenders}
    with contextlib.ExitStack() as stack:

        def started(name: str) -> Any:
            keep = name == "ours" or "/" in name  # as our commands do, and a peer's script does not
            job = {"contender": name, "case": vars(case), "keep_freed": keep, "overrides": list(overrides)}
            return stack.enter_context(start(job, env))

        early, ready = {name: started(name) for name in contenders if together}, {}
        for name in contenders:
            worker = early.get(name) or started(name)
            try:
                ready[name] = (worker, worker.answer())
            except Failed as failure:
                rows[name]["failed"] = str(failure)
        steps = {name: max(1, round(turn / facts["step_seconds"])) for name, (_, facts) in ready.items()}
        times, failed = in_turns({name: worker.time for name, (worker, _) in ready.items()}, steps, rounds)
    for name, (_, facts) in ready.items():
        if name in failed:
            rows[name]["failed"] = failed[name]
            continue
        rows[name] |= {**facts, "steps": steps[name]}
        rows[name] |= {f"{key}_per_step": [found[key] for found in times[name]] for key in times[name][0]}
        rows[name]["images_per_second"] = case.batch_size / statistics.median(rows[name]["seconds_per_step"])
    return list(rows.values())


def add_efficiency(rows: Sequence[dict[str, Any]], ceiling: float) -> None:
    """TFLOP/s of a case's rows and the share of the ceiling, by the operations that our model counts; in place."""
    flops = next((row["flops_per_image"] for row in rows if "flops_per_image" in row), None)
    for row in rows:
        if flops and "failed" not in row:
            row["tflops"] = row["images_per_second"] * flops * (3 if row["mode"] == "train" else 1) / 1e12
            row["mfu"] = row["tflops"] / ceiling


def parse(argv: Sequence[str]) -> tuple[Any, list[str]]:
    parser = command.Parser(
        prog="python -m benchmarks.throughput",
        description="Measures images per second, share of the matrix-product ceiling, memory, time to compile.",
    )
    add_flags(parser, MODELS)
    parser.add_argument("--peer", action="append", default=[], help=f"{', '.join(PEERS)}, a checkout; repeatable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=2.0, help="seconds of each contender's turn (default: 2)")
    parser.add_argument("--together", action="store_true", help="contenders compile side by side: sooner, not faster")
    flags, overrides = parser.parse(argv)
    check_positive(flags, "rounds", "turn")
    for field in (text.partition("=")[0] for text in overrides):
        if field in ("train.batch_size", "model.dtype") or (flags.peer and field not in SAME_MODEL):
            raise UserError(f"--config.{field} would change ours alone; --models, --dtypes, --batch-sizes are for all")
    for peer in flags.peer:
        if peer not in PEERS and not ("/" in peer and (Path(peer) / "benchmarks" / "worker.py").is_file()):
            raise UserError(
                f"--peer: {peer!r} is unknown; choose from {', '.join(PEERS)}, or give a checkout: ../before"
            )
    return flags, overrides


def main(argv: Sequence[str]) -> int:
    flags, overrides = parse(argv)
    cases(flags, gpu=False)  # a mistake is told before anything is measured
    about = ask("device")
    todo = cases(flags, about["gpu"])
    for case in todo:
        case.config(overrides)
    ceilings = {dtype: ask("ceiling", dtype) for dtype in {case.dtype: None for case in todo}}
    results, found = machine.Results("throughput", flags.out, **about, ceilings=ceilings), []
    for case in todo:
        names = ["ours", *(peer for peer in flags.peer if peer != "flax" or is_vit(case.model))]
        found.append(measure(case, names, overrides, rounds=flags.rounds, turn=flags.turn, together=flags.together))
        add_efficiency(found[-1], ceilings[case.dtype]["tflops"])
        results.add(*found[-1])
        for row in found[-1]:
            print(line(row), flush=True)
    for dtype, entry in ceilings.items():  # the machine may have been busy before
        entry["tflops_after"] = ask("ceiling", dtype)["tflops"]
        entry["tflops"] = max(entry["tflops"], entry["tflops_after"])
    for case, rows in zip(todo, found, strict=True):
        add_efficiency(rows, ceilings[case.dtype]["tflops"])
    results.write()
    print(f"wrote {results.path.name}")
    return command.DONE if any("failed" not in row for rows in found for row in rows) else command.FAULT


def line(row: Mapping[str, Any]) -> str:
    """One row as a line for the terminal."""
    what = f"{row['model']} {row['mode']} {row['dtype']} batch {row['batch_size']} {row['contender']}"
    if "failed" in row:
        return f"{what}: failed: {row['failed']}"
    return f"{what}: {row['images_per_second']:,.1f} images/s, compiled in {row['compile_seconds']:.1f} s"


if __name__ == "__main__":
    command.run(main)
