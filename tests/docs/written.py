"""The commands, the Python code and the names of fields that README and docs/ show, and how a command is looked at."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY
from vit_jax import cli

PAGES = [REPOSITORY / "README.md", REPOSITORY / "launch" / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
RECORDED = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)  # of runs that were: see benchmarks/tables.py
PLACEHOLDER = re.compile(r"\.\.\.|<|NAME|FIELD")
MODULES = {name: module for name, (module, _) in cli.COMMANDS.items() if module}
LAUNCHERS = re.compile(r"^(launch/\S+\.sh|launch/slurm\.sbatch)$")


@dataclass(frozen=True)
class Command:
    """A command of ours: `name` is the sub-command of `vit_jax`."""

    page: str
    text: str
    name: str
    argv: tuple[str, ...]
    launcher: tuple[str, ...] = ()  # the words before it, of a script that starts several processes


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for kind, text in FENCED.findall(path.read_text()) if kind == language]


def spans(path: Path) -> list[str]:
    """The code within the text, not that of blocks, nor of the tables that say how a run was started."""
    text = RECORDED.sub("", FENCED.sub("", path.read_text()))
    return [span.replace(r"\|", "|") for span in SPAN.findall(text)]


def shell_lines(path: Path) -> list[str]:
    """Each line of the bash blocks that runs something; a line that ends in a backslash goes on in the next."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def commands(path: Path) -> list[Command]:
    """Our commands of the bash blocks, and those within the text that have flags and are whole."""
    texts = [*shell_lines(path), *(span for span in spans(path) if "--" in span and not PLACEHOLDER.search(span))]
    return [found for text in texts if (found := parse(text, path.name))]


def parse(text: str, page: str = "") -> Command | None:
    """A line of a shell as a command of ours; None if it is none."""
    words = shlex.split(text, comments=True)
    if words[:1] == ["vit_jax"] and len(words) > 1:
        return Command(page, text, words[1], tuple(words[2:]))
    for at, word in enumerate(words):
        if word == "-m" and words[at + 1].startswith("vit_jax"):
            return Command(page, text, _name(words[at + 1]), tuple(words[at + 2 :]), tuple(words[: max(at - 1, 0)]))
        if LAUNCHERS.match(word):
            rest = words[at + 1 :]
            start = next((i for i, w in enumerate(rest) if w in ("--config", "--workdir")), len(rest))
            module = next((w.partition("=")[2] for w in words[:at] if w.startswith("MODULE=")), "vit_jax.main")
            return Command(page, text, _name(module), tuple(rest[start:]), tuple(words[: at + 1 + start]))
    return None


def _name(module: str) -> str:
    return next((name for name, known in MODULES.items() if known == module), module)


def fields(path: Path) -> list[str]:
    """The fields of a configuration that the text names, as flags or by themselves: `data.limit`."""
    groups = "augment|checkpoint|corruption|data|distill|evaluate|init|log|mesh|model|optim|task|train"
    named = re.compile(rf"(?:--config\.|^)((?:{groups})\.\w+)(?=$|=)")
    texts = [word for span in spans(path) for word in span.split()]
    return [m[1] for word in texts if (m := named.search(word)) and not m[1].endswith(".py")]
