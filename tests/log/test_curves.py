"""Curves in the terminal."""

import io

import numpy as np
from rich.console import Console

from vit_jax import log
from vit_jax.log import curves

LINES = [{"step": s, "train/loss": 2.0 / s, "train/accuracy": s / 20} for s in range(1, 21)]
LINES += [{"step": s, "val/loss": 2.5 / s, "val/accuracy": s / 25} for s in (10, 20)]


def printed(lines, monitor="accuracy", encoding="utf-8", width=100):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    log.print_curves(Console(file=file, width=width), lines, monitor)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_both_plots_stand_side_by_side_with_their_ends():
    text = printed(LINES)
    assert "\x1b" not in text  # piped: no colour
    first, *rest = [line.rstrip() for line in text.strip("\n").splitlines()]
    assert first.split() == ["loss", "train", "val", "accuracy", "train", "val"]
    assert rest[0].startswith("2.0000 ⡇") or rest[0].startswith("2.0000 ")
    assert "100.00 %" in rest[0] and "5.00 %" in rest[7] and len(rest) == 9
    assert rest[8].split() == ["1", "20", "1", "20"]
    assert max(map(len, rest)) <= 100


def test_a_narrow_terminal_has_them_one_over_another():
    lines = printed(LINES, width=50).strip("\n").splitlines()
    assert [line.split()[0] for line in (lines[0], lines[10])] == ["loss", "accuracy"]
    assert max(map(len, (line.rstrip() for line in lines))) <= 50


def test_without_unicode_stars_are_drawn():
    text = printed(LINES, encoding="ascii")
    assert "*" in text and text.isascii()


def test_a_falling_line_falls_from_corner_to_corner():
    for unicode in (True, False):
        canvas = curves._canvas((np.array([0.0, 9.0]), np.array([5.0, 1.0])), (0.0, 9.0), (1.0, 5.0), 20, unicode)
        assert canvas.shape == (curves.HEIGHT, 20) and canvas[0, 0] and canvas[-1, -1]
        assert not canvas[0, -1] and not canvas[-1, 0] and (canvas > 0).any(axis=0).all()


def test_nothing_is_printed_of_a_single_point_or_of_none():
    assert printed([]) == printed([{"step": 1, "train/loss": 2.0}]) == printed([{"step": 1, "x": 2.0}] * 2) == ""


def test_values_that_are_not_finite_and_equal_values_are_no_trouble():
    text = printed([{"step": s, "train/loss": np.nan if s == 2 else 1.0} for s in (1, 2, 3)], monitor="loss")
    assert text.count("1.0000") == 2
