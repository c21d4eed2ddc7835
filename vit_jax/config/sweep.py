"""Sweeps: `FIELD=V,V` on the command line, and the overrides of each combination of several."""

import itertools
import re
from collections.abc import Iterator, Sequence

from vit_jax.command import UserError


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
