"""The console script: `vit_jax train ...` is `python -m vit_jax.main ...`, and so on; `vit_jax --help` lists all.

Nothing is imported before it is known to be wanted, so that help and mistakes are there at once.
"""

import importlib
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vit_jax import command, interrupt
from vit_jax.command import UserError

# The sub-commands: the module whose `main(argv)` runs, and what it does.
COMMANDS = {
    "train": ("vit_jax.main", "train the run of a configuration, or go on with it"),
    "evaluate": ("vit_jax.evaluate", "exact metrics of a run over a split"),
    "predict": ("vit_jax.predict", "the classes that a run, or published weights, take images for"),
    "explain": ("vit_jax.explain", "where a model looks, and what it learned: pictures and arrays"),
    "faithfulness": ("vit_jax.explain.faithfulness", "which heat maps of `explain` are right, by a run's own images"),
    "compare": ("vit_jax.compare", "train several configurations and put their results into one table"),
    "soup": ("vit_jax.soup", "one model whose parameters are the means of several runs"),
    "export": ("vit_jax.export", "a run, or published weights, as ONNX, StableHLO, safetensors or for Hugging Face"),
    "serve": ("vit_jax.serve", "a web page and an HTTP interface that classify images"),
    "plan": ("vit_jax.plan", "memory, time and cost of a run on machines that are not here"),
    "report": ("vit_jax.report.page", "one page about one run or several: curves, predictions, what differs"),
    "augmentations": ("vit_jax.report.augmentations", "a picture of the batches that a model is shown"),
    "texture": ("vit_jax.report.texture", "whether models go by shape or by texture"),
    "frontier": ("vit_jax.report.frontier", "a picture of accuracy against FLOPs of training, with published models"),
    "prepare": ("vit_jax.data.prepare", "download and convert data sets"),
    "configs": ("", "list the recipes of configs/ and their variants"),
    "weights": ("", "list the published weights that have a name"),
}


def main() -> NoReturn:
    """What the console script runs."""
    command.run(dispatch)


def dispatch(argv: Sequence[str]) -> int:
    """Runs the sub-command that the first word names, with the other words; its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return command.DONE if argv else command.USER_MISTAKE
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"vit_jax has no command {name!r}; {_hint(name)}")
    module, _ = COMMANDS[name]
    if not module:
        return {"configs": list_configs, "weights": list_weights}[name](rest)
    interrupt.end_at_once()  # JAX comes with these imports
    run = importlib.import_module(module).main
    interrupt.raise_again()
    return run(rest)


def usage() -> str:
    """One line for each sub-command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        ["usage: vit_jax COMMAND ...", "", *lines, "", "`vit_jax COMMAND --help` tells the flags of a command."]
    )


def _hint(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, 1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(COMMANDS)}"


def list_configs(argv: Sequence[str]) -> int:
    """Prints each variant of the shipped recipes as `--config` takes it, with the first line of its docstring."""
    pattern = _pattern("vit_jax configs", "Lists the recipes of configs/ and their variants.", argv)
    found = [row for path in sorted(configs_folder().glob("*.py")) for row in recipes(path)]
    return _print(found, pattern, "recipe")


def list_weights(argv: Sequence[str]) -> int:
    """Prints the name of each of the published weights with its model and address."""
    pattern = _pattern("vit_jax weights", "Lists the published weights that have a name.", argv)
    from vit_jax.pretrained import PUBLISHED

    return _print([(name, f"{model}, {address}") for name, (model, address) in PUBLISHED.items()], pattern, "weights")


def configs_folder() -> Path:
    """The folder of the recipes: of the current folder, else of the repository that this package lies in."""
    for parent in (Path(), Path(__file__).parents[1]):
        if (parent / "configs").is_dir():
            return parent / "configs"
    raise UserError("there is no folder configs/ here; go to the folder where you cloned the repository")


def recipes(path: Path) -> list[tuple[str, str]]:
    """The variants of a config file, or the file itself where it has none, each with a line about it."""
    import ast

    from vit_jax import config

    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config"]
    about = _first_line(ast.get_docstring(functions[0]) if functions else "") or _first_line(ast.get_docstring(tree))
    return [
        (f"{path}:{name}" if name else str(path), _first_line(_docstring(choice)) or about)
        for name, choice in (config.variants(path) or {"": None}).items()
    ]


def _docstring(choice: Any) -> str | None:
    """Of the function that builds a variant, of a partial one's function, or of what a lambda calls first."""
    function = getattr(choice, "func", choice)
    if not isinstance(function, types.FunctionType):
        return ""
    called = [function.__globals__.get(name) for name in function.__code__.co_names]
    return function.__doc__ or next((found.__doc__ for found in called if isinstance(found, types.FunctionType)), "")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _pattern(prog: str, description: str, argv: Sequence[str]) -> str:
    parser = command.Parser(prog=prog, description=description)
    parser.add_argument("pattern", nargs="?", default="", help="part of a name; * and ? stand for any letters")
    return parser.parse_args(argv).pattern


def _print(rows: Iterable[tuple[str, str]], pattern: str, kind: str) -> int:
    import fnmatch

    rows = list(rows)
    found = [row for row in rows if fnmatch.fnmatch(row[0], f"*{pattern}*")]
    if not found:
        raise UserError(f"no {kind} of the {len(rows)} has {pattern!r} in its name; leave it out to see all")
    width = max(len(name) for name, _ in found)
    for name, about in found:
        print(f"{name:{width}}  {about}")
    return command.DONE


if __name__ == "__main__":
    main()
