"""Where the time of a step goes: each kernel that runs, by kind and by part of the model, from the device's profiler.

    python -m benchmarks.trace --model vit/B16

A kernel's kind is told by its name, its part of the model by the operation that it was compiled from; what the kernels
leave of a step's time by the clock is `idle`: the device waits for the host, or for the next kernel to begin.
"""

import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from benchmarks import device, machine
from benchmarks.ours import Ours
from benchmarks.worker import timed
from benchmarks.workloads import add_case, training_case
from vit_jax import command
from vit_jax.command import UserError

# The first that a kernel's name, or its operation's, contains.
KINDS = {
    "attention": r"flash|fmha|sdpa|mha",
    "convolutions": r"conv(?!ert)|wgrad|dgrad|implicit_gemm",
    "matrix products": r"gemm|cublas|cutlass|nvjet|xmma|dot",
    "copies": r"memcpy|memset|copy|transpose",
    "reductions": r"reduce|softmax|norm",
}
OTHER = "elementwise"
# The last that the path of an operation contains: `jit(step)/transpose(jvp(ViT))/encoder/block/attention/...`.
PARTS = {
    "attention": r"attention",
    "MLP": r"mlp",
    "layer norms": r"norm",
    "patches": r"embedding|patch",
    "head": r"head",
    "optimizer": r"optim|adam|update",
}
SHOWN = 12


class Kernel(NamedTuple):
    """What ran under one name for one operation: seconds of all its runs, and how many there were."""

    name: str
    operation: str
    seconds: float
    runs: int


def kernels(trace: Path) -> list[Kernel]:
    """What a trace's devices ran; of a CPU, which has no device of its own in it, its threads."""
    data = jax.profiler.ProfileData.from_file(str(trace))
    lines = [line for plane in data.planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    events = [event for line in lines if line.name.startswith("Stream") for event in line.events]  # others sum these up
    if not events:
        threads = [line for plane in data.planes if plane.name == "/host:CPU" for line in plane.lines]
        events = [event for line in threads for event in line.events if "hlo_op" in dict(event.stats)]
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    runs: Counter[tuple[str, str]] = Counter()
    for event in events:
        key = (event.name, str(dict(event.stats).get("hlo_op", "")))
        seconds[key] += event.duration_ns / 1e9
        runs[key] += 1
    return [Kernel(*key, seconds[key], runs[key]) for key in seconds]


def paths(compiled: str) -> dict[str, str]:
    """Of each instruction of a compiled module's text the path that its operation had in the program.

    By its name as a kernel has it, without dots and hyphens.
    """
    found = re.findall(r'%?([\w.\-]+) = [^\n]*metadata=\{[^}\n]*op_name="([^"]*)"', compiled)
    return {plain(name): path for name, path in found}


def plain(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def kind(kernel: Kernel, path: str) -> str:
    """The kind of a kernel, by its name and its operation's, and by the end of the path: `.../dot_general`."""
    text = f"{kernel.name} {kernel.operation} {path.rpartition('/')[2]}".lower()
    return next((name for name, pattern in KINDS.items() if re.search(pattern, text)), OTHER)


def part(path: str) -> str:
    """The part of the model, or of the step, that an operation belongs to; of one without a path nobody knows."""
    if not path:
        return "not told"
    found = {name: [m.start() for m in re.finditer(pattern, path.lower())] for name, pattern in PARTS.items()}
    last = {name: starts[-1] for name, starts in found.items() if starts}
    return max(last, key=lambda name: last[name]) if last else "rest"


def shares(sorted_into: Mapping[Kernel, str], whole: float) -> dict[str, float]:
    """Shares of `whole` seconds of what the kernels are sorted into, the greatest first."""
    sums: defaultdict[str, float] = defaultdict(float)
    for kernel, name in sorted_into.items():
        sums[name] += kernel.seconds / whole
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def measure(ours: Ours, steps: int, folder: Path) -> dict[str, Any]:
    """A row: seconds of a step by the clock without the profiler, and where its kernels' go."""
    ours.run(2)
    seconds = statistics.median(timed(ours, steps)["seconds"] / steps for _ in range(3))
    if device.is_gpu():  # a CUDA graph's kernels do not say of which operation they are
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
    heaviest = sorted(found, key=lambda kernel: -kernel.seconds)[:SHOWN]
    return {
        "idle": 1 - busy / whole,
        "kinds": shares({k: kind(k, path) for k, path in path_of.items()}, whole),
        "parts": shares({k: part(path) for k, path in path_of.items()}, whole),
        "kernels_per_step": sum(kernel.runs for kernel in found) / steps,
        "heaviest": [
            {
                "kernel": kernel.name[:120],
                "operation": (path_of[kernel] or kernel.operation)[-160:],
                "share": kernel.seconds / whole,
                "runs_per_step": kernel.runs / steps,
            }
            for kernel in heaviest
        ],
    }


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.trace", description="Shows where the time of a step goes.")
    add_case(parser, "vit/B16")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for the trace itself, for TensorBoard or Perfetto")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder of the JSON file")
    flags, overrides = parser.parse(argv)
    if flags.steps < 1:
        raise UserError(f"--steps {flags.steps} is not positive")
    training_case(flags, gpu=False)  # a mistake is told before a device is touched
    about, console = device.describe(), Console(highlight=False)
    case = training_case(flags, about["gpu"])
    results = machine.Results("trace", flags.out, **about)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Ours(case, overrides), flags.steps, flags.keep or Path(folder))
    results.add({**vars(case), "overrides": overrides, **row})
    console.print(f"{1000 * row['seconds_per_step']:.2f} ms a step, {row['kernels_per_step']:.0f} kernels")
    for title in ("kinds", "parts"):
        console.print(f"{title}: {', '.join(f'{name} {share:.1%}' for name, share in row[title].items())}")
    console.print(f"idle: {row['idle']:.1%}")
    for found in row["heaviest"]:
        console.print(f"{found['share']:6.1%}  {found['kernel'][:60]}  {found['operation'][-70:]}", soft_wrap=True)
    console.print(f"wrote {results.path.name}")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
