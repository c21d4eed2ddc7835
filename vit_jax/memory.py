"""Host memory of a machine without accelerators: how much there is, and kept instead of returned after each step."""

import ctypes
import os
import sys
from pathlib import Path

from vit_jax import platforms

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h
NEVER = 2**31 - 1
MUCH = 1 / 8  # of the machine's memory
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def installed() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if that is less; else no bound."""
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER.read_text().strip() if CONTAINER.exists() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine


def resident() -> int:
    """Bytes of memory that this process holds; 0 outside Linux."""
    counts = Path("/proc/self/statm")
    return int(counts.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if counts.exists() else 0


def keep_freed() -> bool:
    """Makes glibc's malloc keep what is freed; whether it did. Call it before a device is touched.

    XLA's CPU step takes its temporary buffers, hundreds of MB, from malloc and frees them at its end. By default they
    go back to the system, and each step maps, faults in and zeroes every page again: 43 % of the time of a small ViT's
    training was system time. With one heap that is never trimmed, the same step runs 1.7 times as fast (2 cores, 6
    blocks of width 64, batch 128: 904 instead of 513 images/s, medians of interleaved runs).
    """
    if sys.platform != "linux" or platforms.has_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    options = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: 64 * 2**20}
    return all([mallopt(option, value) for option, value in options.items()])


class Gaps:
    """Gives gaps in the heap back to the system once they are as large as what a step needs while it runs.

    With a few small things in the gap that a step's temporary buffer left, the next one does not fit there and takes
    new memory: a process held three times what its step needs (CCT-7/3x1, batch 128: 17 GB instead of 7).
    """

    def __init__(self, step_bytes: int) -> None:
        self.step_bytes = step_bytes
        self._held = 0  # after the first step since gaps were given back

    def after_step(self) -> bool:
        """Looks, while no step runs; whether something was given back."""
        held = resident()
        if not self._held:
            self._held = held
        if held < self._held + self.step_bytes / 2 or not give_back_much():
            return False
        self._held = 0
        return True


def is_much(size: int) -> bool:
    """Whether so many bytes are `MUCH` of what is installed."""
    return size > MUCH * installed()


def give_back_much() -> bool:
    """Gives what malloc keeps back to the system where the process holds `MUCH`; whether it did.

    For now and then: after evaluations and checkpoints, which leave gaps, and by `Gaps`. The next step maps, faults in
    and zeroes its pages again.
    """
    if sys.platform != "linux" or platforms.has_accelerator() or not is_much(resident()):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    return trim is not None and bool(trim(0))
