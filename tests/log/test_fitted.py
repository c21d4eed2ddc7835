"""Tables for terminals of any width: whole names, and the important columns."""

import io

import pytest
from rich.console import Console

from vit_jax import log

HEADER = ("run", "size", "time", "top-1")
ROWS = [("a-name of one [5] run", "17 k", "3 s", "91.00 %"), ("another", "5 k", "10 min 05 s", "7.00 %")]


def printed(width: int, rows=ROWS) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    log.fitted_table(console, HEADER, rows, important=("top-1", "time"))
    return console.file.getvalue().splitlines()


def test_all_columns_beside_their_names():
    assert printed(51) == [
        "run                    size         time    top-1",
        "a-name of one [5] run  17 k          3 s  91.00 %",
        "another                 5 k  10 min 05 s   7.00 %",
    ]


@pytest.mark.parametrize("width", [48, 30])
def test_names_above_their_rows(width):
    lines = printed(width)
    assert lines[:6] == [
        "run",
        "  size         time    top-1",
        "a-name of one [5] run",
        "  17 k          3 s  91.00 %",
        "another",
        "   5 k  10 min 05 s   7.00 %",
    ]


def test_the_important_columns_stay_longest():
    assert printed(27)[1] == "         time    top-1"
    assert printed(9)[1::2] == ["    top-1", "  91.00 %", "   7.00 %"]
    assert printed(3)[:4] == ["run", "    top-1", "a-name of one [5] run", "  91.00 %"]
    assert printed(9)[-1] == "left out for lack of width: size, time"


def test_three_of_more_columns_are_enough_beside_the_names():
    console = Console(file=io.StringIO(), width=20)
    log.fitted_table(console, ("run", "a", "b", "c", "d", "e", "f"), [("long name", *"123456")], important=("e",))
    assert console.file.getvalue().splitlines()[:2] == ["run        a  b  e", "long name  1  2  5"]


def test_a_row_may_have_a_style():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system="standard")
    log.fitted_table(console, HEADER, ROWS, styles=("", "red"))
    title, plain, styled = console.file.getvalue().splitlines()
    assert title.startswith("\x1b[1m") and plain.startswith("a-name") and styled.startswith("\x1b[31manother")
