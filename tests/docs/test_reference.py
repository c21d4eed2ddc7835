"""The page of all fields: each one is there, with what its source says of it."""

import dataclasses
from typing import Literal

import pytest

from docs.reference import comments, markdown
from vit_jax import models
from vit_jax.config.schema import schema
from vit_jax.setting import setting


@pytest.fixture(scope="module")
def page() -> str:
    return markdown()


@pytest.mark.parametrize("family", models.FAMILIES)
def test_every_field_has_a_row_in_its_section(page, family):
    sections = {part.partition("\n")[0].strip("# "): part for part in page.split("\n##")}
    titles = {title.partition(": ")[0]: part for title, part in sections.items() if ": " not in title}
    model = next(part for title, part in sections.items() if title.startswith("model: ") and family in title)
    for key in schema({"model": family, "task": "classification"}):
        group, _, name = key.rpartition(".")
        part = titles.get(group, page)
        if group == "model" and name != "name":
            part = model
        if group == "task" and name != "name":
            part = sections["task: classification"]
        assert f"| `{name}` | " in part, key


def test_a_row_has_type_default_comment_and_what_reads_it(page):
    for row in (
        "| `batch_size` | `int` | `128` | images per optimizer step, over all devices and processes |",
        "| `kind` | `hard`, `soft` | `'hard'` | Learn the teacher's decision (eq. 3), or its probabilities (eq. 2). "
        "Only read with `distill.teacher` |",
        "| `patch_size` | `tuple[int, ...]` | required | pixels: height and width, or one number for both |",
        "| `metric` | `auto`, `accuracy`, ",
    ):
        assert row in page


@dataclasses.dataclass
class Base:
    """Fields whose comments stand where comments may stand."""

    first: int = 3  # at its line | the end
    # Above it,
    # on two lines.
    second: Literal["a", "b"] = "a"
    third: str = "# no comment"
    fourth: str = setting(
        "long",
        active_if="a.b",  # within
    )


class Child(Base):
    first: int = 5


def test_comments_stand_above_or_at_the_end():
    found = comments(Base)
    assert found == {
        "first": "at its line | the end",
        "second": "Above it, on two lines.",
        "third": "",
        "fourth": "within",
    }
    assert comments(Child)["second"] == found["second"]
