"""What is given, through which door, and what is answered: the rows of docs/bad-input.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vit_jax.command import UserError

READ = "read"
REFUSED = "refused in one line"


@dataclass(frozen=True)
class Case:
    """One input."""

    group: str
    given: str
    answer: str  # `READ`, or a part of the one line that is said
    door: Callable[[Path], str | None]  # of an empty folder: makes the input and gives it; a counted skip's reason

    def found(self, folder: Path) -> str:
        """What is answered; raises whatever is no `UserError`."""
        try:
            return self.door(folder) or READ
        except UserError as mistake:
            return str(mistake)


def table(cases: list[Case]) -> str:
    """The cases in Markdown, by group."""
    lines = []
    for group in dict.fromkeys(case.group for case in cases):
        rows = [case for case in cases if case.group == group]
        lines += [f"### {group}", "", "| given | answer |", "|---|---|"]
        lines += [f"| {_cell(case.given)} | {_cell(case.answer or REFUSED)} |" for case in rows] + [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")
