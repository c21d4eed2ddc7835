"""Compiled programs on disk: the second start of a run, a resumed one, an evaluation need not compile again."""

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled() -> Path:
    """Makes JAX keep what took more than a second to compile, and read it again; the folder.

    It is JAX_COMPILATION_CACHE_DIR where that is set, else a folder of this kind of processor in the user's cache:
    programs compiled for a processor's instructions are useless on another that shares the home directory. The folder
    may be deleted at any time; JAX_ENABLE_COMPILATION_CACHE=false uses none.
    """
    # A process that is killed may leave half a program there, which JAX compiles again and warns of at each start.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "vit_jax" / "compiled" / processor()
    os.environ[VARIABLE] = str(folder)  # which JAX reads when it is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))
    return folder


@contextlib.contextmanager
def keeping(wanted: bool) -> Iterator[None]:
    """Whether what is compiled in this block is kept, and read where it was.

    A compiler without its device must not: JAX keeps what it made and cannot read it again, and says so at each start.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", before and wanted)
    compilation_cache.reset_cache()  # JAX decides once per process otherwise
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def processor() -> str:
    """This machine's: its family, and what it can do in eight hexadecimal digits, x86_64-1f2e3d4c."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    known = sorted({line for line in lines if line.startswith(("flags", "Features", "model name")) or len(lines) == 1})
    instructions = hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{instructions}"
