"""Progress is exact, fits 80 columns, and is plain text where it must be."""

import math
import re

import pytest

from vit_jax import log
from vit_jax.log.progress import Pace

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_time_left_is_remaining_steps_times_recent_pace(clock):
    pace = Pace(total_steps=1000, start_step=0, clock=clock)
    assert math.isnan(pace.seconds_left(0))
    clock.now = 60  # compiling took a minute, which says nothing about the steps to come
    pace.mark(1)
    assert math.isnan(pace.seconds_left(1))
    clock.now = 60 + 49 * 2
    pace.mark(50)
    assert pace.seconds_left(50) == 950 * 2
    assert pace.seconds_left(1000) == 0


def test_time_left_after_a_resume_ignores_the_steps_before(clock):
    pace = Pace(total_steps=1000, start_step=900, clock=clock)
    pace.mark(900)
    assert not pace.started
    for step in (901, 951):
        clock.now += 5
        pace.mark(step)
    assert pace.seconds_left(951) == pytest.approx(49 * 5 / 50)


def test_time_left_follows_a_change_of_pace(clock):
    pace = Pace(total_steps=100, start_step=0, clock=clock)
    for step in range(1, 61):
        clock.now += 10 if step <= 30 else 1
        pace.mark(step)
    assert pace.seconds_left(60) == 40


# Progress


def progress(console, clock, total_steps=1000, start_step=0, **options):
    return log.Progress(
        total_steps=total_steps,
        start_step=start_step,
        steps_per_epoch=100,
        images_per_step=64,
        console=console,
        clock=clock,
        **options,
    )


METRICS = {"train/loss": 2.30123, "train/accuracy": 0.125, "train/lr": 1e-3}


def run(shown, clock, steps, every=50, seconds=1.0, scalars=METRICS):
    with shown:
        for step in steps:
            clock.now += seconds
            shown.advance(step)
            if step % every == 0:
                shown.update(step, scalars)


def test_plain_lines_align_under_their_header(plain, clock):
    run(progress(plain.console, clock), clock, range(1, 101))
    assert plain.lines == [
        "starting ...",
        "     step  epoch     loss       acc        lr  images/s    time left",
        "  50/1000      1   2.3012   12.50 %  1.00e-03      64.0  15 min 50 s",
        " 100/1000      1   2.3012   12.50 %  1.00e-03      64.0  15 min 00 s",
    ]


def test_given_images_per_second_come_first(plain, clock):
    run(progress(plain.console, clock), clock, range(1, 51), scalars=METRICS | {"train/images_per_second": 12345.6})
    assert "12,346" in plain.lines[-1]


def test_plain_lines_come_at_most_every_ten_seconds_but_first_and_last(plain, clock):
    run(progress(plain.console, clock, total_steps=250), clock, range(1, 251), every=10, seconds=0.3)  # 3 s a log step
    shown = [line.split("/")[0].strip() for line in plain.lines[2:]]
    assert shown == ["10", "50", "90", "130", "170", "210", "250"]


def slow(shown, clock, steps, seconds=30.0):
    """Steps of which two are in flight: each is dispatched when that before the last has ended."""
    with shown:
        for number, step in enumerate(steps, 1):
            if number > 2:
                clock.now += seconds
                shown.finished(step - 2)
            shown.advance(step)


def test_slow_steps_are_shown_before_there_are_metrics(plain, clock):
    """The first step tells no pace, and is itself none: it was dispatched, and then took as long as the others."""
    slow(progress(plain.console, clock, every_seconds=60.0), clock, range(1, 10))
    assert plain.lines[1:] == [
        "     step  epoch     loss       acc        lr  images/s    time left",
        "   2/1000      1                                    2.1   8 h 19 min",
        "   4/1000      1                                    2.1   8 h 18 min",
        "   6/1000      1                                    2.1   8 h 17 min",
    ]


def test_slow_steps_are_counted_from_where_a_run_resumed(plain, clock):
    shown = progress(plain.console, clock, start_step=5, every_seconds=100.0)
    slow(shown, clock, range(6, 12))
    assert [line.split()[:3] for line in plain.lines[2:]] == [["9/1000", "1", "2.1"]]


@pytest.mark.parametrize("every_seconds", [0.0, 1e6])
def test_slow_steps_are_shown_no_more_often_than_asked(plain, clock, every_seconds):
    slow(progress(plain.console, clock, every_seconds=every_seconds), clock, range(1, 10))
    assert plain.lines == ["starting ..."]


