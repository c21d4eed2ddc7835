"""The watchdog shows the stacks once where a step stands still, and says nothing of pauses and of a slow beginning."""

import os
import subprocess
import sys

from vit_jax.watchdog import Watchdog

STALLS = """
import logging, sys, time
from vit_jax import watchdog
watchdog.LEAST_SECONDS = 0.2
logging.basicConfig(format="%(message)s")
dog = watchdog.Watchdog()
for at in range(10):
    time.sleep(0.001)
    dog.step(at)

def waits_for_a_peer():
    time.sleep(float(sys.argv[1]))

waits_for_a_peer()
dog.step(10)
dog.pause()
time.sleep(0.5)
"""


def stalled(seconds: float) -> str:
    words = [sys.executable, "-c", STALLS, str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
    return done.stderr


def test_a_step_that_stands_still_shows_what_each_thread_does():
    said = stalled(1.5)
    assert said.count("the median is") == 1 and said.startswith("step 10 has taken ")
    assert "in waits_for_a_peer" in said


def test_steps_as_usual_and_the_first_ones_are_not_overdue(monkeypatch):
    from vit_jax import watchdog

    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog = Watchdog(active=False)
    for at in range(9):
        dog.step(at)
        now[0] += 10.0
        assert dog.overdue() == 0.0, "of a few steps nothing is usual"
    dog.step(9)
    now[0] += 99.0
    assert dog.overdue() == 0.0
    now[0] += 2.0
    assert dog.overdue() == 101.0
    dog.pause()
    assert dog.overdue() == 0.0
