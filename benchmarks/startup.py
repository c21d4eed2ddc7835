"""From the start of a process to the end of its first step, with an empty and with a filled compilation cache.

python -m benchmarks.startup --models cifar10:vit,vit/B16
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.throughput import Worker, ask
from benchmarks.workloads import Case, add_flags, cases, check_positive, no_overrides
from vit_jax import command

STAGES = ("import_seconds", "build_seconds", "step_seconds")


def start(case: Case, cache: str) -> list[float]:
    """Seconds of each stage of one process: imports, building and compiling, first step."""
    began = time.time()
    job = {"contender": "ours", "case": vars(case), "keep_freed": True, "overrides": []}
    with Worker(job, {"JAX_COMPILATION_CACHE_DIR": cache}) as worker:
        at = worker.answer()["at"]
    return np.diff([began, at["imported"], at["compiled"], at["stepped"]]).tolist()


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Medians with an empty cache each time, and with the cache that such a start leaves behind."""
    found: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in found:
                found[kind].append(start(case, cache))
    return [
        {**vars(case), "cache": kind, "rounds": times, "seconds": float(np.median(np.sum(times, axis=1)))}
        | dict(zip(STAGES, np.median(times, axis=0).tolist(), strict=True))
        for kind, times in found.items()
    ]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.startup", description="Measures the time to the first step.")
    add_flags(parser, "cifar10:vit,vit/B16")
    parser.add_argument("--rounds", type=int, default=3)
    flags, overrides = parser.parse(argv)
    no_overrides(overrides)
    check_positive(flags, "rounds")
    cases(flags, gpu=False)  # a mistake is told before anything is measured
    about = ask("device")
    results = machine.Results("startup", flags.out, **about)
    for case in cases(flags, about["gpu"]):
        for row in measure(case, flags.rounds):
            results.add(row)
            print(f"{case.model}, {row['cache']} cache: {row['seconds']:.1f} s to the first step")
    print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
