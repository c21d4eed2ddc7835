"""Bad input is answered in one line, or counted and left out: never a traceback, never a half-read file."""

import time
import warnings
from pathlib import Path

import pytest

from tests.bad_input import data, images, tars, weights
from tests.bad_input.case import READ, Case, table

CASES: list[Case] = [*images.CASES, *data.CASES, *tars.CASES, *weights.CASES]
PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
EXECUTED = Path("/tmp/vit_jax-was-executed")
SECONDS = 10


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.group}: {case.given}"[:90].encode("ascii", "replace").decode()
)
def test_one_clear_line(case: Case, tmp_path: Path):
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow and NumPy, about what they read
        found = case.found(tmp_path)
    assert time.process_time() - began < SECONDS
    assert not EXECUTED.exists()
    if case.answer == READ:
        assert found == READ
    else:
        assert found != READ and case.answer in found
        assert len(found.replace(str(tmp_path), "")) < 6000 and "Traceback" not in found


def test_there_are_enough():
    assert len(CASES) >= 120 and len({(case.group, case.given) for case in CASES}) == len(CASES)


def test_the_page_has_them_all():
    """Printed anew by `python -m tests.bad_input.test_bad_input`."""
    assert table(CASES) in PAGE.read_text(encoding="utf-8"), "docs/bad-input.md is old: print its tables anew"


if __name__ == "__main__":
    print(table(CASES))
