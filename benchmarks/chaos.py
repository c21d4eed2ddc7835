"""Kills, damages and disturbs real trainings at random moments, starts them again, and compares the last bits.

    python -m benchmarks.chaos --config configs/digits.py --n 100 --seed 0
    python -m benchmarks.chaos --faults kill,corrupt --n 10 --out chaos.md
    python -m benchmarks.chaos --wait               with `checkpoint.wait`: no step trains beside a save
    python -m benchmarks.chaos --long 20000         the memory of a training of so many steps, instead

Each fault meets a run of its own: a tiny model on the data of the configuration, in a process of its own. A fault:

kill, term, int   SIGKILL, SIGTERM, SIGINT
stop              SIGSTOP for a second
corrupt           SIGKILL, then a bit of the newest checkpoint is flipped
sidefile          SIGKILL, then a file beside the checkpoints is flipped, cut or removed
enospc            each write fails for a while, as on a full disk (a limit of the kernel: RLIMIT_FSIZE)
nan               the gradient of a step is not a number, then SIGKILL
worker            one of two processes is killed; launch/local.sh starts both again
twice             a second start in the same folder
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVED_EVERY, NAN_STEP = 60, 10, 25
TINY = {
    "model.width": 16,
    "model.depth": 1,
    "model.mlp_dim": 16,
    "model.num_heads": 2,
    "optim.warmup_epochs": 0.0,
    "train.batch_size": 32,
    "train.steps": STEPS,
    "checkpoint.every_steps": SAVED_EVERY,
    "checkpoint.keep_last": 2,
    "log.every_steps": 5,
    "log.report": "false",
}
FAULTS = ("kill", "term", "int", "stop", "corrupt", "sidefile", "enospc", "nan", "worker", "twice")
PATIENCE_SECONDS = 600


class Training:
    """A training in a process of its own, forked from one that has imported everything, or launched as two."""

    def __init__(self, flags: Sequence[str], folder: Path, step_seconds: float, kind: str) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".txt", dir=folder)
        self.said, own = Path(name), {"CHAOS_SECONDS": str(step_seconds)}
        self.shell: subprocess.Popen[bytes] | None = None
        if kind == "worker":
            words = [str(ROOT / "launch" / "local.sh"), "2", *flags]
            own |= {"PYTHON": sys.executable, "MODULE": "benchmarks.disturbed", "RESTARTS": "2"}
            self.shell = subprocess.Popen(words, cwd=ROOT, env=os.environ | own, stdout=descriptor, stderr=descriptor)
            self.pid = self.shell.pid
        else:
            own |= {"CHAOS_NAN": str(NAN_STEP)} if kind == "nan" else {}
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["benchmarks.disturbed", "sklearn.datasets"])
            self.forked = context.Process(target=_run, args=(flags, str(self.said), own))
            self.forked.start()
            assert self.forked.pid
            self.pid = self.forked.pid
        os.close(descriptor)

    def poll(self) -> int | None:
        return self.shell.poll() if self.shell else self.forked.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> tuple[int, list[str]]:
        """Waits for the exit code, and what was said on stderr."""
        if self.shell:
            self.shell.wait(PATIENCE_SECONDS)
        else:
            self.forked.join(PATIENCE_SECONDS)
        code = self.poll()
        assert code is not None, f"it did not end within {PATIENCE_SECONDS} s"
        return code, self.said.read_text(errors="replace").splitlines()


def _run(flags: Sequence[str], said: str, environment: dict[str, str]) -> None:
    from benchmarks import disturbed

    disturbed.run(flags, Path(said), environment)


@dataclass
class Outcome:
    """What became of one run."""

    fault: str
    survived: bool = False  # it came to its end, with no traceback on the way
    equal: bool = False  # with the bits of the run that nothing disturbed
    steps_lost: int = 0  # trained twice
    seconds: float = 0.0  # from the start after the fault to the first new step
    said: list[str] = field(default_factory=list)


class Chaos:
    """Runs of one configuration, and the undisturbed ones that they are compared with."""

    def __init__(self, config: str, folder: Path, seed: int, step_seconds: float = 0.03, *, wait: bool = False) -> None:
        self.config, self.folder, self.step_seconds = config, folder, step_seconds
        self.fields = TINY | {"checkpoint.wait": wait}
        self.rng = random.Random(seed)
        self.clean: dict[str, Path] = {}
        self.seconds = 0.0  # of the undisturbed run
        self.count = 0

    def start(self, workdir: Path, kind: str = "") -> "Training":
        """The training in a process of its own. `kind`: "nan", or "worker", which are two processes."""
        return Training(self.flags(workdir, self.fields), self.folder, self.step_seconds, kind)

    def flags(self, workdir: Path, fields: Mapping[str, object]) -> list[str]:
        return ["--config", self.config, "--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in fields.items())]

    def long(self, steps: int) -> dict[int, int]:
        """The resident memory, in bytes, of an undisturbed training at each twentieth of its steps."""
        every = {"train.steps": steps, "checkpoint.every_steps": steps // 20, "log.every_steps": steps // 200}
        process = Training(self.flags(self.folder / "long", self.fields | every), self.folder, 0.0, "")
        found: dict[int, int] = {}
        while process.poll() is None:
            at = newest_line(self.folder / "long") * 20 // steps * steps // 20
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                found |= {at: pages * resource.getpagesize()} if pages else {}  # a process that has ended has none
            time.sleep(0.2)
        code, said = process.end()
        assert code == 0, said
        return found

    def reference(self, kind: str) -> Path:
        """The run that nothing disturbed."""
        key = kind if kind in ("nan", "worker") else ""
        if key not in self.clean:
            workdir = self.folder / f"clean{key}"
            began = time.monotonic()
            code, said = self.start(workdir, key).end()
            assert code == 0, said
            self.seconds = time.monotonic() - began
            self.clean[key] = workdir
        return self.clean[key]

    def disturb(self, fault: str) -> Outcome:
        """One run with one fault, and as many starts as it takes to its end."""
        expected = self.reference(fault)
        workdir, outcome = self.folder / f"{self.count}-{fault}", Outcome(fault)
        self.count += 1
        process = self.start(workdir, fault)
        at = self.rng.uniform(1, STEPS - 1)
        self.await_step(workdir, at, process)
        before = newest_line(workdir)
        getattr(self, f"do_{fault}", self.do_signal)(process, workdir, outcome)
        code, said = process.end()
        outcome.said += said
        resumed = 0.0
        for _ in range(5):
            if (workdir / "result.json").exists():
                break
            self.follow_remedy(outcome.said, workdir)
            held, began, since = newest_step(workdir), time.monotonic(), time.time()
            process = self.start(workdir, fault)
            while process.poll() is None and not goes_on(workdir, held, since):
                time.sleep(0.02)
            resumed = resumed or time.monotonic() - began
            code, said = process.end()
            outcome.said += said
            outcome.steps_lost = max(outcome.steps_lost, before - held)
        outcome.seconds = resumed
        outcome.survived = code == 0 and not any("Traceback" in line for line in outcome.said)
        outcome.equal = outcome.survived and same(workdir, expected)
        if outcome.equal:
            shutil.rmtree(workdir)
        return outcome

    def await_step(self, workdir: Path, at: float, process: Training) -> None:
        """Until about this step: at a log line before it, and the rest by the clock."""
        whole, began = int(at) // 5 * 5, time.monotonic()
        while newest_line(workdir) < whole and process.poll() is None:
            assert time.monotonic() - began < PATIENCE_SECONDS, "it never came so far"
            time.sleep(0.005)
        time.sleep((at - whole) * self.step_seconds)

    def do_signal(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        names = {"term": signal.SIGTERM, "int": signal.SIGINT}
        process.send_signal(names.get(outcome.fault, signal.SIGKILL))

    def do_stop(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)

    def do_corrupt(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        process.send_signal(signal.SIGKILL)
        process.end()
        if files := [
            path for path in (workdir / "checkpoints" / str(newest_step(workdir))).rglob("*") if path.is_file()
        ]:
            outcome.said.append(f"chaos: {flip(self.rng.choice(sorted(files)), self.rng)}")

    def do_sidefile(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        process.send_signal(signal.SIGKILL)
        process.end()
        # None of a process that was killed before it had a folder.
        if files := sorted(path for path in workdir.glob("*") if path.is_file()):
            path, change = self.rng.choice(files), self.rng.choice((flip, cut, remove))
            outcome.said.append(f"chaos: {change(path, self.rng)}")

    def do_enospc(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
        time.sleep(self.rng.uniform(0.1, 1.5))
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))

    def do_worker(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(self.rng.choice(children)), signal.SIGKILL)

    def do_twice(self, process: Training, workdir: Path, outcome: Outcome) -> None:
        code, said = self.start(workdir).end()
        outcome.said += said
        if not (code == 2 and any("is in use: process" in line for line in said)) and process.poll() is None:
            outcome.said.append("Traceback: the second start was not refused")

    def follow_remedy(self, said: Sequence[str], workdir: Path) -> None:
        """Does what the last error says: deletes the file that it names."""
        errors = [line for line in said if line.startswith("error: ")]
        if errors and "delete it" in errors[-1]:
            Path(errors[-1].removeprefix("error: ").split(" cannot be read")[0]).unlink(missing_ok=True)


def newest_step(workdir: Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def newest_line(workdir: Path) -> int:
    """The step of the last whole line of the log."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):
        return 0


