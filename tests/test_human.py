"""Numbers with units."""

import math

import pytest

from vit_jax import log


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (425, "7 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86_399, "1 d 00 h"),
        (3 * 86_400 + 4 * 3600, "3 d 04 h"),
        (-1, "0 s"),
        (math.nan, "unknown"),
    ],
)
def test_human_seconds(seconds, text):
    assert log.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (2**20 - 1, "1.00 MiB"), (5.89 * 2**30, "5.89 GiB")],
)
def test_human_bytes(n, text):
    assert log.human_bytes(n) == text
