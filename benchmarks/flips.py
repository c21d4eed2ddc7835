"""Flips a bit of, or cuts, files in the folder of a run, and asks each command what it makes of it.

    python -m benchmarks.flips --n 300 --seed 0

Each damage meets a copy of a finished or of a stopped run, for each command anew. The command says what is wrong with
the file ("said"), or gives what it gives of the whole run ("harmless"). "Silent" is another result without a word.
"""

import argparse
import contextlib
import hashlib
import io
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.chaos import cut, flip
from tests import tiny
from vit_jax import evaluate, predict, workdir
from vit_jax import main as training
from vit_jax.command import UserError
from vit_jax.export import command as export
from vit_jax.report import page

TELLS = re.compile(r"error: |damaged|cannot be read|missing|changed|unchecked")
NOW = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
TIMED = {"seconds", "images_per_second", "energy_kwh", "workdir", "config"}
CONFIG = tiny.spec("cnn")
OPTIONS = {"num_cpu_devices": 1, "disable_most_optimizations": True, "persistent_cache_min_compile_time_secs": 0}
LOG = ("--config.log.report=false", "--config.log.tensorboard=true")
COLUMNS = ("damages", "said", "harmless", "silent", "traceback")


class Flips:
    """A finished run, one that was stopped at its 19th step of 23, and what each command gives of the two."""

    def __init__(self, folder: Path) -> None:
        self.workdir, self.out, self.photo = folder / "run", folder / "out", folder / "photo.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(self.photo)
        run, out = str(self.workdir), str(self.out / "x")
        self.commands: dict[str, Callable[[], int]] = {
            "resume": lambda: training.main(["--config", CONFIG, "--workdir", run, *LOG]),
            "evaluate": lambda: evaluate.main(["--workdir", run]),
            "predict": lambda: predict.main(["--workdir", run, str(self.photo), "--out", f"{out}.jsonl"]),
            "export": lambda: export.main(["--workdir", run, "--format", "safetensors", "--out", f"{out}.safetensors"]),
            "report": lambda: page.main([run, "--out", f"{out}.html", "--no-images"]),
        }
        self.runs = [self._trained(folder / "finished"), self._trained(folder / "stopped", 19)]
        self.expected = {(run, name): self.ask(name, run)[2] for run in self.runs for name in self.commands}
        for (whole, name), gave in self.expected.items():
            code, said, again = self.ask(name, whole)
            assert code == 0 and not TELLS.search(said), (name, code, said)
            assert again == gave, f"{name} gives something else each time"

    def _trained(self, target: Path, stopped_at: int = 0) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            tiny.interrupt_at(stopped_at, signal.SIGTERM, patch)
            assert self.commands["resume"]() == (128 + signal.SIGTERM if stopped_at else 0)
        if not stopped_at:  # the files that later commands leave in the folder
            assert self.commands["evaluate"]() == evaluate.main(["--workdir", str(self.workdir), "--probe", "knn"]) == 0
        page.write([self.workdir], self.workdir / "report.html", album=None)
        return self.workdir.rename(target)

    def ask(self, name: str, run: Path, damage: Callable[[], object] = lambda: None) -> tuple[int, str, str]:
        """The exit code (-1: a traceback), what is printed or logged, and what the command gives."""
        for folder in (self.workdir, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, self.workdir)
        self.out.mkdir()
        damage()
        workdir._told.clear()
        text, code = io.StringIO(), -1
        logging.basicConfig(format="%(message)s", stream=text, force=True)
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
            try:
                code = self.commands[name]()
            except UserError as mistake:
                text.write(f"error: {mistake}")
                code = 2
            except (Exception, SystemExit):
                traceback.print_exc()
        written = b"".join(file.read_bytes() for file in sorted(self.out.iterdir()))
        said = text.getvalue() + " ".join(re.findall(r"[^<>]* missing: ", written.decode(errors="replace")))
        return code, said, "" if code else self._given(name, run, NOW.sub(b"", written))

    def _given(self, name: str, run: Path, written: bytes) -> str:
        if name == "evaluate":
            return (self.workdir / "evaluation-test.json").read_text()
        if name != "resume":
            return hashlib.sha256(written).hexdigest()
        found = str({key: value for key, value in tiny.result(self.workdir).items() if key not in TIMED})
        if run == self.runs[0]:  # it is finished: its result was only read
            return found
        arrays = {key: np.asarray(value).tobytes().hex() for key, value in tiny.arrays(self.workdir).items()}
        starts = len(workdir.Workdir(self.workdir).starts())
        return f"{found} {arrays} {tiny.metric_lines(self.workdir)} {starts}"

    def damage(self, n: int, rng: random.Random) -> dict[str, Counter[str]]:
        """By kind of file, kinds in turn: the number of damages, and how often each verdict was given on a command."""
        kinds = [(run, each) for run in self.runs for each in sorted({kind(file, run) for file in _files(run)})]
        table = {each: Counter[str]() for each in sorted(each for _, each in kinds)}
        for i in range(n):
            run, which = kinds[i % len(kinds)]
            file = rng.choice([file for file in _files(run) if kind(file, run) == which]).relative_to(run)
            change, seed = rng.choice((flip, flip, cut)), rng.getrandbits(32)
            table[which]["damages"] += 1
            for name in self.commands:
                found = self.ask(name, run, partial(change, self.workdir / file, random.Random(seed)))
                verdict = judged(*found, self.expected[run, name])
                table[which][verdict] += 1
                if verdict in ("silent", "traceback"):
                    print(f"{verdict}: {name}, {run.name}, {change.__name__} {file}: {found[1]}", file=sys.stderr)
            if i % 20 == 19:
                jax.clear_caches()
                print(f"{i + 1} of {n}\n{as_table(table)}", file=sys.stderr)
        return table


def judged(code: int, said: str, gave: str, expected: str) -> str:
    """The verdict on a command's exit code, on what it said and on what it gave."""
    if code < 0 or TELLS.search(said):
        return "traceback" if code < 0 else "said"
    return "harmless" if code == 0 and gave == expected else "silent"


def kind(file: Path, run: Path) -> str:
    """The file's name; of one in a checkpoint, that of its part of the checkpoint."""
    first, *rest = file.relative_to(run).parts
    return f"{first}: {rest[1]}" if rest and first == "checkpoints" else first


def as_table(counts: dict[str, Counter[str]]) -> str:
    rows = [f"| file | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        rows.append(f"| {name} | {' | '.join(str(found[column]) for column in COLUMNS)} |")
    return "\n".join(rows) + "\n"


def _files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["JAX_NUM_CPU_DEVICES"] = "1"
        for name, value in {**OPTIONS, "compilation_cache_dir": f"{folder}/cache"}.items():
            jax.config.update(f"jax_{name}", value)
        counts = Flips(Path(folder)).damage(flags.n, random.Random(flags.seed))
    print(as_table(counts))
    return 1 if any(found["silent"] + found["traceback"] for found in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
