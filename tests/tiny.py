"""The smallest runs that have everything: a config file, and helpers to train it in this process and compare."""

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from vit_jax import config, log, models, train
from vit_jax.workdir import Workdir

TIMES = {"train/images_per_second", "train/input_wait_fraction"}


def get_config(arg: str = "") -> ConfigDict:
    """`vit`: dropout, augmentation, accumulation, averages; coprime intervals. `cnn`: compiles fast."""
    c = config.default()
    if config.choose(arg, {"vit": True, "cnn": False}):
        c.model = models.settings("vit", patch_size=(4,), width=8, depth=2, mlp_dim=12, num_heads=2)
        c.model.embedding_dropout = 0.1
        c.augment.flip = 0.5
        c.optim.epsilon = 1e-3  # keys' biases have no gradient but rounding, which Adam would blow up
        c.optim.ema_decay = 0.9
        c.train.accumulate = 2
        c.data.name = "digits"
    else:
        c.model = models.settings("cnn", stages=((5,),), dense_widths=(17,))
        c.data.name = "synthetic/5x7x3/3/200"
    c.optim.lr = 3e-2
    c.train.batch_size = 40
    c.train.steps = 23
    c.evaluate.every_steps = 9
    c.checkpoint.every_steps = 8
    c.log.every_steps = 7
    c.log.tensorboard = False
    return c


def spec(arg: str) -> str:
    return f"{Path(__file__)}:{arg}"


def start(workdir: Path, arg: str, *overrides: str) -> tuple[int, str]:
    """Trains; returns the exit code and what was printed."""
    output = io.StringIO()
    console = Console(file=output, width=200, highlight=False)
    return train.train(config.load(spec(arg), overrides), workdir, console).exit_code, output.getvalue()


def train_quietly(given: ConfigDict, workdir: Path, *overrides: str) -> train.Result:
    """Trains what a function configures; shows nothing."""
    return train.train(config.from_dict(given, overrides), workdir, Console(file=io.StringIO()))


_finished: dict[tuple[str, ...], Path] = {}


def finished(folders: pytest.TempPathFactory, arg: str, *overrides: str) -> Path:
    """The workdir of a run that nothing interrupted; trained once for all tests that ask. Only to be read."""
    key = (arg, *overrides)
    if key not in _finished:
        workdir = folders.mktemp(arg) / "run"
        assert start(workdir, arg, *overrides)[0] == 0
        _finished[key] = workdir
    return _finished[key]


def interrupt_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Makes the next runs receive a signal while they train that step."""
    advance = log.Progress.advance

    def interrupted(self: log.Progress, at: int) -> None:
        advance(self, at)
        if at == step:
            signal.raise_signal(number)

    patch.setattr(log.Progress, "advance", interrupted)


def assert_resumes(start: Callable[[Path], train.Result], workdir: Path, whole: Path, at: int = 11) -> None:
    """A run that is stopped at a step, and started again, ends as `whole`, which nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(at, signal.SIGTERM, patch)
        assert start(workdir).exit_code == 143
    assert start(workdir).exit_code == 0
    assert_same_run(workdir, whole)


def damage(workdir: Path, step: int) -> None:
    """Changes the last byte of the arrays of a checkpoint."""
    for path in (Workdir(workdir).checkpoints / str(step) / "state" / "d").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def result(workdir: Path) -> dict[str, Any]:
    return json.loads(Workdir(workdir).result_file.read_text())


def metric_lines(workdir: Path) -> list[dict[str, float]]:
    """`metrics.jsonl` without what the clock decides."""
    lines = log.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    newest = max(Workdir(workdir).checkpoints.glob("[0-9]*"), key=lambda path: int(path.name))
    reader = ocp.PyTreeCheckpointHandler()
    tree = reader.metadata(newest / "state").tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    found = reader.restore(newest / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def assert_same_run(found: Path, expected: Path) -> None:
    """The same arrays to the last bit, and the same metrics."""
    ours, theirs = arrays(found), arrays(expected)
    assert ours.keys() == theirs.keys() and any("opt_state" in name for name in ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
        assert value.dtype == theirs[name].dtype
    assert metric_lines(found) == metric_lines(expected)
    timed = {"seconds", "images_per_second", "energy_kwh", "workdir", "config"}
    ours, theirs = result(found), result(expected)
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in theirs.items() if k not in timed}
