"""Freed memory stays with the process: buffers that are taken again cost no page faults."""

import os
import subprocess
import sys

import pytest

from vit_jax import memory, platforms

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")

PROGRAM = """
import resource, sys
import numpy as np
from vit_jax import memory
kept = memory.keep_freed() if sys.argv[1] == "keep" else False
faults = []
for _ in range(5):
    np.full(2**23, 7.0)  # 64 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(kept, (faults[-1] - faults[1]) // 3)
"""


GIVEN_BACK = """
import numpy as np
from vit_jax import memory
memory.keep_freed()
large = np.full(2**25, 7.0)  # 256 MiB
pin = np.full(2**17, 7.0)  # above it: the gap below cannot be given back by a shorter heap
del large
before = memory.resident()
assert not memory.give_back_much() and memory.resident() >= before  # little, for this machine
memory.MUCH = 0.0
print(memory.give_back_much(), (before - memory.resident()) // 2**20, pin[-1])
"""


GAPS = """
import sys
import numpy as np
from vit_jax import memory
memory.keep_freed()
memory.MUCH = float(sys.argv[1])
gaps, pins, given_back, before = memory.Gaps(2**28), [], 0, memory.resident()
for _ in range(6):
    step = np.full(2**25, 7.0)  # 256 MiB
    pins.append(np.full(2**17, 7.0))  # above it
    del step
    pins.append(np.full(2**17, 7.0))  # in its gap, where the next one then does not fit
    given_back += gaps.after_step()
print(given_back, (memory.resident() - before) // 2**20)
"""


def printed(program: str, *words: str) -> list[str]:
    """What a program prints in a process of its own, whose heap is new."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@on_linux
def test_a_buffer_taken_again_costs_no_page_faults():
    (kept, faults), (_, faults_before) = printed(PROGRAM, "keep"), printed(PROGRAM, "leave")
    assert kept == "True"
    assert int(faults) < 100 and 10 * int(faults) < int(faults_before)  # 16,384 pages, or 32 huge ones


@on_linux
def test_a_process_that_holds_much_gives_gaps_back():
    given_back, size, pin = printed(GIVEN_BACK)
    assert given_back == "True" and 250 <= int(size) < 300 and pin == "7.0"


@on_linux
@pytest.mark.parametrize(("much", "times", "held"), [("0", 1, 256), ("0.99", 0, 512)], ids=["much", "little"])
def test_gaps_are_given_back_once_they_are_as_large_as_a_step(much, times, held):
    given_back, size = map(int, printed(GAPS, much))
    assert given_back == times and held <= size < held + 64


def test_machines_with_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(platforms, "has_accelerator", lambda: True)
    assert memory.keep_freed() is False and memory.give_back_much() is False


def test_a_container_has_no_more_memory_than_its_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    machine = memory.installed()
    assert machine == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 2**28
    for limit, expected in {"max\n": machine, "1048576\n": 2**20, f"{2 * machine}\n": machine}.items():
        memory.CONTAINER.write_text(limit)
        assert memory.installed() == expected
    monkeypatch.delattr(os, "sysconf")
    assert memory.installed() == sys.maxsize
