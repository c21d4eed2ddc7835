"""Sweeps: `FIELD=V,V` on the command line, the overrides of each combination of several, and names made of them."""

import itertools
import re
import zlib
from collections.abc import Iterator, Sequence

from vit_jax.command import UserError

LONGEST = 100  # characters of a file's name


def split_values(text: str) -> tuple[str, list[str]]:
    """The field and the values of `FIELD=V,V`; commas inside brackets do not divide: `a.b=(1,2),(3,4)`.

    A value may be empty where another is not: `distill.teacher=,runs/x` is without and with.
    """
    field, _, values = text.partition("=")
    found = [value.strip() for value in re.split(r",(?![^(]*\))(?![^[]*\])", values)]
    if not (field and any(found)):
        raise UserError(f"{text!r}: expected FIELD=VALUE,VALUE, e.g. model.patch_size=4,7,14")
    return field, found


def combinations(sweeps: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each combination of the sweeps' values; one empty list without any."""
    fields = [[f"{field}={value}" for value in values] for field, values in map(split_values, sweeps)]
    return (list(chosen) for chosen in itertools.product(*fields))


def short(override: str) -> str:
    """An override as tables name it: of `optim.lr=0.1` `lr=0.1`."""
    field, _, value = override.partition("=")
    return f"{field.rpartition('.')[2]}={value}"


def plain_name(text: str) -> str:
    """The text without what a file's name had better not have."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


def file_name(text: str) -> str:
    """The same, not too long, and another one for each text: a checksum stands for what is lost."""
    plain = plain_name(text)
    return plain if plain == text and len(plain) <= LONGEST else f"{plain[:LONGEST]}-{zlib.crc32(text.encode()):08x}"
