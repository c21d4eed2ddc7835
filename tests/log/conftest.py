"""A console that records, as a log file or as a terminal of 80 columns."""

import io

import pytest
from rich.console import Console


class Recorder:
    def __init__(self, **options):
        self.console = Console(file=io.StringIO(), width=80, highlight=False, **options)

    @property
    def text(self):
        return self.console.file.getvalue()

    @property
    def lines(self):
        """What was printed, without trailing blanks."""
        return [line.rstrip() for line in self.text.splitlines()]


@pytest.fixture
def plain():
    return Recorder(force_terminal=False)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")  # the tests may themselves run without a terminal
    return Recorder(force_terminal=True, force_interactive=True)
