"""Flips single bits of, and cuts, every kind of file in the folder of a run, and asks each command what it makes of it.

    python -m benchmarks.flips --n 300 --seed 0

Each damage meets a copy of a finished or of a stopped run. What a command then gives is equal, or it says what is wrong
in one line or in a warning: "silent" counts those that differ without a word, "traceback" those that end in one.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos import Chaos, arrays_equal, cut, flip, prepare

NOW = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
MISSING = re.compile(r"[^<>]* missing: [^<>]*")  # what a page says of a file that it could not read
COMMANDS = ("resume", "evaluate", "predict", "export", "report")


@dataclass(frozen=True)
class Answer:
    """What a command gave: `said` on stderr and in warnings, `gave` as its result."""

    code: int
    said: str
    gave: str

    @property
    def traceback(self) -> bool:
        return self.code < 0


class Commands:
    """The commands, called in this process, on the run in one folder."""

    def __init__(self, workdir: Path, photos: Path, out: Path) -> None:
        self.workdir, self.photos, self.out = workdir, photos, out

    def ask(self, name: str) -> Answer:
        """What the command makes of the run as it is."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        with heard() as said:
            code = ended(getattr(self, name), said)
        gave = self.result(name) if code == 0 else ""
        on_page = MISSING.findall((self.out / "x.html").read_text()) if name == "report" and code == 0 else []
        return Answer(code, "\n".join([said.getvalue(), *on_page]), gave)

    def resume(self) -> int:
        from vit_jax import main

        return main.main(["--config", str(self.workdir / "config.json"), "--workdir", str(self.workdir)])

    def evaluate(self) -> int:
        from vit_jax import evaluate

        return evaluate.main(["--workdir", str(self.workdir)])

    def predict(self) -> int:
        from vit_jax import predict

        return predict.main(["--workdir", str(self.workdir), str(self.photos), "--out", str(self.out / "x.jsonl")])

    def export(self) -> int:
        from vit_jax.export import command

        out = str(self.out / "x.safetensors")
        return command.main(["--workdir", str(self.workdir), "--format", "safetensors", "--out", out])

    def report(self) -> int:
        from vit_jax.report import page

        return page.main([str(self.workdir), "--out", str(self.out / "x.html"), "--no-images"])

    def result(self, name: str) -> str:
        if name == "resume":
            found = json.loads((self.workdir / "result.json").read_text())
            return json.dumps(
                {k: v for k, v in found.items() if k.startswith(("test/", "best", "steps"))}, sort_keys=True
            )
        if name == "evaluate":
            return (self.workdir / "evaluation-test.json").read_text()
        content = b"".join(file.read_bytes() for file in sorted(self.out.iterdir()))
        if name == "report":
            content = NOW.sub("", content.decode()).encode()
        return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def heard() -> Iterator[io.StringIO]:
    """All that is said, by warnings, too."""
    text = io.StringIO()
    handler, root = logging.StreamHandler(text), logging.getLogger()
    root.addHandler(handler)
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        yield text
    root.removeHandler(handler)


def ended(command: Callable[[], int], said: io.StringIO) -> int:
    """The exit code; -1 where it ended in a traceback."""
    from vit_jax import workdir
    from vit_jax.command import Failure, UserError

    workdir._told.clear()
    try:
        return command()
    except UserError as mistake:
        said.write(f"error: {mistake}\n")
        return 2
    except Failure as failure:
        said.write(f"error: {failure}\n")
        return 1
    except BaseException as fault:
        said.write(f"{type(fault).__name__}: {fault}\n")
        return -1


def is_told(answer: Answer) -> bool:
    """Whether it says that something is wrong with a file."""
    return (
        re.search(r"damaged|cannot be read|missing: |is missing|has changed|unchecked|not JSON|error: ", answer.said)
        is not None
    )


def runs(folder: Path, config: str, seed: int) -> dict[str, Path]:
    """A finished run, and one that was stopped on its way."""
    chaos = Chaos(config, folder, seed)
    stopped = folder / "stopped"
    process = chaos.start(stopped)
    chaos.await_step(stopped, 35, process)
    process.send_signal(signal.SIGTERM)
    process.end()
    return {"finished": chaos.reference(""), "stopped": stopped}


def damage(n: int, config: str, seed: int, folder: Path, each: int) -> tuple[Counter[str], list[str]]:
    """How often each verdict was given on `n` damages, by `each` commands; and what was silent or a traceback."""
    prepare(folder)
    rng, whole = random.Random(seed), runs(folder, config, seed)
    workdir, photos = folder / "run", folder / "photos"
    draw(photos)
    commands, verdicts, faults = Commands(workdir, photos, folder / "out"), Counter[str](), []
    expected: dict[tuple[str, str], Answer] = {}
    for kind, name in [(kind, name) for kind in whole for name in COMMANDS]:
        renew(workdir, whole[kind])
        expected[kind, name] = commands.ask(name)
        assert expected[kind, name].code == 0, (kind, name, expected[kind, name])
        renew(workdir, whole[kind])
        assert commands.ask(name).gave == expected[kind, name].gave, f"{name} gives something else each time"
    for i in range(n):
        kind, change = rng.choice(list(whole)), rng.choice((flip, flip, cut))
        for name in rng.sample(COMMANDS, each):
            renew(workdir, whole[kind])
            files = sorted(path for path in workdir.rglob("*") if path.is_file())
            file = random.Random(seed + i).choice(files)
            what = f"{kind}, {file.relative_to(workdir)}: {change(file, random.Random(seed + i))}"
            answer = commands.ask(name)
            verdict = judged(answer, expected[kind, name])
            if verdict == "equal" and name == "resume" and not arrays_equal(workdir, whole["finished"]):
                verdict = "told" if is_told(answer) else "silent"
            verdicts[verdict] += 1
            if verdict in ("silent", "traceback"):
                faults.append(f"{verdict}: {name} of {what}: {answer.said[-400:]}")
                print(faults[-1], file=sys.stderr, flush=True)
        if (i + 1) % 10 == 0:
            print(f"{i + 1}/{n} {dict(verdicts)}", file=sys.stderr, flush=True)
    return verdicts, faults


def judged(answer: Answer, expected: Answer) -> str:
    if answer.traceback:
        return "traceback"
    if answer.code == 0 and answer.gave == expected.gave:
        return "equal"
    return "told" if is_told(answer) else "silent"


def renew(workdir: Path, whole: Path) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(whole, workdir)


def draw(photos: Path) -> None:
    import numpy as np
    from PIL import Image

    photos.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)):
        Image.fromarray(image).save(photos / f"{i}.png")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=len(COMMANDS), help="so many of the five for each damage")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["CHAOS_SECONDS"] = "0"
        verdicts, faults = damage(flags.n, flags.config, flags.seed, Path(folder), flags.commands)
    row: dict[str, Any] = {"damages": flags.n, **{v: verdicts[v] for v in ("equal", "told", "silent", "traceback")}}
    print("| " + " | ".join(row) + " |\n|" + "---:|" * len(row) + "\n| " + " | ".join(map(str, row.values())) + " |")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
