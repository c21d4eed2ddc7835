"""Values of fields: from text and checked, for every kind of annotation that the schema uses."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_jax.command import UserError
from vit_jax.config.values import convert, from_text

Choice = Literal["last", "best"]
Ints, Floats, Words = tuple[int, ...], tuple[float, ...], tuple[str, ...]
Pair, Stages = tuple[float, float], tuple[tuple[int, ...], ...]


def read(text: str, annotation):
    return convert(from_text(text, annotation, "group.field"), annotation, "group.field")


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("true", bool, True),
        ("False", bool, False),
        ("0", bool, False),
        ("-7", int, -7),
        ("1_000", int, 1000),
        ("7", float, 7.0),
        ("3e-4", float, 3e-4),
        ("train[:90%]", str, "train[:90%]"),
        ("", str, ""),
        ("7", str, "7"),
        ("best", Choice, "best"),
        ("(5, 7)", Ints, (5, 7)),
        ("5,7", Ints, (5, 7)),
        ("[5, 7]", Ints, (5, 7)),
        ("5", Ints, (5,)),
        ("()", Ints, ()),
        ("", Ints, ()),
        ("(1, 0.5)", Floats, (1.0, 0.5)),
        ("0.3,3", Pair, (0.3, 3.0)),
        ("((2, 3), (5,))", Stages, ((2, 3), (5,))),
        ("('a', 'b')", Words, ("a", "b")),
        ("a, b", Words, ("a", "b")),
        ("()", Words, ()),
    ],
)
def test_text(text, annotation, value):
    found = read(text, annotation)
    assert found == value and type(found) is type(value)
    assert not isinstance(value, tuple) or [type(x) for x in found] == [type(x) for x in value]


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ("yes", bool, "write true or false"),
        ("1.5", int, "a float, expected an int"),
        ("true", int, "a str, expected an int"),
        ("True", int, "a bool, expected an int"),
        ("fast", float, "a str, expected a float"),
        ("None", float, "a NoneType, expected a float"),
        ("nan", float, "expected a float"),
        ("1e999", float, "not a finite number"),
        ("9" * 400, float, "not a finite number"),
        ("{[]: 1}", int, "expected an int"),
        ("first", Choice, "choose from last, best"),
        ("(5, 7.0)", Ints, "a float, expected an int"),
        ("(5,", Ints, "expected an int"),
        ("(1, 2, 3)", Pair, "has 3 elements, expected 2"),
        ("(2, 3)", Stages, r"write field=\(2,\)"),
    ],
)
def test_text_of_the_wrong_kind(text, annotation, expected):
    with pytest.raises(UserError, match=rf"^group\.field=.*{expected}"):
        read(text, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, int, "is a bool, expected an int"),
        (1, bool, "is an int, expected a bool"),
        (None, str, "is a NoneType, expected a str"),
        (True, float, "is a bool, expected a float"),
        (math.nan, float, "is not a finite number"),
        (-math.inf, float, "is not a finite number"),
        (8, Ints, r"is not a tuple; write field=\(8,\)"),
        (("8",), Ints, "is a str, expected an int"),
        ((8, None), Floats, "expected a float"),
        ((0.5, math.nan), Floats, "is not a finite number"),
        ((0.5,), Pair, "has 1 elements, expected 2"),
        (("ab", 3), Words, "is an int, expected a str"),
        (3, Choice, "choose from last, best"),
        ({}, int, "is a dict, expected an int"),
    ],
)
def test_value_of_the_wrong_kind(value, annotation, expected):
    with pytest.raises(UserError, match=rf"^group\.field=.*{expected}"):
        convert(value, annotation, "group.field")


def test_what_json_makes_of_tuples_and_floats_is_taken_back():
    assert convert([[2, 3], [5]], Stages, "k") == ((2, 3), (5,))
    assert type(convert(3, float, "k")) is float
    assert convert([1, 2], Pair, "k") == (1.0, 2.0)


NUMBERS = {int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}
VALUES = st.one_of(
    *(st.tuples(st.just(kind), values) for kind, values in NUMBERS.items()),
    *(st.tuples(st.just(tuple[kind, ...]), st.lists(values).map(tuple)) for kind, values in NUMBERS.items()),  # type: ignore[valid-type]
    st.tuples(st.just(str), st.text()),
    st.tuples(st.just(Words), st.lists(st.from_regex("[a-z]+(/[A-Z0-9]+)?", fullmatch=True)).map(tuple)),
)


@given(VALUES)
def test_text_of_a_value_is_that_value(pair):
    annotation, value = pair
    assert read(str(value), annotation) == convert(value, annotation, "k") == value


@given(st.text(), st.sampled_from([bool, int, float, Choice, Ints, Pair, Stages, Words]))
def test_no_text_is_worse_than_a_users_mistake(text, annotation):
    try:
        value = read(text, annotation)
    except UserError as mistake:
        assert str(mistake).startswith("group.field=")
    else:
        assert convert(value, annotation, "k") == value