def test_metrics_that_were_just_shown_stand_for_the_time(plain, clock):
    shown = progress(plain.console, clock, every_seconds=60.0)
    with shown:
        shown.advance(1)
        for step, metrics in ((1, False), (2, True), (3, False), (4, False), (5, False)):
            clock.now += 30
            shown.update(step, METRICS) if metrics else shown.finished(step)
    assert [line.split()[:2] for line in plain.lines[2:]] == [["2/1000", "1"], ["4/1000", "1"]]
    assert "2.3012" in plain.lines[2] and "2.3012" not in plain.lines[3]


def test_the_terminal_keeps_its_metrics_beside_the_speed_of_slow_steps(terminal, clock):
    shown = progress(terminal.console, clock, every_seconds=60.0)
    with shown:
        shown.advance(1)
        clock.now += 30
        shown.update(1, METRICS)
        clock.now += 64
        shown.finished(2)
    assert re.search(r"loss 2\.3012 .* images/s 1\.0 ", CONTROL.sub("", terminal.text))


def test_the_plain_header_comes_again(plain, clock):
    run(progress(plain.console, clock), clock, range(1, 26), every=1, seconds=11)
    assert [i for i, line in enumerate(plain.lines) if "time left" in line] == [1, 22]


def test_plain_mode_prints_no_control_characters(plain, clock):
    with progress(plain.console, clock) as shown:
        shown.update(50, METRICS)
        shown.evaluation(50, {"val/loss": 0.31, "val/accuracy": 0.912})
        shown.warn("careful")
    assert re.findall(r"[^\x20-\x7e\n]", plain.text) == []


def test_evaluation_prints_one_line_at_once(plain, clock):
    shown = progress(plain.console, clock)
    shown.evaluation(300, {"val/loss": 0.31, "val/accuracy": 0.912, "val/ece": 0.5})
    shown.evaluation(1000, {"val/loss": 0.2, "val/accuracy": 1.0})
    assert plain.lines == [
        "epoch  3  step  300  val loss 0.3100  acc 91.20 %",
        "epoch 10  step 1000  val loss 0.2000  acc 100.00 %",
    ]


def test_text_with_brackets_is_printed_as_it_is(plain, clock):
    shown = progress(plain.console, clock)
    shown.say("skipped [bold]image[/bold] [3]")
    shown.warn("labels [red] and [/] remain")
    assert plain.lines == ["skipped [bold]image[/bold] [3]", "warning  labels [red] and [/] remain"]


def test_long_text_stays_one_line_in_a_log_file(plain, clock):
    progress(plain.console, clock).say("word " * 40 + "end")
    assert len(plain.lines) == 1


@pytest.mark.parametrize("mode", ["plain", "terminal"])
def test_large_numbers_fit_80_columns(request, mode, clock):
    recorder = request.getfixturevalue(mode)
    shown = progress(recorder.console, clock, total_steps=1_000_000, start_step=899_999)
    steps = range(900_000, 900_101)
    scalars = {"loss": 1234.5, "accuracy": 1.0, "lr": 1.25e-10, "images_per_second": 1_234_567}
    run(shown, clock, steps, seconds=2, scalars=scalars)
    shown.evaluation(900_100, {"val/loss": 12.5, "val/accuracy": 1.0, "val/top5": 1.0})
    text = CONTROL.sub("", recorder.text)
    assert max(map(len, re.split(r"[\r\n]+", text))) <= 80
    for part in ("900100/1000000", "2 d 08 h", "1234", "100.00 %", "1.25e-10", "1,234,567", "top-5 100.00 %"):
        assert part in text
    assert "…" not in text


def test_the_live_part_has_two_lines_and_ends_green_with_the_time_it_took(terminal, clock):
    run(progress(terminal.console, clock, total_steps=100), clock, range(1, 101))
    last = CONTROL.sub("", terminal.text).replace("\r", "\n").strip().splitlines()[-2:]
    assert re.fullmatch(r"━+  100 %  step 100/100  epoch 1 +in 1 min 40 s", last[0])
    assert len(last[0]) == 80
    assert " ".join(last[1].split()) == "loss 2.3012 acc 12.50 % lr 1.00e-03 images/s 64.0"


def test_the_terminal_says_that_it_compiles(terminal, clock):
    with progress(terminal.console, clock, start_step=500):
        pass
    text = CONTROL.sub("", terminal.text)
    assert "50 %" in text
    assert "starting ..." in text


def test_an_interrupted_terminal_gets_its_cursor_back(terminal, clock):
    with pytest.raises(KeyboardInterrupt), progress(terminal.console, clock):
        raise KeyboardInterrupt
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # shown after hidden


def test_an_inactive_progress_prints_nothing(plain, terminal, clock):
    for recorder in (plain, terminal):
        shown = progress(recorder.console, clock, active=False)
        run(shown, clock, range(1, 101))
        shown.evaluation(100, {"val/loss": 1.0})
        shown.say("a")
        shown.warn("b")
        assert recorder.text == ""
