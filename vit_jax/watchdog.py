"""A watchdog of training steps: where one takes far longer than the others, it shows what each thread is doing."""

import faulthandler
import logging
import statistics
import sys
import threading
import time
from collections import deque

FACTOR = 10  # of the median step
LEAST_SECONDS = 30.0  # shorter pauses are a busy machine's
RECENT, BEFORE_FIRST = 128, 8  # steps that the median is of; as many as there must be


class Watchdog:
    """Watches from a thread of its own; `step` and `pause` cost the loop nothing."""

    def __init__(self, active: bool = True) -> None:
        self._took: deque[float] = deque(maxlen=RECENT)
        self._since: float | None = None  # when the step that runs began; None: none runs
        self._step = 0
        self._told = -1
        self._ended = threading.Event()
        if active:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step(self, at: int) -> None:
        """Notes that the loop has come to the end of a step, and begins with the next one."""
        now = time.monotonic()
        if self._since is not None:
            self._took.append(now - self._since)
        self._since, self._step = now, at + 1

    def pause(self) -> None:
        """Notes that no step runs: an evaluation may take as long as it likes."""
        self._since = None

    def close(self) -> None:
        self._ended.set()

    def overdue(self) -> float:
        """Seconds that the step takes by now, if that is far more than usual; else 0."""
        since, took = self._since, list(self._took)
        if since is None or len(took) < BEFORE_FIRST:
            return 0.0
        seconds = time.monotonic() - since
        return seconds if seconds > max(FACTOR * statistics.median(took), LEAST_SECONDS) else 0.0

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, LEAST_SECONDS / 4)):
            if (seconds := self.overdue()) and self._told != self._step:
                self._told = self._step
                text = "step %d has taken %.0f s, the median is %.2g s; what each thread is doing:"
                usual = statistics.median(list(self._took))
                logging.getLogger(__name__).warning(text, self._step, seconds, usual)
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
