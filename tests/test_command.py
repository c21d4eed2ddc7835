"""Flags, exit codes and signals that all commands share."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from vit_jax import command, interrupt
from vit_jax.command import Failure, Interruption, Parser, UserError


@pytest.fixture
def parser():
    parser = Parser(prog="python -m vit_jax.test")
    parser.add_argument("--workdir")
    parser.add_data_dir()
    return parser


def test_overrides_are_gathered_in_order_in_both_spellings(parser):
    flags, overrides = parser.parse(["--config.a=1", "--workdir", "w", "--config.b.c", "2", "--config.a=x=y"])
    assert flags.workdir == "w" and flags.data_dir == ""
    assert overrides == ["a=1", "b.c=2", "a=x=y"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wrokdir", "w"], "unrecognized arguments: --wrokdir"),
        (["--config.a"], "--config.a has no value; write --config.a=VALUE"),
    ],
)
def test_a_mistaken_flag_is_the_users_error(parser, argv, message):
    with pytest.raises(UserError, match=message):
        parser.parse(argv)


@pytest.mark.parametrize(
    ("outcome", "code", "printed"),
    [
        (0, 0, ""),
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Failure("no\nroom"), 1, "error: no room\n"),
        (
            OSError(28, "No space left on device", "x.json"),
            1,
            "error: x.json cannot be written: No space left on device; make room, and give the same command again\n",
        ),
    ],
)
def test_exit_codes(monkeypatch, capsys, outcome, code, printed):
    def main(argv):
        assert argv == ["--flag"]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", ["command", "--flag"])
    with pytest.raises(SystemExit) as exit_:
        command.run(main)
    assert exit_.value.code == code
    assert capsys.readouterr().err == printed


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(monkeypatch):
    """As where stderr goes into a file on the full disk."""

    def main(argv):
        raise Failure("make room")

    monkeypatch.setattr(sys, "argv", ["x"])
    with open("/dev/full", "w", buffering=1) as full, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stderr", full)
        command.run(main)
    assert ended.value.code == 1


def test_a_fault_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ZeroDivisionError):
        command.run(lambda argv: 1 // 0)


def test_data_dir_is_the_flag_then_the_environment_then_the_home(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert command.data_dir("given") == Path("given")
    assert command.data_dir() == Path("/from/environment")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert command.data_dir() == Path.home() / "tensorflow_datasets"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interruption_is_noted_and_the_old_handlers_come_back(number, code):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.signal == 0
        os.kill(os.getpid(), number)
        assert interruption.signal == number
        assert interruption.exit_code == code
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends the process
    assert signal.getsignal(number) == before


def test_a_command_may_open_as_many_files_as_the_system_allows(monkeypatch):
    limits, infinite = [], resource.RLIM_INFINITY
    for before, after in {(1024, 4096): 4096, (1024, infinite): 2**16, (1024, 2**20): 2**16}.items():
        monkeypatch.setattr(resource, "getrlimit", lambda kind, before=before: before)
        monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
        command._allow_many_files()
        assert limits.pop() == (after, before[1])
    for enough in ((2**17, 2**20), (infinite, infinite), (1024, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, enough=enough: enough)
        command._allow_many_files()
    assert not limits


INTERRUPTED_AT = """
import os, signal, sys
sys.orig_argv = [sys.executable, "-m", "vit_jax.main"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it

class At:
    def find_spec(name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, At)
import vit_jax.main
"""


@pytest.mark.parametrize("module", ["vit_jax.command", "jax"])
def test_ctrl_c_while_libraries_are_imported_is_one_line(module):
    words = [sys.executable, "-c", INTERRUPTED_AT, module]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_while_the_console_script_imports_is_one_line():
    code = INTERRUPTED_AT.replace("import vit_jax.main", "import vit_jax.cli; vit_jax.cli.main()")
    code = code.replace('"-m", "vit_jax.main"', '"/usr/bin/vit_jax"').replace("sys.argv[1]", "'jax'")
    done = subprocess.run([sys.executable, "-c", code, "train"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


INTERRUPTED_IN_A_CALLBACK = """
import gc, os, signal, time
from vit_jax import command

def main(argv):
    gc.callbacks.append(lambda phase, info: (gc.callbacks.clear(), os.kill(os.getpid(), signal.SIGINT)))
    gc.collect()
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
command.run(main)
"""


def test_ctrl_c_is_not_lost_where_python_ignores_what_is_raised():
    words = [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


WRITTEN_LATE = """
import asyncio, sys, time
import numpy, tensorstore
from vit_jax import command

zarr = {"driver": "zarr", "kvstore": "memory://", "metadata": {"shape": [2000, 2000], "chunks": [100, 100]}}

async def write(store):
    future = store.write(numpy.ones((2000, 2000), "float32"))
    next(future.__await__())  # the loop closes while something waits for the file
    return future

def main(argv):
    store = tensorstore.open(zarr, create=True, dtype=tensorstore.float32).result()
    loop = asyncio.new_event_loop()
    future = loop.run_until_complete(write(store))
    loop.close()
    future.result()
    time.sleep(0.5)
    if sys.argv[1:]:
        gone = type("Gone", (), {"__del__": lambda self: 1 / 0})()
    return 0

command.run(main)
"""


def test_a_file_that_is_written_after_its_save_failed_is_not_told():
    words = [sys.executable, "-c", WRITTEN_LATE]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run([*words, "other"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "ZeroDivisionError" in done.stderr and "Event loop" not in done.stderr


def test_only_a_command_of_ours_ends_at_once():
    assert interrupt.is_command(["python", "-m", "vit_jax.main", "--config", "x"])
    assert interrupt.is_command(["/usr/bin/python3", "/opt/bin/vit_jax", "train"])
    assert not interrupt.is_command(["python", "train.py", "vit_jax"]) and not interrupt.is_command(["pytest"])
