"""The configuration as a page of Markdown: each group and field, with the comment that stands at it in the source."""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from vit_jax import models, tasks
from vit_jax.config.schema import NAME, NAMED, Config, Schema
from vit_jax.setting import active_if


def markdown() -> str:
    """Every group with its fields: name, type, default, and what it does."""
    sections, alone = [], {}
    for group in dataclasses.fields(Config):
        if group.name in NAMED:
            text = f"All fields of a name: `c.{group.name} = {group.name}s.settings(NAME)`."
            name = f"decides the other fields, e.g. {', '.join(NAMED[group.name].names()[:3])}"
            sections.append(_section(group.name, text, {"name": NAME}, {"name": name}))
            for title, kind, fields in _kinds(group.name):
                first = (inspect.getdoc(kind) or "").partition("\n\n")[0]
                sections.append(_section(f"{group.name}: {title}", first, fields, comments(kind), "###"))
        elif isinstance(group.type, type) and dataclasses.is_dataclass(group.type):
            fields = {f.name: f for f in dataclasses.fields(group.type)}
            sections.append(_section(group.name, inspect.getdoc(group.type) or "", fields, comments(group.type)))
        else:
            alone[group.name] = group
    return "\n\n".join([_section("", "Beside the groups:", alone, comments(Config)), *sections]) + "\n"


def comments(kind: type) -> dict[str, str]:
    """The comment at each field of a class and of those that it inherits from: above it, or at the end of its line."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if owner.__module__.partition(".")[0] not in ("builtins", "flax"):
            found |= _comments(textwrap.dedent(inspect.getsource(owner)))
    return found


def _comments(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    at = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 1
            while above in at and not at[above].line.partition("#")[0].strip():
                above -= 1
            lines = [*range(above + 1, node.lineno), *range(node.lineno, (node.end_lineno or 0) + 1)]
            found[node.target.id] = " ".join(at[line].string.lstrip("# ") for line in lines if line in at)
    return found


def _kinds(group: str) -> Iterator[tuple[str, type, Schema]]:
    """The classes whose fields the group `model` or `task` may have, with the names that stand for them."""
    of_models: dict[str, type] = {name: module for name, (module, _) in models.FAMILIES.items()}
    kinds: Mapping[str, type] = {"model": of_models, "task": dict(tasks.TASKS)}[group]
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, other in kinds.items() if other is kind]
        yield ", ".join(names), kind, NAMED[group].fields(names[0])


def _section(title: str, text: str, fields: Schema, comments: Mapping[str, str], level: str = "##") -> str:
    lines = ["| field | type | default | |", "| --- | --- | --- | --- |"]
    for name, f in fields.items():
        default = "required" if f.default is dataclasses.MISSING else f"`{f.default!r}`"
        needs = active_if(f).replace(" or ", "` or `").replace(" and ", "`, and `")
        said = [comments.get(name, "").rstrip("."), f"Only read with `{needs}`" if needs else ""]
        meaning = ". ".join(filter(None, said))
        lines.append("| " + " | ".join(_cell(x) for x in (f"`{name}`", _type(f), default, meaning)) + " |")
    return "\n\n".join(filter(None, [f"{level} {title}" if title else "", text, "\n".join(lines)]))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _type(field: dataclasses.Field[Any]) -> str:
    choices = field.metadata.get("choices")
    if choices or get_origin(field.type) is Literal:
        return ", ".join(f"`{choice}`" for choice in (choices() if choices else get_args(field.type)))
    return f"`{field.type.__name__ if isinstance(field.type, type) else field.type}`"
