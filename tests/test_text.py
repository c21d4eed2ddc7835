"""Words for messages."""

import pytest

from vit_jax.text import listed


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ""),
        ("a", "a"),
        ("abc", "a, b, c"),
        ("abcd", "a, b, c and 1 more"),
        ({5: "", 7: ""}, "5, 7"),
        (range(1000), "0, 1, 2 and 997 more"),
    ],
)
def test_the_first_names_and_how_many_follow(names, expected):
    assert listed(names) == expected


def test_how_many_may_be_said():
    assert listed("abcde", most=4) == "a, b, c, d and 1 more" and listed("abcde", most=5) == "a, b, c, d, e"
