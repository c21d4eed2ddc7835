"""From the start of a process to the end of its first training step, with an empty and with a filled compilation cache.

python -m benchmarks.startup --models cifar10:vit,vit/B16
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.throughput import DTYPES, ceiling, list_of, of_device
from benchmarks.workloads import REPOSITORY, Case, check_model, default_batch
from vit_jax import command
from vit_jax.command import UserError


def start(case: Case, cache: str) -> dict[str, float]:
    """Seconds of each stage of one process: imports, building and compiling, first step, and all of it."""
    began = time.time()
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    words = [sys.executable, "-m", "benchmarks.first_step", json.dumps(vars(case))]
    found = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("@")]
    if not lines:
        raise UserError(
            f"{case.model} did not start: {(found.stderr.strip().splitlines() or ['no message'])[-1][:300]}"
        )
    at = json.loads(lines[0][1:])
    return {
        "import_seconds": at["imported"] - began,
        "build_seconds": at["compiled"] - at["imported"],
        "step_seconds": at["done"] - at["compiled"],
        "seconds": at["done"] - began,
    }


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Medians with an empty cache each time, and with the cache that such a start leaves behind."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in found:
                found[kind].append(start(case, cache))
    return [
        {**vars(case), "cache": kind, "rounds": times}
        | {stage: statistics.median(each[stage] for each in times) for stage in times[0]}
        for kind, times in found.items()
    ]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.startup", description="Measures the time to the first step.")
    parser.add_argument("--models", default="cifar10:vit,vit/B16", help="cifar10:vit, vit/B16, resnet/50 ...")
    parser.add_argument("--dtype", default="", help="default: bfloat16 on GPUs, else float32")
    parser.add_argument("--batch-size", type=int, default=0, help="default: one that suits model and device")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"--config.{overrides[0]}: this command takes no overrides; leave it out")
    if flags.rounds < 1 or flags.batch_size < 0 or flags.image_size < 1:
        raise UserError(
            f"--rounds {flags.rounds}, --batch-size {flags.batch_size}, --image-size {flags.image_size}: "
            "expected positive numbers (a batch of 0 is the default)"
        )
    models = list_of(flags.models, "--models")
    for model in models:
        check_model(model)
    if flags.dtype:
        list_of(flags.dtype, "--dtype", DTYPES)
    device = of_device(ceiling())
    results, console = machine.Results("startup", flags.out, **device), Console(highlight=False)
    gpu = device["gpu"]
    for model in models:
        dtype = flags.dtype or ("bfloat16" if gpu else "float32")
        case = Case(model, "train", dtype, flags.batch_size or default_batch(model, gpu), flags.image_size)
        for row in measure(case, flags.rounds):
            results.add(row)
            console.print(
                f"{model}, {row['cache']} cache: {row['seconds']:.1f} s to the first step "
                f"(imports {row['import_seconds']:.1f}, build and compile {row['build_seconds']:.1f})",
                soft_wrap=True,
            )
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
