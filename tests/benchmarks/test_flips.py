"""The tool that damages files of a run: how it judges, and that no command is silent or ends in a traceback."""

import random
from collections import Counter

import jax
import pytest

from benchmarks import flips


@pytest.mark.parametrize(
    ("code", "said", "gave", "verdict"),
    [
        (-1, "error: KeyError: damaged", "", "traceback"),
        (2, "error: x.json cannot be read", "", "said"),
        (0, "checkpoint 3 is damaged", "7", "said"),
        (0, "all is well", "7", "harmless"),
        (0, "all is well", "8", "silent"),
        (1, "all is well", "", "silent"),
    ],
)
def test_the_verdict(code, said, gave, verdict):
    assert flips.judged(code, said, gave, "7") == verdict


def test_the_table_names_parts_of_checkpoints_and_adds_up(tmp_path):
    kinds = [flips.kind(tmp_path / name, tmp_path) for name in ("config.json", "checkpoints/23/state/d/a")]
    assert kinds == ["config.json", "checkpoints: state"]
    rows = flips.as_table({kinds[0]: Counter(damages=1, said=5), kinds[1]: Counter(damages=2, harmless=9, silent=1)})
    assert rows.splitlines()[2:] == [
        "| config.json | 1 | 5 | 0 | 0 | 0 |",
        "| checkpoints: state | 2 | 0 | 9 | 1 | 0 |",
        "| all | 3 | 5 | 9 | 1 | 0 |",
    ]


@pytest.mark.slow
def test_each_command_says_what_is_damaged_or_gives_the_same(tmp_path):
    table = flips.Flips(tmp_path).damage(32, random.Random(3))
    jax.clear_caches()
    found = sum(table.values(), Counter())
    assert found["damages"] == 32 and found["said"] > 32 and found["harmless"] > 32, flips.as_table(table)
    assert not found["silent"] and not found["traceback"], flips.as_table(table)
