"""Host memory of a machine without accelerators: kept by the process instead of returned after each step."""

import ctypes
import sys

from vit_jax import platforms

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h
NEVER = 2**31 - 1


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
