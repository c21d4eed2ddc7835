"""What a person sees while a run trains: a live bar on a terminal, plain lines in a log file."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import SupportsFloat

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vit_jax.human import human_seconds
from vit_jax.log.tables import metric_value
from vit_jax.metrics import METRICS

REDRAWS_PER_SECOND = 2
SECONDS_BETWEEN_LINES = 10
LINES_PER_HEADER = 20
STARTING = "starting ..."
WIDTHS = {"loss": 7, "lr": 8, "images/s": 8}  # of columns
WIDTH = 8  # of others


class Pace:
    """Seconds per step over the last log steps, from the end of this process's first step: compiling is no step.

    Pauses between steps (evaluation, saving) count: they will come again before the end. The first step may be noted
    twice: when it was dispatched, and when it ended.
    """

    def __init__(self, *, total_steps: int, start_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_steps = total_steps
        self._start_step = start_step
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque(maxlen=17)
        self.seconds_per_step = math.nan  # until two marks are there

    @property
    def started(self) -> bool:
        return bool(self._marks)

    def mark(self, step: int) -> None:
        """Notes that `step` has just ended; steps that are noted already or lie before the start are ignored."""
        if len(self._marks) == 1 and step == self._marks[0][0]:
            self._marks.clear()
        if step <= (self._marks[-1][0] if self._marks else self._start_step):
            return
        self._marks.append((step, self._clock()))
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        if last_step > first_step:
            self.seconds_per_step = (last_time - first_time) / (last_step - first_step)

    def seconds_left(self, step: int) -> float:
        """Time until the last step ends, nan where the pace is not known yet."""
        remaining = max(0, self.total_steps - step)
        return remaining * self.seconds_per_step if remaining else 0.0


class Progress:
    """Context manager that shows how training proceeds.

    On a terminal: a bar with the latest metrics below it, redrawn twice a second by its own thread, and permanent lines
    above it. Elsewhere (`nohup`, CI, a batch queue): a line of text per log step, but at most one in ten seconds, and
    one without metrics where steps are so slow that there was none for `every_seconds` (0: however long).

    total_steps, start_step: of the whole run, and those done before this process; images_per_step: the global batch.
    metrics: of training, which have columns. monitor: the metric that ranks checkpoints.
    active: False, for all processes but the first, shows nothing.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int,
        steps_per_epoch: int,
        images_per_step: int,
        every_seconds: float = 0.0,
        metrics: Sequence[str] = ("loss", "accuracy"),
        monitor: str = "",
        console: Console | None = None,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._monitor = metrics, monitor
        self._columns = [*(METRICS[name].short for name in metrics), "lr", "images/s"]
        self._total_steps, self._start_step = total_steps, start_step
        self._steps_per_epoch = steps_per_epoch
        self._images_per_step = images_per_step
        self._every_seconds = every_seconds
        self._console = (console or Console(highlight=False)) if active else Console(quiet=True, force_terminal=False)
        self._clock = clock
        self._started_at = clock()
        self._pace = Pace(total_steps=total_steps, start_step=start_step, clock=clock)
        self._step = start_step
        self._values: dict[str, str] = {}
        self._lines = 0
        self._last_line_at = -math.inf
        self._shown_at = self._started_at
        self._live = None
        if self._console.is_interactive:
            self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=REDRAWS_PER_SECOND)

    def __enter__(self) -> "Progress":
        self._started_at = self._shown_at = self._clock()
        if self._live:
            self._live.start()
        else:
            self.say(STARTING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def expect(self, total_steps: int) -> None:
        """Corrects how many steps the run will have."""
        self._total_steps = self._pace.total_steps = total_steps

    def advance(self, step: int) -> None:
        """Notes that `step` was dispatched; call it at every step: it formats and draws nothing."""
        self._step = step
        if not self._pace.started:
            self._pace.mark(step)

    def finished(self, step: int) -> None:
        """Notes that `step` has ended; shows it, and how fast steps are, if nothing was shown for `every_seconds`."""
        if step <= self._start_step:  # before this process; its metrics were saved
            return
        if step == self._start_step + 1:
            self._pace.mark(step)
        now = self._clock()
        if not self._every_seconds or now - self._shown_at < self._every_seconds:
            return
        self._step, self._shown_at = step, now
        self._pace.mark(step)
        speed = self._format({})
        self._values |= speed
        if self._live is None:
            self._print_row(speed)

    def update(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Shows the metrics of a log step, lr and images_per_second, each with or without `train/`.

        Without images_per_second, the pace of the last log steps stands in for it.
        """
        self._step, self._shown_at = step, self._clock()
        self._pace.mark(step)
        self._values = self._format(_without_prefix(scalars))
        if self._live is None:
            self._print_line()

    def evaluation(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Prints a line that stays: `epoch 3  step 300  val loss 0.3100  acc 91.20 %`."""
        split = next(iter(scalars), "").rpartition("/")[0]
        values = _without_prefix(scalars)
        shown = [name for name, metric in METRICS.items() if metric.brief or name == self._monitor]
        known = sorted((name for name in shown if name in values), key=lambda name: name != "loss")
        texts = [f"{METRICS[name].short} {metric_value(name, values[name])}" for name in known]
        epoch, last_epoch = self._epoch(step), self._epoch(self._total_steps)
        line = Text(f"epoch {epoch:>{_digits(last_epoch)}}  step {step:>{_digits(self._total_steps)}}  ")
        line.append(" ".join(filter(None, [split, "  ".join(texts)])), style="bold")
        self._print(line)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(Text(text))

    def warn(self, text: str) -> None:
        """Prints a warning that stays, wrapped beside its label."""
        warning = Table.grid(padding=(0, 2))
        warning.add_row(Text("warning", style="bold yellow"), Text(text))
        self._print(warning)

    def _print(self, line: Text | Table) -> None:
        # A log file keeps a line of text whole, however long; the terminal wraps it between words.
        self._console.print(line, soft_wrap=self._live is None and isinstance(line, Text))

    def _epoch(self, step: int) -> int:
        """The epoch that `step` belongs to, from 1."""
        return max(1, math.ceil(step / self._steps_per_epoch))

    def _format(self, scalars: Mapping[str, float]) -> dict[str, str]:
        seconds = self._pace.seconds_per_step
        rate = scalars.get("images_per_second", self._images_per_step / seconds if seconds else math.nan)
        values = {
            **{METRICS[k].short: metric_value(k, scalars[k]) for k in self._metrics if k in scalars},
            "lr": f"{scalars['lr']:.2e}" if "lr" in scalars else "",
            "images/s": "" if not math.isfinite(rate) else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        }
        return {name: value for name, value in values.items() if value}

    def _time_left(self) -> str:
        """Empty while the pace is unknown."""
        seconds = self._pace.seconds_left(self._step)
        return human_seconds(seconds) if math.isfinite(seconds) else ""

    def _print_line(self) -> None:
        """The latest metrics, unless the last line was just before."""
        now = self._clock()
        if now - self._last_line_at < SECONDS_BETWEEN_LINES and self._step < self._total_steps:
            return
        self._last_line_at = now
        self._print_row(self._values)

    def _print_row(self, values: Mapping[str, str]) -> None:
        """A row of a table that has no end: its header comes again every now and then."""
        columns = [
            ("step", 2 * _digits(self._total_steps) + 1, f"{self._step}/{self._total_steps}"),
            ("epoch", 5, str(self._epoch(self._step))),
            *((name, WIDTHS.get(name, WIDTH), values.get(name, "")) for name in self._columns),
            ("time left", 11, self._time_left()),
        ]
        if self._lines % LINES_PER_HEADER == 0:
            self.say("  ".join(f"{name:>{width}}" for name, width, _ in columns))
        self._lines += 1
        self.say("  ".join(f"{value:>{width}}" for _, width, value in columns))

    def _draw(self) -> Group:
        """The live part, in two lines of constant layout: bar and counters; the latest metrics."""
        done, left = self._step >= self._total_steps, self._time_left()
        elapsed = human_seconds(self._clock() - self._started_at)
        share = math.floor(100 * self._step / max(1, self._total_steps))
        steps, epochs = _digits(self._total_steps), _digits(self._epoch(self._total_steps))
        counters = Text(f"{share:>5} %", style="bold", no_wrap=True)
        counters.append(f"  step {self._step:>{steps}}/{self._total_steps}", style="not bold")
        counters.append(f"  epoch {self._epoch(self._step):>{epochs}}", style="not bold")
        time_shown = f"in {elapsed}" if done else f"{left} left" if left else elapsed
        counters.append(f"{time_shown:>18}", style="not bold green" if done else "not bold cyan")
        line = Table.grid(expand=True)
        line.add_column(ratio=1)
        line.add_row(
            ProgressBar(
                total=max(1, self._total_steps), completed=self._step, complete_style="cyan", finished_style="green"
            ),
            counters,
        )
        return Group(line, self._draw_values())

    def _draw_values(self) -> Text:
        if not self._pace.started:
            return Text(STARTING, style="dim", no_wrap=True)
        line = Text(no_wrap=True, overflow="ellipsis")
        for name, value in self._values.items():
            line.append(f"{name} ", style="dim")
            line.append(f"{value:<{WIDTHS.get(name, WIDTH)}}  ")
        return line


def _without_prefix(scalars: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """`train/loss` -> `loss`."""
    return {name.rpartition("/")[2]: float(value) for name, value in scalars.items()}


def _digits(n: int) -> int:
    return len(str(n))
