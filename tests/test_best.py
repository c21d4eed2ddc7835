"""The best checkpoint: which one it is, for the result as for whoever opens the run."""

import numpy as np

from tests import tiny
from vit_jax import inference, train
from vit_jax.data import open_data
from vit_jax.workdir import Workdir


def test_the_best_in_validation_meets_the_test_split(tmp_path, monkeypatch):
    validate = train.Trainer.validate

    def promising_at_first(self, at, state):
        validate(self, at, state)
        self.so_far.validation["val/accuracy"] = 1.0 if at == 9 else 0.1

    monkeypatch.setattr(train.Trainer, "validate", promising_at_first)
    assert tiny.start(tmp_path, "cnn", "evaluate.use=best")[0] == 0
    assert Workdir(tmp_path).saved_steps() == [9, 23]
    best, last = inference.load(tmp_path), inference.load(tmp_path, use="last")
    result = tiny.result(tmp_path)
    assert (best.step, last.step) == (9, 23) and result["best_step"] == result["test_step"] == 9
    split = open_data(best.config.data).split("test").load()
    logits = np.load(tmp_path / "predictions.npz")["logits"]
    np.testing.assert_allclose(logits, best.logits(split.arrays["image"]), atol=1e-5)
    assert np.abs(logits - last.logits(split.arrays["image"])).max() > 0.1


def test_of_equal_validations_the_last_is_the_best_everywhere(tmp_path, monkeypatch):
    validate = train.Trainer.validate

    def equal(self, at, state):
        validate(self, at, state)
        self.so_far.validation |= {"val/accuracy": float("nan") if at == 9 else 0.5, "val/loss": float(at)}

    monkeypatch.setattr(train.Trainer, "validate", equal)
    assert tiny.start(tmp_path, "cnn", "train.steps=27")[0] == 0
    found = tiny.result(tmp_path)
    assert (found["best_step"], found["best_val/loss"], found["best_val/accuracy"]) == (27, 27.0, 0.5)


def test_a_damaged_best_checkpoint_is_no_traceback(tmp_path, monkeypatch):
    validate = train.Trainer.validate

    def damaged(self, at, state):
        validate(self, at, state)
        self.so_far.validation["val/accuracy"] = 1.0 if at == 9 else 0.1
        if at == 18:
            self.checkpoints.finish()
            tiny.damage(tmp_path, 9)

    monkeypatch.setattr(train.Trainer, "validate", damaged)
    code, text = tiny.start(tmp_path, "cnn", "evaluate.use=best")
    assert code == 0 and tiny.result(tmp_path)["test/accuracy"] > 0.5 and tiny.result(tmp_path)["test_step"] == 23
