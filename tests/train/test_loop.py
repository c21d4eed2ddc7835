"""What the loop leaves beside its checkpoints, where something goes wrong."""

from types import SimpleNamespace

from vit_jax.checkpoint import Checkpoints
from vit_jax.train.loop import Trainer
from vit_jax.train.saving import Saver, TrainerState
from vit_jax.workdir import Workdir


def test_a_note_that_cannot_be_written_is_a_warning_once(tmp_path):
    said, so_far = [], TrainerState(steps=7)

    def warn(text):
        said.append(text)
        so_far.warnings.append(text)

    saver = Saver(Workdir(tmp_path), Checkpoints(tmp_path / "checkpoints"), so_far, warn)
    saver.write_progress(3)
    assert saver.workdir.progress()["step"] == 3 and not said
    saver.workdir.progress_file = tmp_path / "gone" / "progress.json"
    for at in (4, 5):
        saver.write_progress(at)
    assert said == ["progress.json cannot be written (No such file or directory): reports will be behind"]


def test_trackers_learn_how_the_run_ended():
    ended = []
    other = SimpleNamespace(close=lambda: None)
    writer = SimpleNamespace(close=ended.append)
    for stopped, kind in (False, None), (True, None), (True, RuntimeError):
        trainer = SimpleNamespace(watchdog=other, checkpoints=other, writer=writer, stopped=stopped)
        Trainer.__exit__(trainer, kind, kind and kind(), None)
    assert ended == ["finished", "stopped", "failed"]
