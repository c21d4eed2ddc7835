"""Ctrl-C while a command imports its libraries, or ends: one line and exit code 130, whatever Python is in."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT


def is_command(words: list[str]) -> bool:
    """Whether Python was started for a command of ours: `python -m vit_jax.main`, or the console script."""
    modules = [word for flag, word in zip(words, words[1:], strict=False) if flag == "-m"]
    return any(name.split(".")[0] == "vit_jax" for name in modules) or "vit_jax" in map(os.path.basename, words[:2])


def end_at_once() -> None:
    """From now on Ctrl-C ends the process, where nobody else has a say in that."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _raise:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, as it does in any Python program.

    Where Python ignores what is raised, in a callback of its garbage collector (JAX has one), it is raised again.
    Where a save failed, as on a full disk, TensorStore tells of a file written later to a loop of asyncio that is
    closed by then. Nothing waits for it: Python says nothing of it, either.
    """
    global _others
    if sys.unraisablehook is not _unraisable:
        _others, sys.unraisablehook = sys.unraisablehook, _unraisable
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def _unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    if ignored.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    elif not (ignored.object is None and str(ignored.exc_value) == "Event loop is closed"):
        _others(ignored)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"interrupted\n")
    os._exit(EXIT_CODE)


_raise = signal.default_int_handler
_others: Callable[["sys.UnraisableHookArgs"], object] = sys.unraisablehook  # who is told of other exceptions
