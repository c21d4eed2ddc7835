"""Config files that are wrong: whatever they do, one line tells where."""

import logging
from pathlib import Path

import pytest

from vit_jax import config
from vit_jax.command import UserError
from vit_jax.config import recipe


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.py", "def get_config(arg): pass", "get_config returned NoneType, not a ConfigDict"),
        ("x.py", "def get_config(arg): return 1 / 0", r"x.py:1: ZeroDivisionError: division by zero"),
        ("x.py", "import sys\nsys.exit('bye')", "x.py:2: SystemExit: bye"),
        ("x.py", "def get_config(arg): raise SystemExit(3)", "x.py:1: SystemExit: 3"),
        ("x.py", "def get_config(arg) return", "x.py:1: SyntaxError"),
        ("x.py", "x = 1", "has no function get_config"),
        ("x.py", "def get_config(arg): return get_config(arg)", "x.py:1: RecursionError"),
        ("x.py", "\0", "x.py.*: (SyntaxError|ValueError): source code"),
        ("x.txt", "def get_config(arg): return {}", "x.txt' ends in neither .py nor .json"),
        ("x", "def get_config(arg): return {}", "x' ends in neither .py nor .json"),
        ("x.json", "{", "x.json is not JSON"),
        ("x.json", "[" * 100_000, "x.json is not JSON"),
        ("x.json", "[]", "holds a JSON list"),
        ("x.json", '{"model": {"name": ["a"]}}', "config.model has no name"),
        ("x.json", '{"model": 3}', "config.model has no name"),
        ("x.json", '{"train": 3}', "config.train is a group"),
        ("x.json", '{"train": {"epochs": {}}}', "train.epochs"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        config.load(str(tmp_path / name))


def test_a_file_in_latin_1_is_told(tmp_path: Path):
    (tmp_path / "x.json").write_bytes('{"café": 1}'.encode("latin-1"))
    (tmp_path / "x.py").write_bytes("x = 'café'".encode("latin-1"))
    for name, said in (("x.json", "is not JSON"), ("x.py", "SyntaxError")):
        with pytest.raises(UserError, match=said):
            config.load(str(tmp_path / name))


def test_a_schedule_of_stochastic_depth_needs_some():
    given = config.load("configs/digits.py")
    flag = "model.stochastic_depth_schedule=uniform"
    changed = config.from_dict(config.to_dict(given), [flag])
    with pytest.raises(UserError, match="changes nothing without model.stochastic_depth; set that too"):
        config.check_effect([changed], [flag])
    both = [flag, "model.stochastic_depth=0.1"]
    config.check_effect([config.from_dict(config.to_dict(given), both)], both)


def test_a_file_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It loops until somebody has told."""
    told = tmp_path / "told"
    monkeypatch.setattr(recipe, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(logging.getLogger(recipe.__name__), "warning", lambda *words: told.write_text(words[0]))
    loop = f"import os\nwhile not os.path.exists({str(told)!r}): pass\n"
    (tmp_path / "x.py").write_text(f"{loop}from vit_jax import config\ndef get_config(arg): return config.default()\n")
    config.load(str(tmp_path / "x.py"))
    assert "end it with Ctrl-C" in told.read_text()
