"""The whole list for a rented GPU machine, unattended, what matters most first: python -m benchmarks.gpu --minutes 9.

Each step is a command of its own with a time limit; what it has measured is in its file by then. What does not fit into
the time is not started.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.workloads import REPOSITORY, default_batch
from vit_jax import command
from vit_jax.command import UserError

QUICK = ("--turn", "1", "--rounds", "5", "--together")
BOTH = ("--peer", "torch", "--peer", "flax")
FLAGS = (
    "xla_gpu_enable_triton_gemm=false",
    "xla_gpu_enable_cublaslt=true",
    "xla_gpu_enable_triton_gemm=false,xla_gpu_enable_cublaslt=true",
    "xla_gpu_experimental_enable_fusion_autotuner=true",
    "xla_gpu_exhaustive_tiling_search=true",
)
# The words after `python -m benchmarks.`, and the most minutes that they may take.
STEPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("throughput", "--models", "vit/B16", *BOTH, *QUICK), 2.0),
    (("throughput", "--models", "cifar10:vit", "--batch-sizes", "512,2048", *BOTH, *QUICK), 2.5),
    (("throughput", "--models", "vit/S16", "--peer", "torch", *QUICK), 1.5),
    (("throughput", "--models", "vit/L16", *QUICK), 2.0),
    (("trace", "--model", "vit/B16"), 1.5),
    (("augmentation", "--model", "vit/S16", "--rounds", "3"), 4.0),
    (("flags", "--model", "vit/B16", *(word for flag in FLAGS for word in ("--flags", flag))), 2.5),
    (("trace", "--model", "cifar10:vit"), 1.0),
    (("throughput", "--models", "vit/B16", "--config.model.attention=plain", *QUICK), 1.5),
    (("throughput", "--models", "vit/B16,vit/L16", "--modes", "inference", *QUICK), 2.5),
    (("startup", "--models", "cifar10:vit,vit/B16", "--rounds", "1"), 2.5),
    (("input", "--data", "synthetic/160x160x3/10/10000", "--peer", "torch", "--turn", "3", "--rounds", "3"), 1.5),
    (("throughput", "--models", "cifar10:vit", "--batch-sizes", "128", "--peer", "torch", *QUICK), 1.5),
    (("throughput", "--models", "vit/B16", "--batch-sizes", "128,512", *QUICK), 2.5),
    (("throughput", "--models", "resnet/50,cifar10:cnn,vit/Ti16", "--peer", "torch", *QUICK), 5.0),
    (("throughput", "--models", "vit/L16", "--batch-sizes", "256", "--config.model.remat=dots", *QUICK), 2.0),
    (("throughput", "--models", "vit/L16", "--batch-sizes", "64", "--peer", "torch", *QUICK), 3.0),
    (("throughput", "--models", "vit/S16", "--batch-sizes", "256,1024", *QUICK), 2.5),
    (("throughput", "--models", "cifar10:vit", "--dtypes", "float32", *BOTH, *QUICK), 2.5),
    (("throughput", "--models", "vit/Ti16,vit/S16,resnet/50", "--modes", "inference", "--peer", "torch", *QUICK), 5.0),
)


def not_run(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commands of `STEPS` of which some model, mode, type, batch size or peer is in no row that a GPU measured."""
    return [
        f"python -m benchmarks.{' '.join(_without(words, QUICK))}" for words, _ in STEPS if not _is_run(words, rows)
    ]


def _is_run(words: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> bool:
    kind, *rest = words
    given: dict[str, list[str]] = {}
    for flag, value in itertools.pairwise(rest):
        given.setdefault(flag, []).extend(value.split(","))
    overrides = [word.removeprefix("--config.") for word in rest if word.startswith("--config.")]
    training = kind == "throughput" and "--modes" not in given
    cases = [
        (*case, batch_size)
        for case in itertools.product(
            given.get("--models", given.get("--model", [""])),
            given.get("--modes", [""]),
            given.get("--dtypes", [""]),
            ["ours", *given.get("--peer", [])] if kind == "throughput" else [""],
        )
        for batch_size in given.get("--batch-sizes", [str(default_batch(case[0], True))] if training else [""])
    ]
    measured = [
        row for row in rows if row["kind"] == kind and row["gpu"] and set(overrides) <= {*row.get("overrides", ())}
    ]
    columns = ("model", "mode", "dtype", "contender", "batch_size")
    found = [[str(row.get(column)) for column in columns] for row in measured]
    return all(any(_fits(case, row) for row in found) for case in cases)


def _fits(case: Sequence[str], row: Sequence[str]) -> bool:
    return all(not wanted or wanted == value for wanted, value in zip(case, row, strict=True))


def _without(words: tuple[str, ...], end: tuple[str, ...]) -> tuple[str, ...]:
    return words[: -len(end)] if words[-len(end) :] == end else words


def limited(words: Sequence[str], seconds: float) -> int | None:
    """The exit code of a command; None if it ran out of time: it is then ended with all that it started."""
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=REPOSITORY, start_new_session=True)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.gpu", description="Measures the whole list on a GPU machine.")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all of it (default: 30)")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
    if flags.minutes <= 0:
        raise UserError(f"--minutes {flags.minutes} is not positive")
    console, ends, done = Console(highlight=False), time.monotonic() + 60 * flags.minutes, 0
    for words, minutes in STEPS:
        left = ends - time.monotonic()
        if left < 20:
            console.print(f"no time left for {' '.join(words)}", soft_wrap=True)
            continue
        console.rule(" ".join(words))
        name, *rest = words
        code = limited([f"benchmarks.{name}", *rest, "--out", str(flags.out.resolve())], min(60 * minutes, left))
        done += code == 0
        if code != 0:
            console.print("out of time" if code is None else f"exit code {code}")
    return command.DONE if done else command.FAULT


if __name__ == "__main__":
    command.run(main)
