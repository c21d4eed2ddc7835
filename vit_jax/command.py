"""What every command shares: the user's errors, exit codes, and the flags --config, --workdir and --data_dir."""

import argparse
import codecs
import contextlib
import errno
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vit_jax import compilation, interrupt, memory, platforms

DONE, FAULT, USER_MISTAKE = 0, 1, 2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
FILES = 2**16  # open at once, at most
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class UserError(ValueError):
    """A mistake of the user's: says in one line what was given, what was expected and what to do."""


class Failure(RuntimeError):
    """A fault of the machine, such as a full disk: says in one line what is lost and what to do."""


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command and exits with its code; a `UserError` becomes one line and code 2, a `Failure` one and 1."""
    _write_utf8()
    logging.basicConfig(format="%(message)s", force=True)
    memory.keep_freed()
    _allow_many_files()
    platforms.skip_missing_accelerator()
    compilation.keep_compiled()
    interrupt.raise_again()
    try:
        code = main(sys.argv[1:])
    except UserError as mistake:
        code = _say(mistake, USER_MISTAKE)
    except Failure as failure:
        code = _say(failure, FAULT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader went away: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f"{error.filename} " if error.filename else ""
        code = _say(f"{where}cannot be written: {error.strerror}; make room, and give the same command again", FAULT)
    interrupt.end_at_once()
    sys.stdout.flush()
    sys.exit(code)


def _say(mistake: object, code: int) -> int:
    try:
        print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr, flush=True)
    except OSError:  # a log on the full disk: what waits for it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code


def _write_utf8() -> None:
    """Names of classes and files may hold any letter, though the locale (LANG=C) knows ASCII alone."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _allow_many_files() -> None:
    """As many open files as the system allows: a prepared data set has one for each of its shards, often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Parser(argparse.ArgumentParser):
    """An argument parser that gathers `--config.<field>=<value>` overrides and raises `UserError` for the rest."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and the overrides as `<field>=<value>` strings in the order given."""
        overrides, rest = [], []
        words = iter(argv)
        for word in words:
            if not word.startswith("--config."):
                rest.append(word)
                continue
            if "=" not in word:  # `--config.train.epochs 3`
                value = next(words, None)
                if value is None:
                    raise UserError(f"{word} has no value; write {word}=VALUE")
                word = f"{word}={value}"
            overrides.append(word.removeprefix("--config."))
        return self.parse_args(rest), overrides

    def add_data_dir(self) -> None:
        self.add_argument(
            "--data_dir",
            default="",
            help="folder of prepared data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
        )


class Interruption:
    """Notes SIGTERM and Ctrl-C instead of dying, so that the loop can save; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._old: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        return {signal.SIGTERM: TERMINATED, signal.SIGINT: INTERRUPTED}[signal.Signals(self.signal)]

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in self._old:
            signal.signal(other, signal.SIG_DFL)


def data_dir(given: str = "") -> Path:
    """The folder of prepared data sets: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.path.expanduser(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))
