"""Where the time of a step goes: each kernel that runs, by kind and by part of the model, from the device's profiler.

    python -m benchmarks.trace --models vit/B16

A kernel's kind is told by its name, its part of the model by the operation that it was compiled from. The heaviest are
added up by their cause: those of the same operation in all layers, whatever numbers they have. What the kernels leave
of a step's time by the clock is `idle`: the device waits for the host, or for the next kernel to begin.
"""

import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import machine
from benchmarks.step import Step
from benchmarks.worker import timed
from benchmarks.workloads import add_flags, cases, check_positive
from vit_jax import command

# The first that a kernel's name, or its operation's, contains.
KINDS = {
    "attention": r"flash|fmha|sdpa|mha",
    "convolutions": r"conv(?!ert)|wgrad|dgrad|implicit_gemm",
    "matrix products": r"gemm|cublas|cutlass|nvjet|xmma|dot",
    "copies": r"memcpy|memset|copy|transpose",
    "reductions": r"reduce|softmax|norm",
}
# The last that the path of an operation contains: `jit(step)/transpose(jvp(ViT))/encoder/block/attention/...`.
PARTS = {
    "attention": r"attention",
    "MLP": r"mlp",
    "layer norms": r"norm",
    "patches": r"embedding|patch",
    "head": r"head",
    "optimizer": r"optim|adam|update",
}
CONTAINER = re.compile(r"(while|call|conditional)[.\d]*")  # its time is that of the kernels inside
SHOWN = 12


class Kernel(NamedTuple):
    """What ran under one name for one operation."""

    name: str
    operation: str
    seconds: float  # of all its runs
    runs: int


def kernels(trace: Path) -> list[Kernel]:
    """What a trace's devices ran; of a CPU, which has no device of its own in it, its threads."""
    data = jax.profiler.ProfileData.from_file(str(trace))
    lines = [line for plane in data.planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    events = [event for line in lines if line.name.startswith("Stream") for event in line.events]  # others sum these up
    if not events:
        threads = [line for plane in data.planes if plane.name == "/host:CPU" for line in plane.lines]
        events = [event for line in threads for event in line.events if "hlo_op" in dict(event.stats)]
        events = [event for event in events if not CONTAINER.fullmatch(event.name)]
    runs: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        runs[event.name, str(dict(event.stats).get("hlo_op", ""))].append(event.duration_ns / 1e9)
    return [Kernel(*key, sum(seconds), len(seconds)) for key, seconds in runs.items()]


def paths(compiled: str) -> dict[str, str]:
    """The path in the program of each instruction of a compiled module's text, by its name as a kernel has it."""
    found = re.findall(r'%?([\w.\-]+) = [^\n]*metadata=\{[^}\n]*op_name="([^"]*)"', compiled)
    return {plain(name): path for name, path in found}


def plain(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def kind(kernel: Kernel, path: str) -> str:
    """The kind of a kernel, by its name and its operation's, and by the end of the path: `.../dot_general`."""
    text = f"{kernel.name} {kernel.operation} {path.rpartition('/')[2]}".lower()
    return next((name for name, pattern in KINDS.items() if re.search(pattern, text)), "elementwise")


def part(path: str) -> str:
    """The part of the model, or of the step, that an operation belongs to; of one without a path nobody knows."""
    if not path:
        return "not told"
    found = [(m.start(), name) for name, pattern in PARTS.items() for m in re.finditer(pattern, path.lower())]
    return max(found)[1] if found else "rest"


def shares(sorted_into: Mapping[Kernel, str], whole: float) -> dict[str, float]:
    """Shares of `whole` seconds of what the kernels are sorted into, the greatest first."""
    sums: defaultdict[str, float] = defaultdict(float)
    for kernel, name in sorted_into.items():
        sums[name] += kernel.seconds / whole
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def measure(ours: Step, steps: int, folder: Path) -> dict[str, Any]:
    """A row: seconds of a step by the clock without the profiler, and where its kernels' go."""
    ours.run(2)
    seconds = statistics.median(timed(ours, steps)["seconds"] / steps for _ in range(3))
    if machine.is_gpu():  # a CUDA graph's kernels do not say of which operation they are
        ours.step = ours.lowered.compile({"xla_gpu_enable_command_buffer": ""})
        ours.run(2)
    with jax.profiler.trace(str(folder)):
        ours.run(steps)
    trace = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)  # others may be kept there
    return {"seconds_per_step": seconds, **divided(kernels(trace), paths(ours.step.as_text()), seconds, steps)}


def divided(found: Sequence[Kernel], known: Mapping[str, str], seconds: float, steps: int) -> dict[str, Any]:
    """Where the time of so many steps goes, of `seconds` each; `known`: the operations' paths."""
    path_of = {kernel: known.get(plain(kernel.operation)) or known.get(plain(kernel.name), "") for kernel in found}
    busy = sum(kernel.seconds for kernel in found)
    whole = max(busy, seconds * steps)
    return {
        "idle": 1 - busy / whole,
        "kinds": shares({k: kind(k, path) for k, path in path_of.items()}, whole),
        "parts": shares({k: part(path) for k, path in path_of.items()}, whole),
        "kernels_per_step": sum(kernel.runs for kernel in found) / steps,
        "heaviest": heaviest(path_of, whole),
    }


def heaviest(path_of: Mapping[Kernel, str], whole: float) -> list[dict[str, Any]]:
    """The causes that take most of `whole` seconds, by their heaviest kernel and the operation that it is from."""
    causes: defaultdict[tuple[str, str], list[Kernel]] = defaultdict(list)
    for kernel in sorted(path_of, key=lambda kernel: -kernel.seconds):
        causes[re.sub(r"[.\d]+", "", kernel.name), re.sub(r"\d+", "", path_of[kernel])].append(kernel)
    found = sorted(causes.values(), key=lambda kernels: -sum(kernel.seconds for kernel in kernels))[:SHOWN]
    return [
        {
            "kernel": kernels[0].name[:120],
            "operation": (path_of[kernels[0]] or kernels[0].operation)[-160:],
            "kernels": len(kernels),
            "share": sum(kernel.seconds for kernel in kernels) / whole,
        }
        for kernels in found
    ]


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.trace", description="Shows where the time of a step goes.")
    add_flags(parser, "vit/B16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for the trace itself, for TensorBoard or Perfetto")
    flags, overrides = parser.parse(argv)
    check_positive(flags, "steps")
    cases(flags, gpu=False)  # a mistake is told before a device is touched
    about = machine.device()
    results = machine.Results("trace", flags.out, **about)
    for case in cases(flags, about["gpu"]):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Step(case, overrides), flags.steps, flags.keep or Path(folder))
        results.add({**vars(case), "overrides": overrides, **row})
        print(f"{case.model}: {1000 * row['seconds_per_step']:.2f} ms a step, idle {row['idle']:.1%}")
        for title in ("kinds", "parts"):
            print(f"{title}: {', '.join(f'{name} {share:.1%}' for name, share in row[title].items())}")
        for found in row["heaviest"]:
            print(f"{found['share']:6.1%}  {found['kernels']} x {found['kernel'][:50]}  {found['operation'][-70:]}")
    print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
