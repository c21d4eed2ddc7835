"""A config file that does not end; others that are wrong are in tests/bad_input."""

import logging
from pathlib import Path

import pytest

from vit_jax import config
from vit_jax.config import recipe


def test_a_file_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It loops until somebody has told."""
    said, told = [], tmp_path / "told"
    monkeypatch.setattr(recipe, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(
        logging.getLogger(recipe.__name__), "warning", lambda *words: (said.append(words[0]), told.touch())
    )
    loop = f"import os\nwhile not os.path.exists({str(told)!r}): pass\n"
    (tmp_path / "x.py").write_text(f"{loop}from vit_jax import config\ndef get_config(arg): return config.default()\n")
    config.load(str(tmp_path / "x.py"))
    assert len(said) == 1
    assert "end it with Ctrl-C" in said[0]