def goes_on(workdir: Path, held: int, since: float) -> bool:
    """Whether a line of a later step than `held` was written after this time, or the result."""
    log = workdir / "metrics.jsonl"
    written = log.exists() and log.stat().st_mtime > since and newest_line(workdir) > held
    return written or (workdir / "result.json").exists()


def flip(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    if content:
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return f"a bit of {path.name} is flipped"


def cut(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size) if size else 0)
    return f"{path.name} is cut"


def remove(path: Path, rng: random.Random) -> str:
    path.unlink()
    return f"{path.name} is removed"


def same(workdir: Path, expected: Path) -> bool:
    """Whether two runs ended with the same arrays, log lines and test metrics."""
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (workdir, expected))
    tests = [{k: v for k, v in found.items() if k.startswith("test/")} for found in (ours, theirs)]
    logs = [
        [without_times(json.loads(line)) for line in (p / "metrics.jsonl").read_text().splitlines()]
        for p in (workdir, expected)
    ]
    return tests[0] == tests[1] and logs[0] == logs[1] and arrays_equal(workdir, expected)


def without_times(line: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if k not in ("train/images_per_second", "train/input_wait_fraction")}


def arrays_equal(workdir: Path, expected: Path) -> bool:
    from tests.tiny import arrays

    ours, theirs = arrays(workdir), arrays(expected)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k], equal_nan=True) for k in ours)


def table(outcomes: Sequence[Outcome]) -> str:
    """Injected, survived, equal, steps lost and seconds to recover, by fault."""
    rows = ["| fault | injected | survived | equal | steps lost, at most | seconds to recover |", f"|---|{'---:|' * 5}"]
    for fault in [*dict.fromkeys(each.fault for each in outcomes), "all"]:
        those = [each for each in outcomes if fault in (each.fault, "all")]
        counts = [
            len(those),
            sum(e.survived for e in those),
            sum(e.equal for e in those),
            max(e.steps_lost for e in those),
        ]
        recovered = [each.seconds for each in those if each.seconds]
        median = f"{statistics.median(recovered):.1f}" if recovered else "-"
        rows.append(f"| {fault} | {' | '.join(map(str, counts))} | {median} |")
    return "\n".join(rows) + "\n"


def environment(folder: Path) -> dict[str, str]:
    """One device, little optimisation, compiled programs kept."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(ROOT),
    }


def prepare(folder: Path) -> None:
    """Sets what JAX reads in the processes to come, at its import."""
    os.environ.pop("XLA_FLAGS", None)
    os.environ.update(environment(folder))


def disturb(
    config: str, faults: Sequence[str], n: int, seed: int, folder: Path, *, wait: bool = False
) -> list[Outcome]:
    """`n` runs, the faults in turn."""
    prepare(folder)
    chaos, outcomes = Chaos(config, folder, seed, wait=wait), []
    for i in range(n):
        outcomes.append(chaos.disturb(faults[i % len(faults)]))
        found = outcomes[-1]
        verdict = "equal" if found.equal else "NOT EQUAL" if found.survived else "FAILED"
        print(f"{i + 1}/{n} {found.fault}: {verdict}, {found.steps_lost} steps lost", file=sys.stderr, flush=True)
        if not found.equal:
            fault = next((i for i, line in enumerate(found.said) if "Traceback" in line), max(0, len(found.said) - 30))
            print("\n".join(found.said[fault : fault + 30]), file=sys.stderr, flush=True)
    return outcomes


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wait", action="store_true", help="no step trains beside a save: checkpoint.wait=true")
    parser.add_argument("--long", type=int, default=0, metavar="STEPS", help="memory over so many steps; no faults")
    parser.add_argument("--out", type=Path, help="where the table goes (default: stdout)")
    flags = parser.parse_args(argv)
    faults = flags.faults.split(",")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"--faults {', '.join(unknown)}: choose from {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if flags.long:
            prepare(Path(folder))
            for at, size in Chaos(flags.config, Path(folder), flags.seed).long(flags.long).items():
                print(f"step {at:6}  {size / 2**20:,.1f} MiB")
            return 0
        outcomes = disturb(flags.config, faults, flags.n, flags.seed, Path(folder), wait=flags.wait)
    print(table(outcomes))
    if flags.out:
        flags.out.write_text(table(outcomes), encoding="utf-8")
    return 0 if all(each.equal for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
